from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax.config import MeshConfig
from sqlr1_jax.distributed import sharding
from sqlr1_jax.errors import ConfigError, Sqlr1Error
from sqlr1_jax.model import huggingface, qwen2, safetensors, tokenizer
from sqlr1_jax.model.safetensors import LazyTensor, WeightsError
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
    model, loaded = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompt = loaded("- dogs: code, color")["input_ids"]
    assert prompt == tiny_tokenizer("- dogs: code, color")["input_ids"]
    assert model.generation_config.eos_token_id[0] == loaded.convert_tokens_to_ids("<|im_end|>")
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, eos_token_id=-1)[0, len(prompt) :].tolist()
    assert greedy(params, prompt, 24, config)[0] == expected
    assert huggingface.config_from_folder(tmp_path).num_tokens == len(tiny_tokenizer)


def write_config_json(folder: Path, **changes: Any) -> Path:
    record = json.loads((TRANSFORMERS_FIXTURE / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(record))
    return folder


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abcd\nsize 7031645\n"
DAMAGES = [
    (LFS_POINTER, "Git LFS pointer instead of the file: run `git lfs pull`"),
    ("<!DOCTYPE html><html>401 access denied</html>", "web page instead of the file"),
    ("", "is empty"),
    ("{", "is not JSON|cut short|cannot be read"),
    ("[]", "holds a list, not an object|cut short|cannot be read"),
]


@pytest.mark.parametrize(("text", "message"), DAMAGES)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_a_broken_download_is_one_line_that_names_the_file(
    home: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    folder = shutil.copytree(home / "model", tmp_path / "model")
    (folder / name).write_text(text)
    with pytest.raises(Sqlr1Error, match=message) as error:
        config = huggingface.config_from_folder(folder)
        tokenizer.stop_ids(tokenizer.load(folder), folder)
        huggingface.load_params(folder, config)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    if "cannot be read" not in str(error.value):
        assert name in str(error.value)


def rewrite_tensors(folder: Path, **changes: np.ndarray) -> None:
    """Adds or replaces tensors of a folder's only file; __ in a name stands for a dot."""
    tensors = dict(safetensors.open_file(folder / "model.safetensors"))
    tensors |= {name.replace("__", "."): values for name, values in changes.items()}

    def lazy(name: str, values: np.ndarray) -> LazyTensor:
        return LazyTensor(name, values.dtype, values.shape, lambda: np.array(values))

    safetensors.write_file(folder / "new", [lazy(name, values) for name, values in tensors.items()])
    (folder / "new").replace(folder / "model.safetensors")


def test_a_tied_model_whose_stored_head_differs_is_refused(tmp_path: Path) -> None:
    params = tiny_models.random_params()
    assert tiny_models.MODEL.tied
    huggingface.save_model(tmp_path, params, tiny_models.MODEL)
    head = np.array(params["embed"])
    rewrite_tensors(tmp_path, lm_head__weight=head)
    assert same_bits(huggingface.load_params(tmp_path, tiny_models.MODEL), params)
    head[-1, -1] += 1
    rewrite_tensors(tmp_path, lm_head__weight=head)
    with pytest.raises(WeightsError, match=r"tie_word_embeddings true, but lm_head\.weight differs from model\.embed"):
        huggingface.load_params(tmp_path, tiny_models.MODEL)


@pytest.mark.parametrize(
    "name", ["self_attn__q_norm__weight", "self_attn__o_proj__bias", "mlp__experts__0__up__weight"]
)
def test_tensors_of_another_architecture_are_refused(tmp_path: Path, name: str) -> None:
    huggingface.save_model(tmp_path, tiny_models.random_params(), tiny_models.MODEL)
    rewrite_tensors(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(2, np.float32))
    huggingface.load_params(tmp_path, tiny_models.MODEL)
    rewrite_tensors(tmp_path, **{f"model__layers__0__{name}": np.ones(4, np.float32)})
    with pytest.raises(WeightsError, match=rf"1 tensors .* such as model\.layers\.0\.{name.replace('__', '.')};"):
        huggingface.load_params(tmp_path, tiny_models.MODEL)


def test_a_folder_of_an_adapter_alone_is_refused_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is a folder without config\.json; .* in config\.model\.adapter"):
        huggingface.resolve_folder(tmp_path)


def test_an_export_keeps_all_ends_of_the_folder(tmp_path: Path, tiny_tokenizer: Any) -> None:
    source = shutil.copytree(tiny_tokenizer.name_or_path, tmp_path / "source")
    (source / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    model = dataclasses.replace(tiny_models.MODEL, vocab_size=len(tiny_tokenizer), num_tokens=len(tiny_tokenizer))
    huggingface.save_model(tmp_path / "export", tiny_models.random_params(model), model, source)
    ends = json.loads((tmp_path / "export" / "generation_config.json").read_text())["eos_token_id"]
    assert ends[0] == tiny_tokenizer.eos_token_id and sorted(ends) == list(tokenizer.stop_ids(tiny_tokenizer, source))
    assert {5, 7} < set(ends)


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
    with pytest.raises(ConfigError, match=r"without config\.json"):
        huggingface.resolve_folder(tmp_path)
