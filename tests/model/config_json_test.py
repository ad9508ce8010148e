from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import config_json
from testing.tiny_models import TRANSFORMERS_FIXTURE


def write_config_json(folder: Path, **changes: Any) -> Path:
    record = json.loads((TRANSFORMERS_FIXTURE / "config.json").read_text()) | changes
    path = folder / "config.json"
    path.write_text(json.dumps(record))
    return path


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
        config_json.read(write_config_json(tmp_path, **changes))


PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "qwen3"}, "model_type is 'qwen3'"),
        ({"model_type": "qwen2_moe"}, "model_type is 'qwen2_moe'"),
        ({"model_type": None}, "model_type is None"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "architectures is"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": PLAIN_ROPE}, "rope_scaling is"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling is"),
        ({"rope_parameters": PLAIN_ROPE | {"rope_type": "yarn"}}, "rope_parameters is"),
        ({"rope_parameters": PLAIN_ROPE | {"type": "dynamic"}}, "rope_parameters is"),
        ({"rope_parameters": PLAIN_ROPE | {"mrope_section": [1, 1, 1]}}, "rope_parameters is"),
        ({"rope_parameters": {"full_attention": PLAIN_ROPE}}, "rope_parameters is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"attention_bias": False}, "attention_bias is False"),
    ],
    ids=str,
)
def test_what_would_be_another_computation_is_refused_by_its_key(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as error:
        config_json.read(write_config_json(tmp_path, **changes))
    assert f"config.json: {key}" in str(error.value) and "plain Qwen2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": None}, "config.json has no num_attention_heads. Download"),
        ({"hidden_size": "24"}, "hidden_size is '24', which is not a positive integer. Download"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, which is not a positive integer"),
        ({"vocab_size": True}, "vocab_size is True, which is not a positive integer"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', which is neither true nor false"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1, which is not a positive number"),
        ({"hidden_size": 25}, "hidden_size is 25, with 6 attention heads, which do not divide evenly"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4, with 6 attention heads, which do not divide evenly"),
        ({"rope_theta": 5.0}, "rope_theta is 5.0, but rope_parameters.rope_theta is 1000000.0. Remove the wrong one."),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters.rope_theta is 'x', which is not a positive number"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_right_is_one_line_with_file_key_and_fix(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        config_json.read(write_config_json(tmp_path, **changes))
    assert message in str(error.value) and str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": PLAIN_ROPE},
        {"rope_parameters": None, "rope_theta": 1e6},
        {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": None},
        {"rope_parameters": PLAIN_ROPE, "rope_theta": 1e6, "rope_scaling": {"type": "default"}},
        {"layer_types": None, "architectures": None, "sliding_window": 4096},
    ],
    ids=str,
)
def test_all_spellings_of_a_plain_qwen2_give_the_same_shape(tmp_path: Path, changes: dict[str, Any]) -> None:
    expected = config_json.read(TRANSFORMERS_FIXTURE / "config.json")
    assert expected.rope_theta == 1e6
    assert config_json.read(write_config_json(tmp_path, **changes)) == expected


def test_adapters_beside_a_model_are_refused_with_their_setting(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a LoRA adapter .* name that in config\.model\.adapter"):
        config_json.read(write_config_json(tmp_path))
