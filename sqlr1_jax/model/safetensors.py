"""Reads and writes safetensors files without holding a whole file in memory.

The format: eight bytes with the header's length, a JSON header of {name: dtype, shape, data_offsets}, then the bytes of
the tensors.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.io import find_fault, read_json_object

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_ALIGNMENT = 64  # bytes
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class WeightsError(Sqlr1Error):
    """Weights that cannot be read; the message names the file, the tensor and the fix."""


class LazyTensor(NamedTuple):
    """A tensor to write; `load` returns its values and is called only when they are written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The tensor's size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def open_file(path: Path) -> dict[str, np.ndarray]:
    """Opens every tensor of a file as a memory map, which reads only what is sliced.

    Raises:
      WeightsError: the file is cut short or another kind of file, its header is not JSON, or a tensor is stored in an
        unsupported dtype.
    """
    if fault := find_fault(path):
        raise WeightsError(f"{path} {fault}. Download it again.")
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise WeightsError(f"{path} is cut short: its header extends past its {size} bytes; download it again.")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{path}: its header is not JSON ({error}); download it again.") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: its header is a {type(header).__name__}, not an object; download it again.")
    header.pop("__metadata__", None)
    return {name: _memory_map(path, name, record, 8 + length, size) for name, record in header.items()}


def open_folder(folder: Path) -> dict[str, np.ndarray]:
    """Opens the tensors of the files that the folder's index lists, or without an index of every *.safetensors file.

    Raises:
      WeightsError: a file is missing, or `open_file` cannot read it.
      JsonError: the index is broken.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise WeightsError(f"{index} has no weight_map of tensors to files; download it again.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        lacking = f"lacks files that its index lists ({', '.join(missing[:3])})"
        problem = lacking if missing else "has no *.safetensors file"
        raise WeightsError(f"{folder} {problem}; download the model again, in safetensors form.")
    return {name: tensor for file in files for name, tensor in open_file(file).items()}


def _memory_map(path: Path, name: str, record: Mapping, start: int, size: int) -> np.ndarray:
    try:
        (begin, end), shape, stored = record["data_offsets"], tuple(map(int, record["shape"])), record["dtype"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: {name} has no readable dtype, shape and data_offsets; download it again."
        ) from error
    if start + end > size:
        raise WeightsError(f"{path} is cut short: {name} ends past its {size} bytes; download it again.")
    dtype = _DTYPES.get(stored)
    if dtype is None:
        raise WeightsError(
            f"{path}: {name} is stored as {stored}; only {', '.join(_DTYPES)} can be read. Use weights that "
            "are not quantized."
        )
    if end - begin != math.prod(shape) * dtype.itemsize or begin < 0:
        raise WeightsError(f"{path}: {name} has {end - begin} bytes, not those of shape {shape}; download it again.")
    # An empty file region cannot be mapped.
    if begin == end:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + begin, shape=shape)


def aligned_array(shape: Sequence[int], dtype: str) -> np.ndarray:
    """An array to read values into, at an address that JAX on CPU takes over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def write_file(path: Path, tensors: list[LazyTensor]) -> None:
    """Writes the tensors in order, one in memory at a time; `path` appears only when the file is complete."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        offsets = [offset, offset + tensor.nbytes]
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    # A process that is killed here leaves only the partial file, which no reader opens.
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.load(), tensor.dtype).tobytes())
    os.replace(partial, path)


def write_folder(folder: Path, tensors: list[LazyTensor], shard_bytes: float) -> list[str]:
    """Writes model.safetensors, or several shards and their index.

    Args:
      folder: an existing folder.
      tensors: in the order in which to write them.
      shard_bytes: the most a shard holds, unless a single tensor is larger.

    Returns:
      The names of the files written.
    """
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        write_file(folder / "model.safetensors", tensors)
        return ["model.safetensors"]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return [*names, "model.safetensors.index.json"]


def _shards(tensors: list[LazyTensor], shard_bytes: float) -> list[list[LazyTensor]]:
    shards: list[list[LazyTensor]] = [[]]
    free_bytes = shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > free_bytes:
            shards.append([])
            free_bytes = shard_bytes
        shards[-1].append(tensor)
        free_bytes -= tensor.nbytes
    return shards
