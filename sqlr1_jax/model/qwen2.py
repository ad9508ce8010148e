"""Qwen2.5 as functions over one abstract parameter tree.

Shapes are in names: B rows, T query time, S key time, D model, H query heads, K key-value heads, g query heads per
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
from sqlr1_jax.model import attention, lora, ops
from sqlr1_jax.model import kv_cache as caches
from sqlr1_jax.model.attention import Mask
from sqlr1_jax.model.kv_cache import KVCache, SharedPrefix
from sqlr1_jax.model.ops import Transposed
from sqlr1_jax.model.quantize import CONTRACTING_AXES

Params = dict[str, Any]
# Parameters of the layers in one of two forms. Stacked: one dict whose leaves are [L, …], for jax.lax.scan. Unstacked:
# one dict per layer, made by `unstack_layers` for decoding on XLA:CPU, which copies each layer's slice out of a stack.
Layers = Params | tuple[Params, ...]
MATMUL_PARAMS = frozenset((*CONTRACTING_AXES, "embed", "unembed"))  # inputs of matmuls, which take them in `dtype`
LAYER_INPUT = "layer_input"  # the checkpoint_name of each layer's input
MASKED_LOGIT = -1e30  # of ids that the tokenizer lacks; finite, so that 0 · log 0 never arises


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """The shape of a model and how it is computed; hashable, so it can be a static argument of jax.jit."""

    vocab_size: int  # rows of the embedding, padded beyond the tokenizer's ids
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffw_size: int
    tied: bool  # the unembedding is the transposed embedding
    num_tokens: int = 0  # the tokenizer's ids; ids beyond them are never predicted; 0: all are predicted
    holes: tuple[tuple[int, int], ...] = ()  # ranges [start, end) of ids below num_tokens that no token has
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    max_positions: int = 32768  # the context length of pretraining, in tokens; written into an export
    param_dtype: str = "float32"
    dtype: str = "float32"  # of matmul inputs
    activation_dtype: str = "float32"  # of values between matmuls; used only if wider than dtype
    remat: str = "none"  # none; full: save only each layer's input; offload: save it in host memory
    attention: str = "auto"  # the backend; see attention.choose_backend
    query_chunk: int = 0  # queries per block of XLA's attention; 0: all at once
    ffw_chunks: int = 1  # chunks along time of the feed-forward
    logits_chunk: int = 1024  # tokens whose logits exist at a time; 0: all at once, and saved for the backward pass
    embed_init: float = 0.02  # standard deviation of random embeddings
    init: str = "normal"  # or induction_heads: random weights with induction heads added (init.py)
    unroll: int = 1  # layers per iteration of the scan over layers
    lora_rank: int = 0  # rank of the adapters that train in place of the weights (lora.py); 0: none
    lora_alpha: float = 1.0  # an adapter's product is multiplied by lora_alpha / lora_rank
    lora_matrices: tuple[str, ...] = lora.MATRICES  # the layers' matrices that have an adapter

    @property
    def matmul_output_dtype(self) -> jnp.dtype:
        """Dtype of the values between matmuls: residual stream, gates, heads before RoPE.

        Matmuls take their inputs in `dtype`. Rounding these outputs to bfloat16 as well is the largest cause of the
        difference between the sampler's and the trainer's log-probabilities.
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


# Shapes from the config.json files of Qwen2.5-Coder; the vocabulary of `tiny` is that of its own tokenizer.
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
    """A parameter without values: shape, dtype, logical axes and how to initialize it."""

    shape: tuple[int, ...]
    dtype: str
    logical_axes: tuple[str | None, ...]  # names in the sharding rules; None: never split
    # normal (0.02), residual (0.02 / √(2 L)), embedding (config.embed_init), lora (uniform), ones, zeros
    init: str


def is_spec(leaf: Any) -> bool:
    """Whether `leaf` is a ParamSpec; jax.tree.map needs it as `is_leaf`, since a ParamSpec is a tuple."""
    return isinstance(leaf, ParamSpec)


def abstract_params(config: Qwen2Config) -> Params:
    """The tree of ParamSpec that initialization, shardings, Hugging Face names and planning derive from."""
    L, D, H, K = config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads
    h, F, V = config.head_size, config.ffw_size, config.vocab_size

    # No sharding rule names the axis "layers": each device holds its part of every layer.
    def layered(shape: tuple[int, ...], axes: tuple[str | None, ...], init: str) -> ParamSpec:
        return ParamSpec((L, *shape), config.param_dtype, ("layers", *axes), init)

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
        "embed": ParamSpec((V, D), config.param_dtype, ("vocab", "embed"), "embedding"),
        "layers": layers,
        "final_norm": ParamSpec((D,), config.param_dtype, (None,), "ones"),
    }
    if not config.tied:
        tree["unembed"] = ParamSpec((D, V), config.param_dtype, ("embed", "vocab"), "normal")
    if config.lora_rank:
        tree[lora.KEY] = lora.abstract_adapters(layers, config)
    return tree


def without_adapters(config: Qwen2Config) -> Qwen2Config:
    """The same model without LoRA: its tree is the frozen part of `config`'s."""
    return dataclasses.replace(config, lora_rank=0)


def count_params(config: Qwen2Config) -> int:
    """The number of parameters; tied embeddings count once."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(abstract_params(config), is_leaf=is_spec))


def forward(
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    mask: Mask | None,
    config: Qwen2Config,
    cache: KVCache | None = None,
    slot_B: jax.Array | None = None,
    prefix: SharedPrefix | None = None,
    sample_N: jax.Array | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """Runs the model from tokens to its final norm, in one of three modes.

        mask   cache   mode
        yes    no      training rows
        yes    yes     prefill: the rows' keys and values become prefixes in the cache
        no     yes     one decode step: [B, T] is [P, G], prompts and their samples, or [1, N] with `sample_N`

    Args:
      params: the parameters; `params["layers"]` is stacked or unstacked (`Layers`).
      tokens_BT: token ids.
      positions_BT: RoPE positions.
      mask: which keys each query attends to; None for a decode step.
      config: the model's shape.
      cache: the KV cache, or None.
      slot_B: for prefill, the cache slot of each row; None: row i goes to slot i.
      sample_N: for a decode step, the samples p · G + g that it decodes; numbers from P · G on are padding. None: all.
      prefix: for prefill, what all rows continue; positions count its tokens, and `tokens_BT` starts after them.

    Returns:
      Hidden states [B, T, D] in config.dtype, and the updated cache or None.
    """
    rules = TRAIN_RULES if cache is None else SAMPLE_RULES
    x_BTD = _embed_tokens(params, tokens_BT, config, rules)
    rope = _rope_table(positions_BT, config)
    if cache is not None and mask is None:
        x_BTD, cache = _decode_layers(params["layers"], x_BTD, rope, cache, config, sample_N)
    else:
        assert mask is not None
        layers = lora.adapted_layers(params, config) if cache is None else prefill_layers(params)
        x_BTD, kv_LBTKh = _forward_layers(layers, x_BTD, rope, mask, config, rules, cache is not None, prefix)
        if cache is not None:
            slot_B = jnp.arange(tokens_BT.shape[0]) if slot_B is None else slot_B
            cache = caches.insert(cache, kv_LBTKh, (mask.prefix_BT > 0).sum(1, dtype=jnp.int32), slot_B, prefix)
    return _norm(x_BTD, params["final_norm"], config), cache


def shared_prefix(params: Params, tokens_S: jax.Array, length: jax.Array, config: Qwen2Config) -> SharedPrefix:
    """Keys and values of a text that several prompts begin with: `length` tokens, then padding."""
    tokens_1S, positions_1S = tokens_S[None], jnp.arange(tokens_S.size, dtype=jnp.int32)[None]
    x_1SD = _embed_tokens(params, tokens_1S, config, SAMPLE_RULES)
    mask = attention.causal_mask(tokens_1S, length[None])
    rope = _rope_table(positions_1S, config)
    _, (k_L1SKh, v_L1SKh) = _forward_layers(prefill_layers(params), x_1SD, rope, mask, config, SAMPLE_RULES, True)
    return SharedPrefix(k_L1SKh[:, 0], v_L1SKh[:, 0], length)


def prefill_layers(params: Params) -> Layers:
    """The layers' weights in the form that prefill takes: stacked if the sampler has them, else those of decoding."""
    return params["prefill_layers"] if "prefill_layers" in params else params["layers"]


def unstack_layers(params: Params, config: Qwen2Config) -> Params:
    """The same weights with one dict per layer and `Transposed` matrices, the unembedding included.

    This form is for sampling on CPU with `config.unroll` equal to `config.num_layers`. XLA:CPU copies each layer's
    slice out of a stack before it multiplies, which takes half the time of a decode step. Separate arrays are read in
    place.
    """
    sliced = [_layer_params(params["layers"], i) for i in range(config.num_layers)]
    layers = tuple({name: ops.transpose_weight(name, w) for name, w in layer.items()} for layer in sliced)
    table = "embed" if config.tied else "unembed"
    return {**params, "layers": layers, table: Transposed(unembedding(params, config).T)}


def _embed_tokens(params: Params, tokens_BT: jax.Array, config: Qwen2Config, rules: Rules) -> jax.Array:
    # With tied embeddings, `unstack_layers` wraps the table in `Transposed`; its values are still [V, D], so a row is a
    # token's embedding.
    embed = params["embed"]
    table_VD = embed.values if isinstance(embed, Transposed) else embed
    # Cast to `dtype` first, as the sampler's copy is, so that trainer and sampler embed tokens identically.
    x_BTD = jnp.take(table_VD, tokens_BT, axis=0).astype(config.dtype).astype(config.matmul_output_dtype)
    return constrain(x_BTD, ("rows", "time", None), rules)


def _layer_params(layers: Layers, index: int) -> Params:
    return layers[index] if isinstance(layers, tuple) else jax.tree.map(lambda leaf: leaf[index], layers)


def _forward_layers(
    layers: Layers,
    x_BTD: jax.Array,
    rope: Rope,
    mask: Mask,
    config: Qwen2Config,
    rules: Rules,
    return_kv: bool,
    prefix: SharedPrefix | None = None,
) -> tuple[jax.Array, Any]:
    """Hidden states [B, T, D] and, with `return_kv`, all layers' keys and values, each [L, B, T, K, h]."""

    def layer(x_BTD: jax.Array, inputs: tuple[Params, Any]) -> tuple[jax.Array, Any]:
        w, prefix_kv = inputs
        x_BTD = checkpoint_name(x_BTD, LAYER_INPUT)
        q_BTHh, k_BTKh, v_BTKh = _project(x_BTD, w, rope, config)
        if prefix is None:
            o_BTHh = attention.attend(q_BTHh, k_BTKh, v_BTKh, mask, config.query_chunk, config.attention)
        else:
            o_BTHh = attention.attend_after_prefix(q_BTHh, k_BTKh, v_BTKh, prefix_kv, prefix.length, config.query_chunk)
        x_BTD = _after_attention(x_BTD, o_BTHh, w, config, rules)
        return x_BTD, (k_BTKh, v_BTKh) if return_kv else (None, None)

    if config.remat != "none":
        # Inside a scan XLA cannot undo rematerialization by CSE, so the barriers of prevent_cse are unnecessary.
        layer = jax.checkpoint(layer, prevent_cse=False, policy=_remat_policy(config.remat))
    prefix_kv = None if prefix is None else (prefix.k_LSKh, prefix.v_LSKh)
    if isinstance(layers, tuple):
        kv_per_layer = []
        for i, w in enumerate(layers):
            x_BTD, kv_BTKh = layer(x_BTD, (w, jax.tree.map(lambda leaf, i=i: leaf[i], prefix_kv)))
            kv_per_layer.append(kv_BTKh)
        return x_BTD, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kv_per_layer)
    return jax.lax.scan(layer, x_BTD, (layers, prefix_kv), unroll=min(config.unroll, config.num_layers))


def _remat_policy(remat: str) -> Callable[..., Any] | None:
    """The checkpoint policy: only each layer's input is saved, on the device (full) or in host memory (offload)."""
    if remat == "full":
        return None
    # The copies in both directions are asynchronous, so they overlap with other layers' computation.
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    )


def _decode_layers(
    layers: Layers, x_PGD: jax.Array, rope: Rope, cache: KVCache, config: Qwen2Config, sample_N: jax.Array | None
) -> tuple[jax.Array, KVCache]:
    """All layers for one decode step: hidden states [P, G, D], and the cache with the step's keys and values.

    With `sample_N` hidden states are [1, N, D]: only the samples that are not done pass through the matmuls.
    """
    # The cache keeps layer i as entry i // U of stack i % U. An iteration of the scan runs U consecutive layers, one
    # of each stack, so it takes the same entry of every stack:
    #
    #                stack 0    stack 1     …    stack U-1
    #     entry 0    layer 0    layer 1     …    layer U-1
    #     entry 1    layer U    layer U+1   …    layer 2U-1
    stacks, depth = _stacks(config)

    def iteration(
        carry: tuple[jax.Array, KVCache], inputs: tuple[jax.Array, Any]
    ) -> tuple[tuple[jax.Array, KVCache], None]:
        (x_PGD, cache), (entry, group) = carry, inputs
        for stack in range(stacks):
            w = _layer_params(group, stack)
            q_PGHh, k_PGKh, v_PGKh = (caches.to_slots(y, sample_N, cache) for y in _project(x_PGD, w, rope, config))
            cache = caches.write(cache, stack, entry, k_PGKh, v_PGKh)
            o_PGHh = caches.from_slots(attention.attend_cached(q_PGHh, cache, stack, entry), sample_N)
            x_PGD = _after_attention(x_PGD, o_PGHh, w, config, SAMPLE_RULES)
        return (x_PGD, cache), None

    # A scan of one iteration would copy the cache into the loop and out of it again.
    if depth == 1:
        (x_PGD, cache), _ = iteration((x_PGD, cache), (jnp.int32(0), layers))
    else:
        groups = jax.tree.map(lambda leaf: leaf.reshape(depth, stacks, *leaf.shape[1:]), layers)
        (x_PGD, cache), _ = jax.lax.scan(iteration, (x_PGD, cache), (jnp.arange(depth, dtype=jnp.int32), groups))
    return x_PGD, cache.replace(step=cache.step + 1)  # type: ignore[attr-defined]


def _stacks(config: Qwen2Config) -> tuple[int, int]:
    """The number of stacks of the cache, and of layers in each; one stack if `unroll` does not divide the layers."""
    stacks = min(config.unroll, config.num_layers)
    return (1, config.num_layers) if config.num_layers % stacks else (stacks, config.num_layers // stacks)


def _project(x_BTD: jax.Array, w: Params, rope: Rope, config: Qwen2Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, T, H, h], keys and values [B, T, K, h] of a layer, in config.dtype."""
    x_BTD = _norm(x_BTD, w["attention_norm"], config)
    qkv_BTN = ops.matmuls(x_BTD, [w[name] for name in "qkv"], config.matmul_output_dtype)
    biases = w["q_bias"], w["k_bias"], w["v_bias"]
    q_BTHh, k_BTKh, v_BTKh = (
        y_BTN.reshape(*y_BTN.shape[:2], *bias_Nh.shape) + bias_Nh[None, None].astype(y_BTN.dtype)
        for y_BTN, bias_Nh in zip(qkv_BTN, biases, strict=True)
    )
    # Bias and RoPE take the wider matmul_output_dtype; heads are rounded to dtype once, as inputs of attention.
    q_BTHh, k_BTKh = _rotate(q_BTHh, rope), _rotate(k_BTKh, rope)
    return q_BTHh.astype(config.dtype), k_BTKh.astype(config.dtype), v_BTKh.astype(config.dtype)


def _after_attention(x_BTD: jax.Array, o_BTHh: jax.Array, w: Params, config: Qwen2Config, rules: Rules) -> jax.Array:
    """Attention's output projection and the feed-forward, each added to the residual stream."""
    B, T, _ = x_BTD.shape
    # In training, TRAIN_RULES split the residual stream along time over the tensor axis: norms run on a part of the
    # tokens, and each layer's saved input takes a part of the memory.
    x_BTD = x_BTD + ops.matmul(o_BTHh.reshape(B, T, -1), w["o"], config.matmul_output_dtype)
    x_BTD = constrain(x_BTD, ("rows", "time", None), rules)
    x_BTD = x_BTD + _feed_forward(_norm(x_BTD, w["ffw_norm"], config), w, config)
    return constrain(x_BTD, ("rows", "time", None), rules)


def _feed_forward(x_BTD: jax.Array, w: Params, config: Qwen2Config) -> jax.Array:
    def swiglu(x_BTD: jax.Array) -> jax.Array:
        return ops.swiglu(x_BTD, w["gate"], w["up"], w["down"], config.matmul_output_dtype)

    B, T, D = x_BTD.shape
    if config.ffw_chunks == 1 or T % config.ffw_chunks:
        return swiglu(x_BTD)
    # In N chunks along time, only one chunk's gates [B, T/N, F] exist at a time, in the backward pass too.
    x_NBTD = x_BTD.reshape(B, config.ffw_chunks, T // config.ffw_chunks, D).swapaxes(0, 1)
    return jax.lax.map(jax.checkpoint(swiglu), x_NBTD).swapaxes(0, 1).reshape(B, T, D)


def _norm(x_BTD: jax.Array, scale_D: jax.Array, config: Qwen2Config) -> jax.Array:
    return ops.rms_norm(x_BTD, scale_D, config.norm_eps, config.dtype)


class Rope(NamedTuple):
    """Cosines and sines of each position's angles, [B, T, 1, h/2]."""

    cos: jax.Array
    sin: jax.Array


def _rope_table(positions_BT: jax.Array, config: Qwen2Config) -> Rope:
    # Angles are float32 under any dtype: bfloat16 is not exact for positions above 256.
    half = config.head_size // 2
    frequency_h = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_h[None, None, None]
    return Rope(jnp.cos(angle_BT1h), jnp.sin(angle_BT1h))


def _rotate(x_BTNh: jax.Array, rope: Rope) -> jax.Array:
    """Applies RoPE to heads [B, T, N, h]: rotates the pairs (i, i + h/2), the order of Hugging Face's Qwen2 weights."""
    wide_BTNh = x_BTNh.astype(jnp.promote_types(x_BTNh.dtype, jnp.float32))
    first, second = jnp.split(wide_BTNh, 2, axis=-1)
    rotated = [first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin]
    return jnp.concatenate(rotated, axis=-1).astype(x_BTNh.dtype)


def unembedding(params: Params, config: Qwen2Config) -> jax.Array:
    """The unembedding matrix [D, V]; with tied embeddings, the transposed embedding."""
    return params["embed"].T if config.tied else params["unembed"]


def unembed(params: Params, hidden: jax.Array, config: Qwen2Config) -> jax.Array:
    """Logits […, V] of hidden states […, D], in at least float32; ids that the tokenizer lacks get MASKED_LOGIT."""
    table = params["embed" if config.tied else "unembed"]
    if isinstance(table, Transposed):  # decoding on CPU
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        return mask_logits(ops.matmul(hidden, table, wide), config)
    table_DV = unembedding(params, config).astype(hidden.dtype)
    return mask_logits(ops.einsum_f32("...d,dv->...v", hidden, table_DV), config)


def mask_logits(logits: jax.Array, config: Qwen2Config) -> jax.Array:
    """Logits […, V] with MASKED_LOGIT for ids that the tokenizer lacks: config.holes, and those from num_tokens on."""
    is_padded = 0 < config.num_tokens < config.vocab_size
    if not is_padded and not config.holes:
        return logits
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    known = ids < (config.num_tokens or config.vocab_size)
    for start, end in config.holes:
        known &= (ids < start) | (ids >= end)
    return jnp.where(known, logits, MASKED_LOGIT)


def init_cache(config: Qwen2Config, prompts: int, samples: int, prefix: int, steps: int, dtype: str = "") -> KVCache:
    """An empty KV cache; arguments as `cache_shapes` takes them."""
    return caches.zeros(cache_shapes(config, prompts, samples, prefix, steps, dtype))


def cache_shapes(config: Qwen2Config, prompts: int, samples: int, prefix: int, steps: int, dtype: str = "") -> KVCache:
    """The KV cache as jax.ShapeDtypeStruct.

    Args:
      config: the model's shape; its `unroll` sets the number of stacks.
      prompts: slots.
      samples: samples per prompt.
      prefix: tokens that a prompt's prefix may have.
      steps: tokens that a sample may have.
      dtype: of keys and values; "int8" adds scales; empty: config.dtype.
    """
    heads = config.num_kv_heads, config.head_size
    return caches.shapes(_stacks(config), prompts, samples, prefix, steps, heads, jnp.dtype(dtype or config.dtype))
