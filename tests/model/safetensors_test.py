from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import numpy as library

from sqlr1_jax.model import safetensors
from sqlr1_jax.model.safetensors import LazyTensor, WeightsError
from testing.tiny_models import TRANSFORMERS_FIXTURE


def lazy(name: str, values: np.ndarray) -> LazyTensor:
    return LazyTensor(name, values.dtype, values.shape, lambda: values)


_values = st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(st.dictionaries(st.text("abc.", min_size=1), _values, min_size=1, max_size=4))
def test_the_safetensors_library_reads_files_that_we_write(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    safetensors.write_file(path, [lazy(name, values) for name, values in tensors.items()])
    ours, librarys = safetensors.open_file(path), library.load_file(path)
    assert ours.keys() == librarys.keys() == tensors.keys()
    for name, values in tensors.items():
        for read in (ours[name], librarys[name]):
            assert (read.dtype, read.shape, read.tobytes()) == (values.dtype, values.shape, values.tobytes())


def test_files_that_the_library_writes_are_read(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, ml_dtypes.bfloat16)}
    library.save_file(tensors, tmp_path / "w.safetensors")
    read = safetensors.open_file(tmp_path / "w.safetensors")
    assert read.keys() == tensors.keys()
    for name, values in tensors.items():
        assert (read[name].dtype, read[name].tobytes()) == (values.dtype, values.tobytes())


def test_a_tensor_larger_than_a_shard_gets_a_shard_to_itself(tmp_path: Path) -> None:
    sizes = [3, 9, 2, 2, 1]  # in elements of four bytes; a shard holds 20 bytes
    tensors = [lazy(f"t{i}", np.full(size, i, np.float32)) for i, size in enumerate(sizes)]
    files = safetensors.write_folder(tmp_path, tensors, 20)
    shards = [list(safetensors.open_file(tmp_path / name)) for name in files[:-1]]
    assert shards == [["t0"], ["t1"], ["t2", "t3", "t4"]]
    index = json.loads((tmp_path / files[-1]).read_text())
    assert index["metadata"]["total_size"] == 4 * sum(sizes)
    assert index["weight_map"]["t3"] == files[2]


def test_writing_keeps_one_tensor_in_memory_at_a_time(tmp_path: Path) -> None:
    def load() -> np.ndarray:
        return np.ones(2**18, np.float32)

    tensors = [LazyTensor(str(i), np.dtype(np.float32), (2**18,), load) for i in range(16)]
    tracemalloc.start()
    safetensors.write_file(tmp_path / "w.safetensors", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # one tensor and its bytes take 2 MiB, all tensors 16 MiB


def test_a_truncated_file_raises_an_error(tmp_path: Path) -> None:
    whole = (TRANSFORMERS_FIXTURE / "model.safetensors").read_bytes()
    cut = tmp_path / "model.safetensors"
    for size in (3, 200, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="cut short"):
            safetensors.open_file(cut)


def test_a_header_that_is_not_json_raises_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2) + b"no")
    with pytest.raises(WeightsError, match=r"w\.safetensors: its header is not JSON"):
        safetensors.open_file(tmp_path / "w.safetensors")


def test_quantized_tensors_are_rejected(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(WeightsError, match="w is stored as F8_E4M3"):
        safetensors.open_file(tmp_path / "w.safetensors")


def test_jax_takes_an_aligned_array_over_without_a_copy() -> None:
    for shape in ((3,), (5, 7), (0, 2)):
        values = safetensors.aligned_array(shape, "bfloat16")
        assert (values.shape, str(values.dtype)) == (shape, "bfloat16")
    values = safetensors.aligned_array((5, 7), "float32")
    values[:] = 1
    assert jax.device_put(values).unsafe_buffer_pointer() == values.ctypes.data
