"""Weights from Hugging Face folders and repositories, and back, bit for bit.

Reading goes straight into the target sharding: each device's part is sliced out of the memory-mapped files. Writing
goes tensor by tensor. Hugging Face keeps a matrix as [out, in] for each layer; ours are [layers, in, out], heads apart.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np

from sqlr1_jax.distributed import collectives
from sqlr1_jax.distributed.sharding import TRAIN_RULES, Rules, named_sharding
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.io import read_json
from sqlr1_jax.model import safetensors, tokenizer
from sqlr1_jax.model.qwen2 import Params, ParamSpec, Qwen2Config, abstract_params, is_spec
from sqlr1_jax.model.safetensors import Tensor, WeightsError

_log = logging.getLogger(__name__)


class _Name(NamedTuple):
    """Where a parameter lives in a Hugging Face file."""

    template: str  # with {} for the layer
    inputs: int | None  # how many of our axes (after the layers') are summed over; None: stored in our own shape


_LAYER = "model.layers.{}."
_NAMES: dict[str, _Name] = {
    "embed": _Name("model.embed_tokens.weight", None),
    "final_norm": _Name("model.norm.weight", None),
    "unembed": _Name("lm_head.weight", 1),
    "layers/attention_norm": _Name(_LAYER + "input_layernorm.weight", None),
    "layers/q": _Name(_LAYER + "self_attn.q_proj.weight", 1),
    "layers/k": _Name(_LAYER + "self_attn.k_proj.weight", 1),
    "layers/v": _Name(_LAYER + "self_attn.v_proj.weight", 1),
    "layers/q_bias": _Name(_LAYER + "self_attn.q_proj.bias", 0),
    "layers/k_bias": _Name(_LAYER + "self_attn.k_proj.bias", 0),
    "layers/v_bias": _Name(_LAYER + "self_attn.v_proj.bias", 0),
    "layers/o": _Name(_LAYER + "self_attn.o_proj.weight", 2),
    "layers/ffw_norm": _Name(_LAYER + "post_attention_layernorm.weight", None),
    "layers/gate": _Name(_LAYER + "mlp.gate_proj.weight", 1),
    "layers/up": _Name(_LAYER + "mlp.up_proj.weight", 1),
    "layers/down": _Name(_LAYER + "mlp.down_proj.weight", 1),
}


def resolve_folder(source: str | Path) -> Path:
    """The folder of a model: `source` itself, or the Hub repository of that id, downloaded (or found in the cache)."""
    folder = Path(source)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ConfigError(f"config.model.path={source} is a folder without a config.json; name the model's own folder.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except Exception as error:
        raise ConfigError(
            f"config.model.path={source} is neither a folder here nor a repository that can be fetched from the "
            f"Hugging Face Hub ({type(error).__name__}: {str(error).splitlines()[0]}). Check the name, or download the "
            "model and name its folder."
        ) from error


def config_from_folder(folder: str | Path) -> Qwen2Config:
    """The shape that config.json names; ids past the folder's tokenizer are masked.

    Raises ConfigError for what is no plain Qwen2, JsonError for a file that is broken.
    """
    path = Path(folder) / "config.json"
    record = read_json(path)
    _refuse_unknown(path, record)
    heads = record["num_attention_heads"]
    rope = record.get("rope_parameters") or {}
    vocab_size, tokens = record["vocab_size"], tokenizer.count_tokens(folder)
    if tokens > vocab_size:
        raise ConfigError(f"{path}: vocab_size {vocab_size} is less than the {tokens} ids of the tokenizer beside it.")
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=record["hidden_size"],
        num_layers=record["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=record.get("num_key_value_heads", heads),
        head_size=record.get("head_dim") or record["hidden_size"] // heads,
        ffw_size=record["intermediate_size"],
        tied=record.get("tie_word_embeddings", False),
        num_tokens=tokens,
        rope_theta=float(rope.get("rope_theta") or record.get("rope_theta", 10000.0)),
        norm_eps=record.get("rms_norm_eps", 1e-6),
        max_positions=record.get("max_position_embeddings", 32768),
    )


def _refuse_unknown(path: Path, record: Mapping[str, Any]) -> None:
    rope = record.get("rope_parameters") or record.get("rope_scaling") or {}
    unknown = {
        "model_type": record.get("model_type") != "qwen2",
        "hidden_act": record.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(record.get("use_sliding_window")),
        "quantization_config": bool(record.get("quantization_config")),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for key, found in unknown.items():
        if found:
            raise ConfigError(
                f"{path}: {key} is {record.get(key)!r}, which this stack does not compute. It takes plain Qwen2 models "
                "(Qwen2, Qwen2.5, Qwen2.5-Coder) without sliding windows, scaled positions or quantization."
            )


def load_params(
    source: str | Path, config: Qwen2Config, mesh: jax.sharding.Mesh | None = None, rules: Rules = TRAIN_RULES
) -> Params:
    """Parameters in config.param_dtype, each device reading its own part; without a mesh, all on the first device.

    Raises WeightsError naming the file and the tensor where one is missing or has another shape.
    """
    folder = resolve_folder(source)
    tensors = _open(folder)
    specs = flax.traverse_util.flatten_dict(abstract_params(config), sep="/", is_leaf=lambda _, leaf: is_spec(leaf))
    loaded = {path: _load_one(folder, tensors, path, spec, mesh, rules) for path, spec in specs.items()}
    known = {name for path, spec in specs.items() for name in _tensor_names(path, spec)}
    ignored = sorted(set(tensors) - known - {"lm_head.weight"})
    if ignored:
        names = ", ".join(ignored[:5])
        _log.warning("%s: %d tensors are not Qwen2's and were left out: %s", folder, len(ignored), names)
    return flax.traverse_util.unflatten_dict(loaded, sep="/")


def _open(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        what = f"lacks {', '.join(missing[:3])} of its index" if missing else "has no *.safetensors file"
        raise WeightsError(f"{folder} {what}; download the model again, in safetensors form.")
    return {name: tensor for file in files for name, tensor in safetensors.open_file(file).items()}


def _tensor_names(path: str, spec: ParamSpec) -> list[str]:
    template = _NAMES[path].template
    return [template.format(i) for i in range(spec.shape[0])] if path.startswith("layers/") else [template]


def _load_one(
    folder: Path, tensors: Mapping[str, np.ndarray], path: str, spec: ParamSpec, mesh: Any, rules: Rules
) -> jax.Array:
    layered = path.startswith("layers/")
    shape = spec.shape[1:] if layered else spec.shape
    names = _tensor_names(path, spec)
    for name in names:
        _check(folder, tensors, name, _stored_shape(shape, _NAMES[path].inputs))

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        """What one device holds, in our order of axes."""
        index = index or (slice(None),) * len(spec.shape)
        if not layered:
            return _read(tensors[names[0]], index, shape, _NAMES[path].inputs).astype(spec.dtype)
        inner = [_read(tensors[name], index[1:], shape, _NAMES[path].inputs) for name in names[index[0]]]
        return np.stack(inner).astype(spec.dtype)

    if mesh is None:
        return jax.device_put(part(None))
    return jax.make_array_from_callback(spec.shape, named_sharding(mesh, spec.logical_axes, rules, spec.shape), part)


def _stored_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    """As Hugging Face keeps one layer's tensor of our `shape`: [out, in], or [out] where nothing is summed over."""
    if inputs is None:
        return shape
    out = (math.prod(shape[inputs:]),)
    return (*out, math.prod(shape[:inputs])) if inputs else out


def _check(folder: Path, tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> None:
    if name not in tensors:
        raise WeightsError(
            f"{folder}: no file holds {name}; the download is incomplete, or config.json is another model's."
        )
    if tensors[name].shape != shape:
        raise WeightsError(f"{folder}: {name} is {tensors[name].shape}, but config.json makes it {shape}.")


def _read(tensor: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...], inputs: int | None) -> np.ndarray:
    """The part `index` of one layer's tensor, in our own order of axes."""
    if inputs is None:
        return np.asarray(tensor[index])
    part = tensor[_flat(index[inputs:], shape[inputs:])]
    if inputs:
        part = part[:, _flat(index[:inputs], shape[:inputs])].T
    return part.reshape([len(range(size)[one]) for one, size in zip(index, shape, strict=True)])


def _flat(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
    """Of several axes stored as one; only the first of them is ever split over devices."""
    start, stop, _ = index[0].indices(shape[0])
    inner = math.prod(shape[1:])
    return slice(start * inner, stop * inner)


def _stored(values: np.ndarray, inputs: int | None) -> np.ndarray:
    """The inverse of `_read` on a whole layer's tensor."""
    if inputs is None:
        return values
    if not inputs:
        return values.reshape(-1)
    return values.reshape(math.prod(values.shape[:inputs]), -1).T


def save_model(
    folder: str | Path,
    params: Params,
    config: Qwen2Config,
    tokenizer_folder: str | Path = "",
    dtype: str = "",
    shard_gigabytes: float = 5.0,
    card: str = "",
) -> list[str]:
    """Writes a Hugging Face folder: weights, config.json, generation_config.json, the tokenizer's files, a model card.

    `dtype` empty keeps the parameters' own, so that loading gives the same bits. On several hosts all take part and the
    first one writes. Gives the names of the files written.
    """
    folder = Path(folder)
    tensors = _tensors(params, config, np.dtype(dtype or config.param_dtype))
    if not collectives.is_primary():
        for tensor in tensors:
            tensor.make()
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("model*.safetensors"), *folder.glob("model.safetensors.index.json")):
        stale.unlink()
    written = safetensors.write_folder(folder, tensors, shard_gigabytes * 1e9)
    for name in tokenizer.FILES if tokenizer_folder else ():
        if (Path(tokenizer_folder) / name).is_file() and Path(tokenizer_folder).resolve() != folder.resolve():
            shutil.copyfile(Path(tokenizer_folder) / name, folder / name)
            written.append(name)
    for name, text in _texts(config, tokenizer_folder, dtype or config.param_dtype, card).items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(name)
    return written


def _tensors(params: Params, config: Qwen2Config, dtype: np.dtype) -> list[Tensor]:
    """In the order of the layers, so that a shard holds whole layers next to each other."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    outer = [path for path in _NAMES if path in flat and not path.startswith("layers/")]
    inner = [path for path in _NAMES if path in flat and path.startswith("layers/")]
    tensors = [_tensor(flat[path], path, None, dtype) for path in outer]
    return tensors + [_tensor(flat[path], path, layer, dtype) for layer in range(config.num_layers) for path in inner]


def _tensor(values: jax.Array, path: str, layer: int | None, dtype: np.dtype) -> Tensor:
    name = _NAMES[path]
    shape = values.shape if layer is None else values.shape[1:]

    def make() -> np.ndarray:
        return _stored(_fetch(values if layer is None else values[layer]).astype(dtype), name.inputs)

    return Tensor(name.template.format(layer), dtype, _stored_shape(shape, name.inputs), make)


def _fetch(values: jax.Array) -> np.ndarray:
    if values.is_fully_addressable:
        return np.asarray(values)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values, tiled=True))


def _texts(config: Qwen2Config, tokenizer_folder: str | Path, dtype: str, card: str) -> dict[str, str]:
    ends = _ends(tokenizer_folder)
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
        **({"eos_token_id": ends["eos_token_id"][0]} if "eos_token_id" in ends else {}),
    }
    return {
        "config.json": json.dumps(record, indent=2) + "\n",
        "generation_config.json": json.dumps({"do_sample": False, **ends}, indent=2) + "\n",
        "README.md": card or _card(config, dtype),
    }


def _ends(folder: str | Path) -> dict[str, Any]:
    """eos_token_id, the tokenizer's own end first, and pad_token_id; empty without a tokenizer."""
    if not folder:
        return {}
    loaded = tokenizer.load(folder)
    stops = tokenizer.stop_ids(loaded, folder)
    first = loaded.eos_token_id if loaded.eos_token_id is not None else stops[0]
    others = [stop for stop in stops if stop != first]
    return {"eos_token_id": [first, *others], "pad_token_id": tokenizer.pad_id(loaded)}


def _card(config: Qwen2Config, dtype: str) -> str:
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [text-to-sql, qwen2, sqlr1_jax]
---
# A text-to-SQL model trained with sqlr1_jax

Qwen2 form: {config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} heads ({config.num_kv_heads} for keys
and values), {dtype}. It answers a question about an SQLite database with reasoning and SQL, as SQL-R1 does
(arXiv 2504.08600).

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

Prompts go through the tokenizer's chat template; `python -m sqlr1_jax.ask --model=<this folder> --database=<file>`
writes them as they were in training. Run the SQL it answers with on a read-only connection.
"""
