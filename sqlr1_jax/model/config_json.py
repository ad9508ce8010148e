"""Reads the config.json of a Hugging Face folder, and refuses every model that is not a plain Qwen2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.io import read_json_object
from sqlr1_jax.model.qwen2 import Qwen2Config

_ARCHITECTURE = "Qwen2ForCausalLM"
_PLAIN = (
    "which is not supported. Use a plain Qwen2 model (Qwen2, Qwen2.5, Qwen2.5-Coder) without sliding windows, RoPE "
    "scaling or quantization."
)


def read(path: Path) -> Qwen2Config:
    """The model's shape; `num_tokens` is 0, since config.json does not say how many ids the tokenizer has.

    Raises:
      ConfigError: the model is not a plain Qwen2, or a value is missing or cannot be right; the message names the file,
        the key and the value.
      JsonError: the file is broken.
    """
    record = read_json_object(path)
    _check_architecture(path, record)
    _check_rope(path, record)
    sizes = _Values(path, record)
    hidden_size, heads = sizes.integer("hidden_size"), sizes.integer("num_attention_heads")
    kv_heads = sizes.integer("num_key_value_heads", heads)
    for name, size in (("hidden_size", hidden_size), ("num_key_value_heads", kv_heads)):
        large, small = (hidden_size, heads) if name == "hidden_size" else (heads, kv_heads)
        if large % small and not (name == "hidden_size" and record.get("head_dim")):
            sizes.refuse(name, size, f"with {heads} attention heads, which do not divide evenly")
    return Qwen2Config(
        vocab_size=sizes.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=sizes.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=sizes.integer("head_dim", hidden_size // heads),
        ffw_size=sizes.integer("intermediate_size"),
        tied=sizes.boolean("tie_word_embeddings", False),
        rope_theta=_rope_theta(path, record),
        norm_eps=sizes.number("rms_norm_eps", 1e-6),
        max_positions=sizes.integer("max_position_embeddings", 32768),
    )


class _Values:
    """Values of a record that have the right type; a missing or null one is the default, or an error without one."""

    def __init__(self, path: Path, record: Mapping[str, Any]):
        self._path, self._record = path, record

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(key, value, "which is not a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            self.refuse(key, value, "which is not a positive number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "which is neither true nor false")
        return value

    def refuse(self, key: str, value: Any, reason: str) -> NoReturn:
        raise ConfigError(f"{self._path}: {key} is {value!r}, {reason}. Download the file of this model again.")

    def _get(self, key: str, default: Any) -> Any:
        value = self._record.get(key)
        if value is None and default is None:
            raise ConfigError(f"{self._path} has no {key}. Download the file of this model again.")
        return default if value is None else value


def _refuse(path: Path, key: str, value: Any) -> NoReturn:
    raise ConfigError(f"{path}: {key} is {value!r}, {_PLAIN}")


def _check_architecture(path: Path, record: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first key whose value would make another computation than Qwen2's."""
    layer_types = record.get("layer_types") or []
    architectures = record.get("architectures") or [_ARCHITECTURE]
    unsupported = {
        "model_type": record.get("model_type") != "qwen2",
        "architectures": architectures != [_ARCHITECTURE],
        "hidden_act": record.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(record.get("use_sliding_window")),
        "layer_types": layer_types != ["full_attention"] * len(layer_types),
        "quantization_config": bool(record.get("quantization_config")),
        "attention_bias": record.get("attention_bias", True) is False,  # Qwen2's q, k and v have biases
        "mlp_bias": bool(record.get("mlp_bias")),
    }
    for key, is_unsupported in unsupported.items():
        if is_unsupported:
            _refuse(path, key, record.get(key))
    if (path.parent / "adapter_config.json").exists():
        raise ConfigError(
            f"{path.parent} holds a LoRA adapter (adapter_config.json) beside a model. Move the adapter's files to a "
            "folder of their own, and name that in config.model.adapter, or remove them to use the model without it."
        )


def _check_rope(path: Path, record: Mapping[str, Any]) -> None:
    """Raises ConfigError unless RoPE is plain. transformers 5 writes rope_parameters, earlier versions rope_scaling."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = record.get(key)
        if rope is None or rope == {}:
            continue
        if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
            _refuse(path, key, rope)  # parameters by layer type are those of other architectures
        types = {rope[name] for name in ("rope_type", "type") if rope.get(name) is not None}
        scaled = not types and rope.get("factor") is not None
        if types - {"default"} or scaled or rope.get("mrope_section") or rope.get("partial_rotary_factor", 1) != 1:
            _refuse(path, key, rope)
    if record.get("partial_rotary_factor", 1) != 1:
        _refuse(path, "partial_rotary_factor", record["partial_rotary_factor"])


def _rope_theta(path: Path, record: Mapping[str, Any]) -> float:
    inner = (record.get("rope_parameters") or {}).get("rope_theta")
    outer = record.get("rope_theta")
    if inner is not None and outer is not None and inner != outer:
        raise ConfigError(
            f"{path}: rope_theta is {outer!r}, but rope_parameters.rope_theta is {inner!r}. Remove the wrong one."
        )
    if inner is not None:
        return _Values(path, {"rope_parameters.rope_theta": inner}).number("rope_parameters.rope_theta")
    return _Values(path, record).number("rope_theta", 10000.0)
