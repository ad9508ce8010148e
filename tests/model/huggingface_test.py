from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax.config import MeshConfig
from sqlr1_jax.distributed import sharding
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import huggingface, qwen2, safetensors
from sqlr1_jax.model.safetensors import WeightsError
from testing import tiny_models
from testing.naive_decoding import greedy
from testing.tiny_models import TRANSFORMERS_FIXTURE

pytestmark = pytest.mark.usefixtures("compiles_fast")


def same_bits(tree: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_loading_an_export_gives_the_same_bits(tmp_path: Path, dtype: str, tied: bool) -> None:
    config = dataclasses.replace(tiny_models.MODEL, param_dtype=dtype, tied=tied)
    params = tiny_models.random_params(config)
    written = huggingface.save_model(tmp_path, params, config)
    assert sorted(written) == ["README.md", "config.json", "generation_config.json", "model.safetensors"]
    loaded_config = huggingface.config_from_folder(tmp_path)
    assert dataclasses.replace(loaded_config, num_tokens=37, param_dtype=dtype, logits_chunk=0) == config
    assert same_bits(huggingface.load_params(tmp_path, config), params)


def test_weight_files_respect_the_size_limit_and_are_indexed(tmp_path: Path) -> None:
    params = tiny_models.random_params()
    written = huggingface.save_model(tmp_path, params, tiny_models.MODEL, shard_gigabytes=8e-6)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and {file.name for file in files} == set(index["weight_map"].values()) < set(written)
    assert index["metadata"]["total_size"] == 4 * qwen2.count_params(tiny_models.MODEL)
    shards = [safetensors.open_file(file) for file in files]
    assert all(sum(t.nbytes for t in tensors.values()) <= 8000 or len(tensors) == 1 for tensors in shards)
    assert {name for tensors in shards for name in tensors} == set(index["weight_map"])
    assert same_bits(huggingface.load_params(tmp_path, tiny_models.MODEL), params)
    huggingface.save_model(tmp_path, params, tiny_models.MODEL)
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]


def test_each_device_reads_only_its_shard(tmp_path: Path) -> None:
    params = tiny_models.random_params()
    huggingface.save_model(tmp_path, params, tiny_models.MODEL)
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    loaded = huggingface.load_params(tmp_path, tiny_models.MODEL, mesh)
    assert same_bits(loaded, params)
    assert loaded["layers"]["q"].addressable_shards[0].data.shape == (2, 4, 2, 4)  # of [2, 16, 4, 4]
    assert loaded["layers"]["o"].addressable_shards[0].data.shape == (2, 2, 4, 4)
    assert loaded["embed"].addressable_shards[0].data.shape == (20, 4)


def test_a_sharded_model_exports_the_same_bytes(tmp_path: Path) -> None:
    huggingface.save_model(tmp_path / "whole", tiny_models.random_params(), tiny_models.MODEL)
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    sharded = huggingface.load_params(tmp_path / "whole", tiny_models.MODEL, mesh)
    huggingface.save_model(tmp_path / "sharded", sharded, tiny_models.MODEL)
    exports = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "sharded")]
    assert exports[0] == exports[1]


def test_export_casts_the_weights_and_records_the_dtype(tmp_path: Path) -> None:
    huggingface.save_model(tmp_path, tiny_models.random_params(), tiny_models.MODEL, dtype="bfloat16")
    tensors = safetensors.open_file(tmp_path / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16).astype(np.float32), tiny_models.random_params())
    assert same_bits(huggingface.load_params(tmp_path, tiny_models.MODEL), rounded)


def test_transformers_decodes_the_export_to_the_same_tokens(tmp_path: Path, tiny_tokenizer: Any) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer_folder = Path(tiny_tokenizer.name_or_path)
    config = dataclasses.replace(tiny_models.MODEL, vocab_size=len(tiny_tokenizer) + 3, num_tokens=len(tiny_tokenizer))
    params = tiny_models.random_params(config)
    huggingface.save_model(tmp_path, params, config, tokenizer_folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer("- dogs: code, color")["input_ids"]
    assert prompt == tiny_tokenizer("- dogs: code, color")["input_ids"]
    assert model.generation_config.eos_token_id[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, eos_token_id=-1)[0, len(prompt) :].tolist()
    assert greedy(params, prompt, 24, config)[0] == expected
    assert huggingface.config_from_folder(tmp_path).num_tokens == len(tiny_tokenizer)


def write_config_json(folder: Path, **changes: Any) -> Path:
    record = json.loads((TRANSFORMERS_FIXTURE / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama"},
        {"use_sliding_window": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}},
        {"quantization_config": {"bits": 4}},
    ],
    ids=str,
)
def test_unsupported_models_are_rejected_with_the_reason(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"config\.json.*which is not supported"):
        huggingface.config_from_folder(write_config_json(tmp_path, **changes))


def test_missing_and_misshapen_tensors_raise_an_error_that_names_them(tmp_path: Path) -> None:
    config = huggingface.config_from_folder(TRANSFORMERS_FIXTURE)
    with pytest.raises(WeightsError, match=r"model\.layers\.2\.input_layernorm\.weight"):
        huggingface.load_params(TRANSFORMERS_FIXTURE, dataclasses.replace(config, num_layers=3))
    with pytest.raises(
        WeightsError, match=r"gate_proj\.weight has shape \(40, 24\), but config\.json implies \(48, 24\)"
    ):
        huggingface.load_params(TRANSFORMERS_FIXTURE, dataclasses.replace(config, ffw_size=48))
    with pytest.raises(WeightsError, match=r"no \*\.safetensors file"):
        huggingface.load_params(write_config_json(tmp_path), config)


def test_a_missing_shard_raises_an_error_that_names_it(tmp_path: Path) -> None:
    huggingface.save_model(tmp_path, tiny_models.random_params(), tiny_models.MODEL, shard_gigabytes=8e-6)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(WeightsError, match=r"lacks files that its index lists \(model-00002"):
        huggingface.load_params(tmp_path, tiny_models.MODEL)


def test_a_name_that_is_neither_a_folder_nor_a_repository_raises_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConfigError, match=r"neither a local folder nor a repository.*no network"):
        huggingface.resolve_folder("nobody/nothing")
    with pytest.raises(ConfigError, match=r"without a config\.json"):
        huggingface.resolve_folder(tmp_path)
