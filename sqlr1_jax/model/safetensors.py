"""Safetensors files: read lazily, a slice at a time, and written tensor by tensor, so that neither holds a whole file.

The format: eight bytes with the header's length, a JSON header of {name: dtype, shape, data_offsets}, then the bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from sqlr1_jax.errors import Sqlr1Error

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class WeightsError(Sqlr1Error):
    """Weights that cannot be read; the message names the file, the tensor and the fix."""


class Tensor(NamedTuple):
    """One tensor to be written; `make` gives its values when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def open_file(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as a memory map; nothing is read before it is sliced."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise WeightsError(f"{path} is cut short: its header alone is past its {size} bytes; download it again.")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise WeightsError(f"{path}: its header is not JSON ({error}); download it again.") from error
    header.pop("__metadata__", None)
    return {name: _map(path, name, record, 8 + length, size) for name, record in header.items()}


def _map(path: Path, name: str, record: Mapping, start: int, size: int) -> np.ndarray:
    begin, end = record["data_offsets"]
    if start + end > size:
        raise WeightsError(f"{path} is cut short: {name} ends past its {size} bytes; download it again.")
    dtype = _DTYPES.get(record["dtype"])
    if dtype is None:
        raise WeightsError(
            f"{path}: {name} is stored as {record['dtype']}; only {', '.join(_DTYPES)} are read, so take weights that "
            "are not quantized."
        )
    if begin == end:
        return np.zeros(record["shape"], dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + begin, shape=tuple(record["shape"]))


def write_file(path: Path, tensors: list[Tensor]) -> None:
    """Writes the tensors in order; the file appears under its name once it is whole."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in tensors:
        offsets = [place, place + tensor.nbytes]
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        place += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.make(), tensor.dtype).tobytes())
    os.replace(partial, path)


def write_folder(folder: Path, tensors: list[Tensor], shard_bytes: float) -> list[str]:
    """One model.safetensors, or shards of at most `shard_bytes` and their index; gives the files' names."""
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        write_file(folder / "model.safetensors", tensors)
        return ["model.safetensors"]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return [*names, "model.safetensors.index.json"]


def _shards(tensors: list[Tensor], shard_bytes: float) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards
