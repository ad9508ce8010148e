"""Qwen2.5 as functions over one abstract parameter tree.

Shapes are in names: B rows, T query time, S key time, D model, H query heads, K key-value heads, g query heads a
key-value head, h head size, F feed-forward, V vocabulary, L layers, P prompts, G samples per prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sqlr1_jax.distributed.sharding import SAMPLE_RULES, TRAIN_RULES, Rules, constrain
from sqlr1_jax.model import attention, ops
from sqlr1_jax.model import kv_cache as caches
from sqlr1_jax.model.attention import Mask
from sqlr1_jax.model.kv_cache import KVCache
from sqlr1_jax.model.norm import rms_norm
from sqlr1_jax.model.ops import Transposed
from sqlr1_jax.model.quantize import CONTRACTING_AXES

Params = dict[str, Any]
Layers = Params | tuple[Params, ...]  # stacked, or one by one: `apart`
MATMUL_PARAMS = frozenset((*CONTRACTING_AXES, "embed", "unembed"))  # parameters that take part in products, in `dtype`
LAYER_INPUT = "layer_input"  # its name under rematerialization
MASKED_LOGIT = -1e30  # of ids past the tokenizer's; finite, so that 0 · log 0 never arises


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """The shape of a model, and how it is computed with; hashable, so a static argument of jax.jit."""

    vocab_size: int  # rows of the embedding, padded past the tokenizer's
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffw_size: int
    tied: bool
    num_tokens: int = 0  # the tokenizer's ids; those past them are never predicted; 0: all
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    max_positions: int = 32768  # what the model was trained for; written into an export
    param_dtype: str = "float32"
    dtype: str = "float32"
    activation_dtype: str = "float32"  # precision of what stands between matrix products, where it is above dtype's
    remat: str = "none"  # or full: keep each layer's input alone; offload: in the host's memory
    attention: str = "auto"  # the backend: attention.choose_backend
    query_chunk: int = 0  # queries at a time in XLA's attention; 0: all
    ffw_chunks: int = 1  # time chunks of the feed-forward
    logits_chunk: int = 1024  # places at a time whose logits exist; 0: all at once, and kept for the backward pass
    embed_init: float = 0.02  # standard deviation of random embeddings
    init: str = "normal"  # or lookup: random weights with heads that look names up (random_weights.py)
    unroll: int = 1  # layers in one turn of the scan

    @property
    def matmul_output_dtype(self) -> jnp.dtype:
        """Of the residual stream, of gates and of heads until they are turned: what matrix products make.

        Products take `dtype`. Made in bfloat16 too, these are what most parts sampler and trainer.
        """
        return jnp.promote_types(self.dtype, self.activation_dtype)


def _preset(layers: int, hidden: int, heads: int, kv_heads: int, ffw: int, vocab: int, tied: bool) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=hidden // heads,
        ffw_size=ffw,
        tied=tied,
    )


# Shapes of Qwen2.5-Coder's config.json files; tiny's vocabulary is its tokenizer's.
PRESETS: dict[str, Qwen2Config] = {
    "tiny": dataclasses.replace(
        _preset(3, 128, 4, 2, 384, 2048, True),
        embed_init=0.1,
        init="induction_heads",
        logits_chunk=0,
    ),
    "0.5b": _preset(24, 896, 14, 2, 4864, 151936, True),
    "1.5b": _preset(28, 1536, 12, 2, 8960, 151936, True),
    "3b": _preset(36, 2048, 16, 2, 11008, 151936, True),
    "7b": _preset(28, 3584, 28, 4, 18944, 152064, False),
    "14b": _preset(48, 5120, 40, 8, 13824, 152064, False),
    "32b": _preset(64, 5120, 40, 8, 27648, 152064, False),
}


class ParamSpec(NamedTuple):
    """What a parameter is before it has values."""

    shape: tuple[int, ...]
    dtype: str
    logical_axes: tuple[str | None, ...]
    init: str  # normal (0.02), residual (0.02 / √(2 L)), embedding (cfg.embed_init), ones, zeros


def is_spec(leaf: Any) -> bool:
    """For jax.tree.map over `abstract`'s tree, whose leaves are tuples."""
    return isinstance(leaf, ParamSpec)


def abstract_params(cfg: Qwen2Config) -> Params:
    """The tree of ParamSpec from which initialization, shardings, names and planning derive."""
    L, D, H, K, h, F = cfg.num_layers, cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_size, cfg.ffw_size

    def layered(shape: tuple[int, ...], axes: tuple[str | None, ...], init: str) -> ParamSpec:
        return ParamSpec((L, *shape), cfg.param_dtype, ("layers", *axes), init)

    layers = {
        "attention_norm": layered((D,), (None,), "ones"),
        "q": layered((D, H, h), ("embed", "heads", None), "normal"),
        "k": layered((D, K, h), ("embed", "kv_heads", None), "normal"),
        "v": layered((D, K, h), ("embed", "kv_heads", None), "normal"),
        "q_bias": layered((H, h), ("heads", None), "zeros"),
        "k_bias": layered((K, h), ("kv_heads", None), "zeros"),
        "v_bias": layered((K, h), ("kv_heads", None), "zeros"),
        "o": layered((H, h, D), ("heads", None, "embed"), "residual"),
        "ffw_norm": layered((D,), (None,), "ones"),
        "gate": layered((D, F), ("embed", "ffw"), "normal"),
        "up": layered((D, F), ("embed", "ffw"), "normal"),
        "down": layered((F, D), ("ffw", "embed"), "residual"),
    }
    tree: Params = {
        "embed": ParamSpec((cfg.vocab_size, D), cfg.param_dtype, ("vocab", "embed"), "embedding"),
        "layers": layers,
        "final_norm": ParamSpec((D,), cfg.param_dtype, (None,), "ones"),
    }
    if not cfg.tied:
        tree["unembed"] = ParamSpec((D, cfg.vocab_size), cfg.param_dtype, ("embed", "vocab"), "normal")
    return tree


def count_params(cfg: Qwen2Config) -> int:
    """Parameters of the whole model, tied embeddings once."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(abstract_params(cfg), is_leaf=is_spec))


def forward(
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    mask: Mask | None,
    cfg: Qwen2Config,
    cache: KVCache | None = None,
    slot_B: jax.Array | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """The model up to its final norm: hidden [B, T, D] in cfg.dtype, and the cache.

    Without a cache: rows, as trained on. With a mask and a cache: prefill: the rows' keys and values become prefixes of
    the cache, in the slots that `slot_B` names (None: row i in slot i). With a cache alone: one decode step, in which
    rows are prompts and time is their samples.
    """
    rules = TRAIN_RULES if cache is None else SAMPLE_RULES
    # First to dtype, as the sampler's copy of the table is.
    embed = params["embed"]
    table_VD = embed.values if isinstance(embed, Transposed) else embed
    x_BTD = jnp.take(table_VD, tokens_BT, axis=0).astype(cfg.dtype).astype(cfg.matmul_output_dtype)
    x_BTD = constrain(x_BTD, ("rows", "time", None), rules)
    rope = _rope_table(positions_BT, cfg)
    if cache is not None and mask is None:
        x_BTD, cache = _decode_layers(params["layers"], x_BTD, rope, cache, cfg)
    else:
        assert mask is not None
        x_BTD, kept = _row_layers(params["layers"], x_BTD, rope, mask, cfg, rules, cache is not None)
        if cache is not None:
            slot_B = jnp.arange(tokens_BT.shape[0]) if slot_B is None else slot_B
            cache = caches.insert(cache, kept, (mask.prefix_BT > 0).sum(1, dtype=jnp.int32), slot_B)
    return _norm(x_BTD, params["final_norm"], cfg), cache


def unstack_layers(params: Params, cfg: Qwen2Config) -> Params:
    """The same weights, their layers one by one and their matrices turned (matmul.Turned), the unembedding among them.

    For sampling on CPU with all layers unrolled: XLA there copies out of a stack what a turn of the loop takes, which
    costs a decode step half of its time.
    """
    several = [jax.tree.map(lambda x: x[i], params["layers"]) for i in range(cfg.num_layers)]  # noqa: B023
    made = tuple({name: ops.transpose_weight(name, w) for name, w in layer.items()} for layer in several)
    return {**params, "layers": made, _unembedding_name(cfg): Transposed(unembedding(params, cfg).T)}


def _row_layers(
    layers: Layers, x_BTD: jax.Array, rope: Rope, mask: Mask, cfg: Qwen2Config, rules: Rules, keep: bool
) -> tuple[jax.Array, Any]:
    """Hidden states [B, T, D] and, to `keep`, each layer's keys and values [L, B, T, K, h]."""

    def layer(x_BTD: jax.Array, w: Params) -> tuple[jax.Array, Any]:
        x_BTD = checkpoint_name(x_BTD, LAYER_INPUT)
        q_BTHh, k_BTKh, v_BTKh = _project(x_BTD, w, rope, cfg)
        o_BTHh = attention.attend(q_BTHh, k_BTKh, v_BTKh, mask, cfg.query_chunk, cfg.attention)
        x_BTD = _after_attention(x_BTD, o_BTHh, w, cfg, rules)
        return x_BTD, (k_BTKh, v_BTKh) if keep else (None, None)

    if cfg.remat != "none":
        layer = jax.checkpoint(layer, prevent_cse=False, policy=_kept_by(cfg.remat))
    if isinstance(layers, tuple):
        kept = []
        for w in layers:
            x_BTD, of_layer = layer(x_BTD, w)
            kept.append(of_layer)
        return x_BTD, jax.tree.map(lambda *parts: jnp.stack(parts), *kept)
    return jax.lax.scan(layer, x_BTD, layers, unroll=min(cfg.unroll, cfg.num_layers))


def _kept_by(remat: str) -> Callable[..., Any] | None:
    """What the backward pass finds of a layer: its input, on the device or, asynchronously copied, on the host."""
    if remat == "full":
        return None
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    )


def _decode_layers(
    layers: Layers, x_PGD: jax.Array, rope: Rope, cache: KVCache, cfg: Qwen2Config
) -> tuple[jax.Array, KVCache]:
    stacks, depth = _stacks(cfg)

    def turn(carry: tuple[jax.Array, KVCache], inputs: tuple[jax.Array, Any]) -> tuple[tuple[jax.Array, KVCache], None]:
        (x_PGD, cache), (entry, several) = carry, inputs
        for stack in range(stacks):
            w = _layer(several, stack)
            q_PGHh, k_PGKh, v_PGKh = _project(x_PGD, w, rope, cfg)
            cache = caches.write(cache, stack, entry, k_PGKh, v_PGKh)
            o_PGHh = attention.attend_cached(q_PGHh, cache, stack, entry)
            x_PGD = _after_attention(x_PGD, o_PGHh, w, cfg, SAMPLE_RULES)
        return (x_PGD, cache), None

    if depth == 1:  # a loop of one turn would copy the cache into itself and out again
        (x_PGD, cache), _ = turn((x_PGD, cache), (jnp.int32(0), layers))
    else:
        by_turn = jax.tree.map(lambda leaf: leaf.reshape(depth, stacks, *leaf.shape[1:]), layers)
        (x_PGD, cache), _ = jax.lax.scan(turn, (x_PGD, cache), (jnp.arange(depth, dtype=jnp.int32), by_turn))
    return x_PGD, cache.replace(step=cache.step + 1)  # type: ignore[attr-defined]


def _layer(several: Layers, place: int) -> Params:
    return several[place] if isinstance(several, tuple) else jax.tree.map(lambda leaf: leaf[place], several)


def _stacks(cfg: Qwen2Config) -> tuple[int, int]:
    """Stacks of the cache and layers in each: a turn of the loop over layers takes one of every stack."""
    stacks = min(cfg.unroll, cfg.num_layers)
    return (1, cfg.num_layers) if cfg.num_layers % stacks else (stacks, cfg.num_layers // stacks)


def _project(x_BTD: jax.Array, w: Params, rope: Rope, cfg: Qwen2Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_BTD = _norm(x_BTD, w["attention_norm"], cfg)
    made = ops.matmuls(x_BTD, [w[name] for name in "qkv"], cfg.matmul_output_dtype)
    q_BTHh, k_BTKh, v_BTKh = (_heads(y_BTN, w[f"{name}_bias"]) for name, y_BTN in zip("qkv", made, strict=True))
    q_BTHh, k_BTKh = _rotate(q_BTHh, rope), _rotate(k_BTKh, rope)
    return q_BTHh.astype(cfg.dtype), k_BTKh.astype(cfg.dtype), v_BTKh.astype(cfg.dtype)


def _heads(y_BTN: jax.Array, bias_Nh: jax.Array) -> jax.Array:
    return y_BTN.reshape(*y_BTN.shape[:2], *bias_Nh.shape) + bias_Nh[None, None].astype(y_BTN.dtype)


def _after_attention(x_BTD: jax.Array, o_BTHh: jax.Array, w: Params, cfg: Qwen2Config, rules: Rules) -> jax.Array:
    B, T, _ = x_BTD.shape
    x_BTD = x_BTD + ops.matmul(o_BTHh.reshape(B, T, -1), w["o"], cfg.matmul_output_dtype)
    x_BTD = constrain(x_BTD, ("rows", "time", None), rules)
    x_BTD = x_BTD + _feed_forward(_norm(x_BTD, w["ffw_norm"], cfg), w, cfg)
    return constrain(x_BTD, ("rows", "time", None), rules)


def _feed_forward(x_BTD: jax.Array, w: Params, cfg: Qwen2Config) -> jax.Array:
    def swiglu(x_BTD: jax.Array) -> jax.Array:
        return ops.swiglu(x_BTD, w["gate"], w["up"], w["down"], cfg.matmul_output_dtype)

    B, T, D = x_BTD.shape
    if cfg.ffw_chunks == 1 or T % cfg.ffw_chunks:
        return swiglu(x_BTD)
    x_NBTD = x_BTD.reshape(B, cfg.ffw_chunks, T // cfg.ffw_chunks, D).swapaxes(0, 1)
    return jax.lax.map(jax.checkpoint(swiglu), x_NBTD).swapaxes(0, 1).reshape(B, T, D)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _norm(x_BTD: jax.Array, scale_D: jax.Array, cfg: Qwen2Config) -> jax.Array:
    return rms_norm(x_BTD, scale_D, cfg.norm_eps, cfg.dtype)


class Rope(NamedTuple):
    """Cosines and sines of each place's angles [B, T, 1, h/2]."""

    cos: jax.Array
    sin: jax.Array


def _rope_table(positions_BT: jax.Array, cfg: Qwen2Config) -> Rope:
    half = cfg.head_size // 2
    frequency_h = cfg.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_h[None, None, None]
    return Rope(jnp.cos(angle_BT1h), jnp.sin(angle_BT1h))


def _rotate(x_BTNh: jax.Array, rope: Rope) -> jax.Array:
    """Rotates the pairs (i, i + h/2), as Hugging Face stores Qwen2."""
    first, second = jnp.split(_wide(x_BTNh), 2, axis=-1)
    turned = [first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BTNh.dtype)


def unembedding(params: Params, cfg: Qwen2Config) -> jax.Array:
    """[V, D] or its transpose's own leaf, as [D, V]."""
    return params["embed"].T if cfg.tied else params["unembed"]


def _unembedding_name(cfg: Qwen2Config) -> str:
    return "embed" if cfg.tied else "unembed"


def unembed(params: Params, hidden: jax.Array, cfg: Qwen2Config) -> jax.Array:
    """Logits […, V] in at least float32; ids that the tokenizer lacks get MASKED_LOGIT."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    table = params[_unembedding_name(cfg)]
    if isinstance(table, Transposed):
        return mask_logits(ops.matmul(hidden, table, wide), cfg)
    table_DV = unembedding(params, cfg).astype(hidden.dtype)
    logits = jnp.einsum("...d,dv->...v", hidden, table_DV, preferred_element_type=wide)
    return mask_logits(logits, cfg)


def mask_logits(logits: jax.Array, cfg: Qwen2Config) -> jax.Array:
    """MASKED_LOGIT in place of the logits of ids past the tokenizer's."""
    if not cfg.num_tokens or cfg.num_tokens >= cfg.vocab_size:
        return logits
    known = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) < cfg.num_tokens
    return jnp.where(known, logits, MASKED_LOGIT)


def init_cache(cfg: Qwen2Config, prompts: int, samples: int, prefix: int, steps: int, dtype: str = "") -> KVCache:
    """An empty cache for `samples` of each of `prompts`, prefixes of up to `prefix` tokens and `steps` steps."""
    return caches.zeros(cache_shapes(cfg, prompts, samples, prefix, steps, dtype))


def cache_shapes(cfg: Qwen2Config, prompts: int, samples: int, prefix: int, steps: int, dtype: str = "") -> KVCache:
    """The same, shapes alone."""
    kind = jnp.dtype(dtype or cfg.dtype)
    heads = cfg.num_kv_heads, cfg.head_size
    return caches.shapes(_stacks(cfg), prompts, samples, prefix, steps, heads, kind)
