"""Reads and writes Hugging Face model folders; a saved model loads bit for bit, unless it is saved in another dtype.

Reading goes directly into the target sharding: each device's part is sliced out of the memory-mapped files. Writing
goes tensor by tensor. The layouts differ:

    Hugging Face   a tensor per layer   [out, in]       q_proj [H·h, D], o_proj [D, H·h]
    here           layers stacked       [L, in, out]    q [L, D, H, h],  o [L, H, h, D]
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np

from sqlr1_jax.distributed import collectives
from sqlr1_jax.distributed.sharding import TRAIN_RULES, Rules, gather_to_host, named_sharding
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import config_json, lora, safetensors, tokenizer
from sqlr1_jax.model.qwen2 import Params, ParamSpec, Qwen2Config, abstract_params, is_spec, without_adapters
from sqlr1_jax.model.safetensors import LazyTensor, WeightsError

_log = logging.getLogger(__name__)
_READERS = 4  # threads that read a parameter; numpy copies and casts without the GIL


class _HfName(NamedTuple):
    """The name and layout of a parameter in Hugging Face files."""

    template: str  # with {} for the layer
    # How many of the parameter's axes, without the layer axis, are inputs of its matmul. They come first. The others
    # are outputs. The file flattens inputs and outputs to one axis each. 0: a bias, which has only outputs. None: the
    # file stores the parameter in our shape.
    in_axes: int | None


_LAYER = "model.layers.{}."
_HF_NAMES: dict[str, _HfName] = {
    "embed": _HfName("model.embed_tokens.weight", None),
    "final_norm": _HfName("model.norm.weight", None),
    "unembed": _HfName("lm_head.weight", 1),
    "layers/attention_norm": _HfName(_LAYER + "input_layernorm.weight", None),
    "layers/q": _HfName(_LAYER + "self_attn.q_proj.weight", 1),
    "layers/k": _HfName(_LAYER + "self_attn.k_proj.weight", 1),
    "layers/v": _HfName(_LAYER + "self_attn.v_proj.weight", 1),
    "layers/q_bias": _HfName(_LAYER + "self_attn.q_proj.bias", 0),
    "layers/k_bias": _HfName(_LAYER + "self_attn.k_proj.bias", 0),
    "layers/v_bias": _HfName(_LAYER + "self_attn.v_proj.bias", 0),
    "layers/o": _HfName(_LAYER + "self_attn.o_proj.weight", 2),
    "layers/ffw_norm": _HfName(_LAYER + "post_attention_layernorm.weight", None),
    "layers/gate": _HfName(_LAYER + "mlp.gate_proj.weight", 1),
    "layers/up": _HfName(_LAYER + "mlp.up_proj.weight", 1),
    "layers/down": _HfName(_LAYER + "mlp.down_proj.weight", 1),
}


def resolve_folder(source: str | Path, config_file: str = "config.json", setting: str = "config.model.path") -> Path:
    """The folder of a model: `source` itself, or a Hub repository, downloaded or found in the Hub's cache.

    Args:
      source: a folder or a repository id.
      config_file: a file that the folder must hold.
      setting: the setting that named `source`, for errors.

    Raises:
      ConfigError: `source` is a folder without `config_file`, or no such repository can be fetched.
    """
    folder = Path(source)
    if (folder / config_file).is_file():
        return folder
    if folder.is_dir():
        is_adapter = config_file == "config.json" and (folder / "adapter_config.json").is_file()
        fix = (
            "it holds a LoRA adapter: name it in config.model.adapter" if is_adapter else "name the model's own folder"
        )
        raise ConfigError(f"{setting}={source} is a folder without {config_file}; {fix}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except Exception as error:
        raise ConfigError(
            f"{setting}={source} is neither a local folder nor a repository that can be fetched from the "
            f"Hugging Face Hub ({type(error).__name__}: {str(error).splitlines()[0]}). Check the name, or download the "
            "model and name its folder."
        ) from error


def config_from_folder(folder: str | Path) -> Qwen2Config:
    """The model's shape, from config.json; `num_tokens` comes from the folder's tokenizer.

    Raises:
      ConfigError: the model is not a plain Qwen2, or its tokenizer has more ids than the vocabulary.
      JsonError: config.json or tokenizer.json is broken.
    """
    path = Path(folder) / "config.json"
    config, tokens = config_json.read(path), tokenizer.count_tokens(folder)
    if tokens > config.vocab_size:
        raise ConfigError(
            f"{path}: vocab_size {config.vocab_size} is less than the {tokens} ids of the tokenizer in the same "
            "folder; use the tokenizer that belongs to this model."
        )
    return dataclasses.replace(config, num_tokens=tokens)


def load_params(
    source: str | Path, config: Qwen2Config, mesh: jax.sharding.Mesh | None = None, rules: Rules = TRAIN_RULES
) -> Params:
    """Loads parameters in config.param_dtype, without LoRA adapters.

    Args:
      source: a folder or a Hub repository id, as `resolve_folder` takes it.
      config: the model's shape.
      mesh: each device of it reads only its own part; None: all goes to the first device.
      rules: the sharding rules.

    Raises:
      ConfigError: there is no such folder or repository.
      WeightsError: a tensor is missing, has another shape or belongs to another architecture, or the model is tied and
        its lm_head differs from the embedding; the message names the folder and the tensor.
    """
    folder = resolve_folder(source)
    tensors = safetensors.open_folder(folder)
    base = abstract_params(without_adapters(config))
    specs = flax.traverse_util.flatten_dict(base, sep="/", is_leaf=lambda _, leaf: is_spec(leaf))
    _check_other_tensors(folder, tensors, {name for path, spec in specs.items() for name in _hf_names(path, spec)})
    with ThreadPoolExecutor(_READERS) as readers:
        params = {path: _load_param(folder, tensors, path, spec, mesh, rules, readers) for path, spec in specs.items()}
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _check_other_tensors(folder: Path, tensors: Mapping[str, np.ndarray], known: set[str]) -> None:
    """Raises WeightsError if a tensor that is not read would change what the model computes; logs the harmless ones."""
    head, embedding = "lm_head.weight", _HF_NAMES["embed"].template
    is_stored_twice = head not in known and {head, embedding} <= tensors.keys()
    if is_stored_twice and not _same_values(tensors[head], tensors[embedding]):
        raise WeightsError(
            f"{folder}: config.json says tie_word_embeddings true, but {head} differs from {embedding}. Set "
            f"tie_word_embeddings to false to use {head}, or remove the tensor."
        )
    # Old files store rotary_emb.inv_freq, which config.json determines.
    unknown = sorted(name for name in set(tensors) - known - {head} if not name.endswith(".inv_freq"))
    foreign = [name for name in unknown if name.startswith("model.")]
    if foreign:
        raise WeightsError(
            f"{folder} holds {len(foreign)} tensors that a Qwen2 model of its config.json does not have, such as "
            f"{foreign[0]}; the weights or config.json belong to another model."
        )
    if unknown:
        names = ", ".join(unknown[:5])
        _log.warning("%s: ignored %d tensors that a Qwen2 model does not have: %s", folder, len(unknown), names)


def _same_values(a: np.ndarray, b: np.ndarray, rows: int = 4096) -> bool:
    """Whether two stored tensors are equal; reads `rows` rows at a time."""
    return a.shape == b.shape and all(
        np.array_equal(a[i : i + rows].astype(np.float32), b[i : i + rows].astype(np.float32), equal_nan=True)
        for i in range(0, len(a), rows)
    )


def tensor_name(matrix: str, layer: int) -> str:
    """The name in Hugging Face files of one layer's parameter, as in tensor_name("q", 0)."""
    return _HF_NAMES[f"layers/{matrix}"].template.format(layer)


def _hf_names(path: str, spec: ParamSpec) -> list[str]:
    template = _HF_NAMES[path].template
    return [template.format(i) for i in range(spec.shape[0])] if path.startswith("layers/") else [template]


def _load_param(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    path: str,
    spec: ParamSpec,
    mesh: Any,
    rules: Rules,
    readers: ThreadPoolExecutor,
) -> jax.Array:
    layered = path.startswith("layers/")
    shape, in_axes = spec.shape[1:] if layered else spec.shape, _HF_NAMES[path].in_axes
    names = _hf_names(path, spec)
    for name in names:
        _check_tensor(folder, tensors, name, _hf_shape(shape, in_axes))

    def read_shard(index: tuple[slice, ...] | None) -> np.ndarray:
        """One device's part, in our layout."""
        index = index or (slice(None),) * len(spec.shape)
        sizes = [len(range(size)[axis]) for axis, size in zip(index, spec.shape, strict=True)]
        shard = safetensors.aligned_array(sizes, spec.dtype)
        if layered:
            sources = [_read_slice(tensors[name], index[1:], shape, in_axes) for name in names[index[0]]]
            targets = list(shard)
        else:
            sources = np.array_split(_read_slice(tensors[names[0]], index, shape, in_axes), _READERS)
            targets = np.array_split(shard, _READERS)
        list(readers.map(np.copyto, targets, sources, itertools.repeat("unsafe")))  # reads, transposes and casts
        return shard

    # JAX calls read_shard once for each distinct shard of this process, and only those slices are read from disk.
    if mesh is None:
        return jax.device_put(read_shard(None))
    sharding = named_sharding(mesh, spec.logical_axes, rules, spec.shape)
    return jax.make_array_from_callback(spec.shape, sharding, read_shard)


def _hf_shape(shape: tuple[int, ...], in_axes: int | None) -> tuple[int, ...]:
    """The shape in Hugging Face files of one layer's parameter: [out, in] of a matrix, [out] of a bias."""
    if in_axes is None:
        return shape
    out = (math.prod(shape[in_axes:]),)
    return (*out, math.prod(shape[:in_axes])) if in_axes else out


def _check_tensor(folder: Path, tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> None:
    if name not in tensors:
        raise WeightsError(
            f"{folder}: no safetensors file contains {name}; the download is incomplete, or config.json belongs to "
            f"another model{' (its tie_word_embeddings is not true)' if name == 'lm_head.weight' else ''}."
        )
    if tensors[name].shape != shape:
        raise WeightsError(
            f"{folder}: {name} has shape {tensors[name].shape}, but config.json implies {shape}; one of them belongs "
            "to another model."
        )


def _read_slice(
    tensor: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...], in_axes: int | None
) -> np.ndarray:
    """The slice `index` of one layer's parameter of our `shape`, read from its Hugging Face tensor."""
    if in_axes is None:
        return np.asarray(tensor[index])
    part = tensor[_flat_slice(index[in_axes:], shape[in_axes:])]
    if in_axes:
        part = part[:, _flat_slice(index[:in_axes], shape[:in_axes])].T
    return part.reshape([len(range(size)[axis]) for axis, size in zip(index, shape, strict=True)])


def _flat_slice(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
    """Converts `index`, slices of several of our axes, to one slice of the Hugging Face axis that flattens them.

    The slices after the first must cover their whole axes, because only the first axis is ever sharded.
    """
    # Heads a to b of our [H, h] are the entries a · h to b · h of the stored axis.
    start, stop, _ = index[0].indices(shape[0])
    inner = math.prod(shape[1:])
    return slice(start * inner, stop * inner)


def _to_hf_layout(values: np.ndarray, in_axes: int | None) -> np.ndarray:
    """The inverse of `_read_slice` for the whole of one layer's parameter."""
    if in_axes is None:
        return values
    if not in_axes:
        return values.reshape(-1)
    return values.reshape(math.prod(values.shape[:in_axes]), -1).T


def save_model(
    folder: str | Path,
    params: Params,
    config: Qwen2Config,
    tokenizer_folder: str | Path = "",
    dtype: str = "",
    shard_gigabytes: float = 5.0,
) -> list[str]:
    """Writes a Hugging Face folder: weights, config.json, generation_config.json, tokenizer files and model card.

    Every process must call it, since fetching sharded weights is a collective; only the primary process writes.

    Args:
      folder: created if it does not exist; weights of an earlier export in it are deleted.
      params: the parameters, with stacked layers; LoRA adapters are merged into them.
      config: their shape.
      tokenizer_folder: the folder to copy tokenizer files from; empty: none.
      dtype: of the stored weights; empty: config.param_dtype, so that loading gives the same bits.
      shard_gigabytes: the most a weights file holds, unless a single tensor is larger.

    Returns:
      The names of the files written; an empty list on other processes.
    """
    folder = Path(folder)
    tensors = _lazy_tensors(lora.merge(params, config), config, np.dtype(dtype or config.param_dtype))
    # Each load gathers one tensor from all processes, so all of them load the same tensors in the same order.
    if not collectives.is_primary():
        for tensor in tensors:
            tensor.load()
        return []
    folder.mkdir(parents=True, exist_ok=True)
    # Files of an earlier export with other shards would be read together with the new ones.
    for stale in (*folder.glob("model*.safetensors"), *folder.glob("model.safetensors.index.json")):
        stale.unlink()
    written = safetensors.write_folder(folder, tensors, shard_gigabytes * 1e9)
    for name in tokenizer.FILES if tokenizer_folder else ():
        if (Path(tokenizer_folder) / name).is_file() and Path(tokenizer_folder).resolve() != folder.resolve():
            shutil.copyfile(Path(tokenizer_folder) / name, folder / name)
            written.append(name)
    for name, text in _text_files(config, tokenizer_folder, dtype or config.param_dtype).items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(name)
    return written


def _lazy_tensors(params: Params, config: Qwen2Config, dtype: np.dtype) -> list[LazyTensor]:
    """All tensors of the export, layer by layer, so that a file holds whole layers."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    outer = [path for path in _HF_NAMES if path in flat and not path.startswith("layers/")]
    layered = [path for path in _HF_NAMES if path in flat and path.startswith("layers/")]
    tensors = [_lazy_tensor(flat[path], path, None, dtype) for path in outer]
    return tensors + [_lazy_tensor(flat[path], path, i, dtype) for i in range(config.num_layers) for path in layered]


def _lazy_tensor(values: jax.Array, path: str, layer: int | None, dtype: np.dtype) -> LazyTensor:
    template, in_axes = _HF_NAMES[path]
    shape = values.shape if layer is None else values.shape[1:]

    def load() -> np.ndarray:
        part = gather_to_host(values if layer is None else values[layer])
        return _to_hf_layout(part.astype(dtype), in_axes)

    return LazyTensor(template.format(layer), dtype, _hf_shape(shape, in_axes), load)


def _text_files(config: Qwen2Config, tokenizer_folder: str | Path, dtype: str) -> dict[str, str]:
    end_ids = _end_ids(tokenizer_folder)
    record = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffw_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
        **({"eos_token_id": end_ids["eos_token_id"][0]} if "eos_token_id" in end_ids else {}),
    }
    return {
        "config.json": json.dumps(record, indent=2) + "\n",
        "generation_config.json": json.dumps({"do_sample": False, **end_ids}, indent=2) + "\n",
        "README.md": _model_card(config, dtype),
    }


def _end_ids(folder: str | Path) -> dict[str, Any]:
    """eos_token_id, with the one that answers end on first, and pad_token_id; empty without a tokenizer."""
    if not folder:
        return {}
    loaded = tokenizer.load(folder)
    first = tokenizer.end_id(loaded, folder)  # config.json takes only this one
    others = [stop_id for stop_id in tokenizer.stop_ids(loaded, folder) if stop_id != first]
    return {"eos_token_id": [first, *others], "pad_token_id": tokenizer.pad_id(loaded)}


def _model_card(config: Qwen2Config, dtype: str) -> str:
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [text-to-sql, qwen2, sqlr1_jax]
---
# A text-to-SQL model trained with sqlr1_jax

A Qwen2 model with {config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} query heads and
{config.num_kv_heads} key-value heads; its weights are {dtype}. It answers a question about an SQLite database with
reasoning and SQL, as SQL-R1 does (arXiv 2504.08600).

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

Prompts use the tokenizer's chat template; `python -m sqlr1_jax.ask --model=<this folder> --database=<file>` formats
them as in training. Run the SQL of an answer on a read-only connection.
"""
