"""LoRA adapters in the folders of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

PEFT stores one pair of matrices per layer and matrix, outputs first; here layers are stacked and inputs come first:

    PEFT    lora_A [r, in], lora_B [out, r]      a tensor per layer
    here    a [L, in, r], b [L, r, out]          `in` and `out` may be several axes, as in q [L, D, H, h]
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sqlr1_jax.distributed import collectives
from sqlr1_jax.distributed.sharding import TRAIN_RULES, gather_to_host, named_sharding
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.io import read_json_object
from sqlr1_jax.model import huggingface, lora, safetensors
from sqlr1_jax.model.qwen2 import Params, Qwen2Config, abstract_params, is_spec
from sqlr1_jax.model.safetensors import LazyTensor, WeightsError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of PEFT's names, before those of the model's own tensors
# Settings of adapter_config.json that change what the adapter computes, with the only value that is read here.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "layer_replication": None,
}


def resolve_folder(source: str | Path) -> Path:
    """The folder of an adapter: `source` itself, or a Hub repository, downloaded or found in the Hub's cache.

    Raises:
      ConfigError: `source` is a folder without adapter_config.json, or no such repository can be fetched.
    """
    return huggingface.resolve_folder(source, CONFIG_FILE, "config.model.adapter")


def load(source: str | Path, config: Qwen2Config, shardings: Any) -> Params:
    """The adapters {matrix: {"a", "b"}} of a folder, with the given shardings.

    Raises:
      ConfigError: the folder's rank, scale or matrices are not those of `config`.
      WeightsError: a tensor is missing, has another shape, or is of no matrix of the model.
    """
    folder = resolve_folder(source)
    found, adapters = read(folder, config)
    same = found.lora_rank, set(found.lora_matrices), found.lora_alpha
    if same != (config.lora_rank, set(config.lora_matrices), config.lora_alpha):
        raise ConfigError(
            f"{folder} has adapters of rank {found.lora_rank} and alpha {found.lora_alpha:g} for "
            f"{', '.join(found.lora_matrices)}. To train them further, set config.model.lora.rank, alpha and matrices "
            "to these."
        )
    return jax.tree.map(_to_global, adapters, shardings)


def merge(source: str | Path, params: Params, config: Qwen2Config, mesh: jax.sharding.Mesh) -> Params:
    """The parameters with a folder's adapters merged into them; donates the buffers of `params`.

    Raises:
      ConfigError: the adapters are of a form that is not supported.
      WeightsError: a tensor is missing, has another shape, or is of no matrix of the model.
    """
    found, adapters = read(resolve_folder(source), config)
    specs = abstract_params(found)[lora.KEY]
    shardings = jax.tree.map(
        lambda spec: named_sharding(mesh, spec.logical_axes, TRAIN_RULES, spec.shape), specs, is_leaf=is_spec
    )
    return _merge(params, jax.tree.map(_to_global, adapters, shardings), found)


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("params",))
def _merge(params: Params, adapters: Params, config: Qwen2Config) -> Params:
    merged = lora.merge(params | {lora.KEY: adapters}, config)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), merged, params)


def _to_global(values: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def read(folder: Path, config: Qwen2Config) -> tuple[Qwen2Config, dict[str, dict[str, np.ndarray]]]:
    """The model with the folder's LoRA settings, and its adapters {matrix: {"a", "b"}} on the host.

    Raises:
      ConfigError: adapter_config.json asks for a form of LoRA that is not supported; the message names the setting.
      JsonError: adapter_config.json is broken.
      WeightsError: a tensor is missing, has another shape, or is of no matrix of the model.
    """
    record = read_json_object(folder / CONFIG_FILE)
    rank, alpha = _check_settings(folder / CONFIG_FILE, record)
    if not (folder / WEIGHTS_FILE).is_file():
        raise WeightsError(f"{folder} has no {WEIGHTS_FILE}; save the adapter with safe_serialization=True.")
    tensors = safetensors.open_file(folder / WEIGHTS_FILE)
    matrices = tuple(name for name in lora.MATRICES if _tensor_name(name, 0, "a") in tensors)
    found = dataclasses.replace(config, lora_rank=rank, lora_alpha=alpha, lora_matrices=matrices)
    specs = abstract_params(found).get(lora.KEY, {})
    known = {_tensor_name(name, i, part) for name in matrices for i in range(config.num_layers) for part in "ab"}
    if unknown := sorted(set(tensors) - known):
        raise WeightsError(
            f"{folder / WEIGHTS_FILE} holds {len(unknown)} tensors that belong to no matrix of the model, such as "
            f"{unknown[0]}; the adapter was made for another model, or for parts that are not supported."
        )
    adapters = {
        name: {part: _stack(folder, tensors, name, part, specs[name][part].shape) for part in "ab"} for name in matrices
    }
    return found, adapters


def _check_settings(path: Path, record: Mapping[str, Any]) -> tuple[int, float]:
    """(rank, alpha); the error names a setting that is not supported."""
    for name, plain in _PLAIN.items():
        value = record.get(name, plain)
        if value != plain and (value or plain):
            raise ConfigError(f"{path}: {name} is {value!r}; only {plain!r} is supported.")
    rank, alpha = record.get("r"), record.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise ConfigError(f"{path}: r is {rank!r} and lora_alpha is {alpha!r}; they are an adapter's rank and scale.")
    # Rank-stabilized LoRA divides by √r instead of r.
    return rank, float(alpha) * (rank**0.5 if record.get("use_rslora") else 1.0)


def _tensor_name(matrix: str, layer: int, part: str) -> str:
    module = huggingface.tensor_name(matrix, layer).removesuffix(".weight")
    return f"{_PREFIX}{module}.lora_{part.upper()}.weight"


def _stack(
    folder: Path, tensors: Mapping[str, np.ndarray], matrix: str, part: str, shape: tuple[int, ...]
) -> np.ndarray:
    """One part of all layers' adapters of a matrix, in our shape."""
    stacked = np.empty(shape, np.float32)
    rows = shape[-1] if part == "a" else int(np.prod(shape[2:]))  # of the file's tensor
    columns = int(np.prod(shape[1:])) // rows
    for layer in range(shape[0]):
        name = _tensor_name(matrix, layer, part)
        if name not in tensors or tensors[name].shape != (rows, columns):
            found = tensors[name].shape if name in tensors else "missing"
            raise WeightsError(f"{folder / WEIGHTS_FILE}: {name} is {found}; the model needs shape {(rows, columns)}.")
        stacked[layer] = np.asarray(tensors[name], np.float32).T.reshape(shape[1:])
    return stacked


def save(folder: Path, adapters: Params, config: Qwen2Config, base: str, dtype: str = "float32") -> None:
    """Writes a PEFT folder, which in float32 `load` reads bit for bit.

    Every process must call it, since fetching sharded arrays is a collective; only the primary process writes.

    Args:
      folder: created if it does not exist.
      adapters: {matrix: {"a", "b"}}.
      config: their rank, scale and matrices.
      base: the model that they belong to, as `base_model_name_or_path`.
      dtype: of the stored adapters, float32 or bfloat16.
    """
    host = jax.tree.map(gather_to_host, adapters)
    if not collectives.is_primary():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [
        _lazy_tensor(_tensor_name(name, layer, part), host[name][part][layer], part, np.dtype(dtype))
        for layer in range(config.num_layers)
        for name in config.lora_matrices
        for part in "ab"
    ]
    safetensors.write_file(folder / WEIGHTS_FILE, tensors)
    record = {
        **_PLAIN,
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": [huggingface.tensor_name(name, 0).split(".")[-2] for name in config.lora_matrices],
    }
    (folder / CONFIG_FILE).write_text(json.dumps(record, indent=1) + "\n")


def _lazy_tensor(name: str, values: np.ndarray, part: str, dtype: np.dtype) -> LazyTensor:
    """One layer's a [in, r] or b [r, out], as PEFT stores it."""
    matrix = values.reshape(-1, values.shape[-1]) if part == "a" else values.reshape(values.shape[0], -1)
    stored = matrix.astype(dtype).T
    return LazyTensor(name, dtype, stored.shape, lambda: stored)
