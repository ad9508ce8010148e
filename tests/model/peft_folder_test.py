"""Tests of model/peft_folder.py: folders that PEFT reads and writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import attention, huggingface, lora, peft_folder, qwen2, safetensors
from sqlr1_jax.model.safetensors import LazyTensor, WeightsError
from testing import tiny_models

MODEL = dataclasses.replace(tiny_models.MODEL, lora_rank=2, lora_alpha=6.0, lora_matrices=("q", "v", "o", "down"))


def _adapters(model: qwen2.Qwen2Config = MODEL) -> Any:
    return tiny_models.random_params(model)[lora.KEY]


def _shardings(model: qwen2.Qwen2Config) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda spec: device, qwen2.abstract_params(model)[lora.KEY], is_leaf=qwen2.is_spec)


def _saved(folder: Path, **changed: Any) -> Path:
    """A saved folder with changed entries of adapter_config.json."""
    peft_folder.save(folder, _adapters(), MODEL, "some/base")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return folder


def test_a_saved_folder_loads_to_the_bit(tmp_path: Path) -> None:
    loaded = peft_folder.load(_saved(tmp_path), MODEL, _shardings(MODEL))
    jax.tree.map(np.testing.assert_array_equal, loaded, _adapters())


def test_adapters_may_be_stored_in_bfloat16(tmp_path: Path) -> None:
    peft_folder.save(tmp_path, _adapters(), MODEL, "", "bfloat16")
    loaded = peft_folder.load(tmp_path, MODEL, _shardings(MODEL))
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), _adapters())
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)


def test_a_folder_has_pefts_names_and_shapes(tmp_path: Path) -> None:
    tensors = safetensors.open_file(_saved(tmp_path) / "adapter_model.safetensors")
    assert len(tensors) == 2 * 4 * 2  # layers × matrices × (A, B)
    name = "base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"
    expected = np.asarray(_adapters()["o"]["a"][1]).reshape(16, 2).T
    np.testing.assert_array_equal(tensors[name], expected)
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (record["r"], record["lora_alpha"], record["peft_type"]) == (2, 6.0, "LORA")
    assert record["target_modules"] == ["q_proj", "v_proj", "o_proj", "down_proj"]


def test_merging_a_folder_equals_merging_its_adapters(tmp_path: Path) -> None:
    base = tiny_models.random_params()
    expected = lora.merge(base | {lora.KEY: _adapters()}, MODEL)
    found = peft_folder.merge(
        _saved(tmp_path), jax.tree.map(lambda x: x.copy(), base), tiny_models.MODEL, tiny_models.one_device()
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_rank_stabilized_adapters_divide_by_the_root_of_the_rank(tmp_path: Path) -> None:
    found, _ = peft_folder.read(_saved(tmp_path, use_rslora=True), tiny_models.MODEL)
    assert found.lora_alpha / found.lora_rank == pytest.approx(6.0 / 2**0.5)


def test_training_on_takes_adapters_of_its_own_settings_only(tmp_path: Path) -> None:
    other = dataclasses.replace(MODEL, lora_rank=4)
    with pytest.raises(ConfigError, match=r"adapters of rank 2 and alpha 6 for q, v, o, down.*model\.lora\.rank"):
        peft_folder.load(_saved(tmp_path), other, _shardings(other))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": "2"}, "r is '2'"),
    ],
)
def test_forms_that_are_not_supported_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        peft_folder.read(_saved(tmp_path, **changed), tiny_models.MODEL)


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    deeper = dataclasses.replace(tiny_models.MODEL, num_layers=3)
    with pytest.raises(WeightsError, match=r"layers\.2\.self_attn\.q_proj\.lora_A\.weight is missing"):
        peft_folder.read(_saved(tmp_path), deeper)
    wider = dataclasses.replace(tiny_models.MODEL, hidden_size=32)
    with pytest.raises(WeightsError, match="needs shape"):
        peft_folder.read(tmp_path, wider)
    embedding = LazyTensor("base_model.model.lm_head.lora_A.weight", np.dtype(np.float32), (1,), lambda: np.zeros(1))
    safetensors.write_file(tmp_path / "adapter_model.safetensors", [embedding])
    with pytest.raises(WeightsError, match=r"such as base_model\.model\.lm_head"):
        peft_folder.read(tmp_path, tiny_models.MODEL)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.model\.adapter=.* is a folder without adapter_config\.json"):
        peft_folder.resolve_folder(tmp_path)


def test_peft_computes_the_same_logits(tmp_path: Path) -> None:
    """The reference is PEFT itself on a transformers model."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = tiny_models.random_params()
    huggingface.save_model(tmp_path / "base", base, tiny_models.MODEL)
    peft_folder.save(tmp_path / "adapter", _adapters(), MODEL, str(tmp_path / "base"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    tokens_BT = jnp.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = model(torch.tensor(np.asarray(tokens_BT))).logits.numpy()
    params = lora.merge(base | {lora.KEY: _adapters()}, MODEL)
    mask = attention.causal_mask(tokens_BT, jnp.full(2, 12))
    positions_BT = jnp.tile(jnp.arange(12), (2, 1))
    hidden_BTD, _ = qwen2.forward(params, tokens_BT, positions_BT, mask, tiny_models.MODEL)
    logits_BTV = qwen2.unembed(params, hidden_BTD, tiny_models.MODEL)
    np.testing.assert_allclose(logits_BTV[..., :37], expected[..., :37], atol=2e-4)
