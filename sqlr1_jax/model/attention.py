"""Attention within rows (training, scoring, prefill), and attention of one decode step over the KV cache.

`choose_backend` picks what computes attention within rows: XLA in this module, or a kernel in `kernels`. Grouped-query
attention never repeats keys or values here: the g query heads of a key-value head are folded into the time axis.
"""

# One decode step of slot p, which holds one prompt and its G samples:
#
#                        prefix, S keys                       own columns, first W of T keys
#     sample 0   [ q0·prefix_k                       |  q0·k of sample 0                 ]  ->  one softmax over both
#     sample 1   [ q1·prefix_k                       |  q1·k of sample 1                 ]  ->  one softmax over both
#                  one matmul per prompt:               one matmul per sample:
#                  [G·g, h] x [h, S]                    [g, h] x [h, W]
#
# The samples of a prompt are rows of one matmul, so that the prefix's keys are read once and not once per sample. The
# two score arrays are not concatenated, because that would copy both: `_mix_prefix_and_own` takes one maximum and sum.
# Prefix padding, columns not yet written and columns of the slot's earlier prompts have MASKED_SCORE.

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from sqlr1_jax.model import kernels, shared_prefix
from sqlr1_jax.model.kv_cache import KVCache, read_columns, read_prefix, visible_positions
from sqlr1_jax.model.ops import einsum_f32
from sqlr1_jax.model.quantize import QuantizedArray
from sqlr1_jax.model.shared_prefix import MASKED_SCORE

QueryInfo = tuple[jax.Array, ...]  # arrays [B or 1, T] with one value per query: group, segment, position
BACKENDS = ("auto", "xla", "splash", "cudnn")


@struct.dataclass
class Mask:
    """Which keys each query of a row sees: keys s ≤ t of its prefix group, in the prefix or in its own segment.

    Two layouts:
      shared-prefix rows (`prefix_width` > 0): [prefix | segment | segment | …], where only the end of each part is
        padding. Scores are computed part by part and need no [T, T]. A plain text is such a row without segments;
        XLA's backend then uses the packed-row code.
      packed rows (`prefix_width` = 0): several groups one after another; the mask is built from the two id arrays.
    """

    prefix_BT: jax.Array  # prefix group of each token, from 1; 0: padding
    segment_BT: jax.Array  # 0: the token is in the prefix; from 1: the segment that it is in
    prefix_width: int = struct.field(pytree_node=False, default=0)  # tokens of the prefix, padding included
    segment_width: int = struct.field(pytree_node=False, default=0)  # tokens of each segment; 0: no segments


def causal_mask(tokens_BT: jax.Array, length_B: jax.Array) -> Mask:
    """The mask of rows of one plain text each: `length_B` tokens, then padding."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    valid_BT = (positions_BT < length_B[:, None]).astype(jnp.int32)
    return Mask(prefix_BT=valid_BT, segment_BT=jnp.zeros_like(valid_BT), prefix_width=tokens_BT.shape[1])


def attend(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, mask: Mask, query_chunk: int = 0, backend: str = "auto"
) -> jax.Array:
    """Attention within rows → [B, T, H, h].

    Args:
      q_BTHh: queries.
      k_BTKh: keys.
      v_BTKh: values.
      mask: which keys each query sees.
      query_chunk: queries at a time in XLA's attention, which bounds the scores' memory; 0: all.
      backend: one of BACKENDS; `choose_backend` resolves it.

    Raises:
      ValueError: the backend is unknown.
    """
    if (chosen := choose_backend(backend, q_BTHh, mask)) != "xla":
        return kernels.shard_map_attention(_kernel(chosen, mask), q_BTHh, k_BTKh, v_BTKh, mask.prefix_BT)
    if mask.segment_width:
        return _attend_shared_prefix(q_BTHh, k_BTKh, v_BTKh, mask, query_chunk)
    return _attend_general(q_BTHh, k_BTKh, v_BTKh, mask, query_chunk)


def choose_backend(backend: str, q_BTHh: jax.Array, mask: Mask) -> str:
    """The backend that computes attention within rows: "xla", "splash" or "cudnn".

    "auto" is splash on TPU and cuDNN on GPU for the shapes that they support, else XLA. Packed rows are always XLA's:
    their mask is known only at run time, and a kernel's mask is part of its program.

    Raises:
      ValueError: the backend is unknown.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"model.attention: the backend {backend!r} is unknown; choose one of {', '.join(map(repr, BACKENDS))}."
        )
    if backend == "xla" or not mask.prefix_width:
        return "xla"
    if backend != "auto":
        return backend
    T, h, widths = q_BTHh.shape[1], q_BTHh.shape[3], (mask.prefix_width, mask.segment_width)
    is_16_bit, even_widths = q_BTHh.dtype in (jnp.bfloat16, jnp.float16), not any(width % 2 for width in widths)
    # Splash needs a block of 128 tokens and heads that fill at least half of a register's 128 lanes. cuDNN needs 16
    # bits, even mask sides and heads of a multiple of 8 up to 128.
    supported = {"tpu": T >= 128 and h % 64 == 0, "gpu": is_16_bit and even_widths and h % 8 == 0 and h <= 128}
    platform = _platform()
    return {"tpu": "splash", "gpu": "cudnn"}[platform] if supported.get(platform) else "xla"


def _platform() -> str:
    """The platform that the program is traced for: the mesh's, or without a mesh this machine's."""
    # `plan` traces for a mesh of TPUs on a machine that has none.
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _kernel(backend: str, mask: Mask) -> kernels.Kernel:
    """The kernel for a row's layout; splash is interpreted off TPU, which is slow and only for tests."""
    static_mask = kernels.SharedPrefixMask(mask.prefix_width, mask.segment_width)
    if backend == "cudnn":
        return functools.partial(kernels.cudnn, mask=static_mask)
    return functools.partial(kernels.splash, mask=static_mask, interpret=_platform() != "tpu")


def _heads_first(q_BTHh: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, H, h] → [B, K, g, T, h], the g query heads of each key-value head."""
    B, T, H, h = q_BTHh.shape
    return q_BTHh.reshape(B, T, kv_heads, H // kv_heads, h).transpose(0, 2, 3, 1, 4)


def _heads_last(o_BKgTh: jax.Array) -> jax.Array:
    """The inverse of `_heads_first`."""
    B, K, g, T, h = o_BKgTh.shape
    return o_BKgTh.transpose(0, 3, 1, 2, 4).reshape(B, T, K * g, h)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Scaled scores […, M, S] of queries […, M, h] and keys with time last […, h, S]."""
    # `shared_prefix` has its own version, for keys with time first; sharing one helper would add a transpose to one of
    # the programs.
    return einsum_f32("...mh,...hs->...ms", q * q.shape[-1] ** -0.5, k)


def _map_query_chunks(
    block: Callable[[jax.Array, QueryInfo], jax.Array], q: jax.Array, info: QueryInfo, chunk: int
) -> jax.Array:
    """Results of `block` on `chunk` queries at a time; 0: on all at once.

    Queries [B, …, T, h] and results have time at axis -2, each array of `info` [B or 1, T] at axis 1.
    """
    # This loop differs from `shared_prefix`'s scan: JAX differentiates it, so each chunk is rematerialized, and it has
    # no sums to accumulate.
    if not chunk:
        return block(q, info)
    T = q.shape[-2]
    chunk = min(chunk, T)
    chunks = (
        shared_prefix.split_time(q, chunk),
        tuple(shared_prefix.split_time(x[..., None], chunk)[..., 0] for x in info),
    )
    out = jax.lax.map(lambda args: jax.checkpoint(block)(*args), chunks)
    return shared_prefix.join_time(out, T)


def _attend_general(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, mask: Mask, query_chunk: int) -> jax.Array:
    """Attention under the mask of the id arrays, for rows of any layout."""
    T = q_BTHh.shape[1]
    k_BKSh, v_BKSh = k_BTKh.transpose(0, 2, 1, 3), v_BTKh.transpose(0, 2, 1, 3)
    prefix_B1S, segment_B1S = mask.prefix_BT[:, None, :], mask.segment_BT[:, None, :]
    positions_1T = jnp.arange(T, dtype=jnp.int32)[None, :]

    def block(q_BKgMh: jax.Array, info: QueryInfo) -> jax.Array:
        # Without the barrier JAX hoists the mask out of the loops over chunks and layers: a [T, T] array of all chunks.
        q_BKgMh, info = jax.lax.optimization_barrier((q_BKgMh, info))
        prefix_BM1, segment_BM1, positions_1M1 = (x[:, :, None] for x in info)
        same_segment_BMS = (segment_B1S == 0) | (segment_BM1 == segment_B1S)
        same_group_BMS = (prefix_BM1 == prefix_B1S) & (prefix_B1S > 0)
        causal_1MS = positions_1T[:, None, :] <= positions_1M1
        return _attend_block(q_BKgMh, k_BKSh, v_BKSh, same_segment_BMS & same_group_BMS & causal_1MS)

    info = mask.prefix_BT, mask.segment_BT, positions_1T
    return _heads_last(_map_query_chunks(block, _heads_first(q_BTHh, k_BTKh.shape[2]), info, query_chunk))


def _attend_block(q_BKgMh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array, mask_BMS: jax.Array) -> jax.Array:
    """Softmax attention of M queries over all keys that the mask allows → [B, K, g, M, h]."""
    B, K, g, M, h = q_BKgMh.shape
    S = k_BKSh.shape[2]
    scores = _scores(q_BKgMh.reshape(B, K, g * M, h), k_BKSh.swapaxes(-1, -2)).reshape(B, K, g, M, S)
    scores = jnp.where(mask_BMS[:, None, None], scores, MASKED_SCORE).reshape(B, K, g * M, S)
    # The maximum cancels in the quotient, so no gradient needs to flow through it.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    # Division after the matmul: [M, h] numbers instead of [M, S].
    o_BKNh = einsum_f32("...ms,...sh->...mh", weights.astype(v_BKSh.dtype), v_BKSh) / weights.sum(-1, keepdims=True)
    return o_BKNh.astype(v_BKSh.dtype).reshape(B, K, g, M, h)


def _attend_shared_prefix(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, mask: Mask, query_chunk: int
) -> jax.Array:
    """Attention of rows [prefix | segment | segment | …] by XLA, part by part."""
    q_BKgTh = _heads_first(q_BTHh, k_BTKh.shape[2])
    k_BKTh, v_BKTh = k_BTKh.transpose(0, 2, 1, 3), v_BTKh.transpose(0, 2, 1, 3)
    length_B = (mask.prefix_BT[:, : mask.prefix_width] > 0).sum(1, dtype=jnp.int32)
    parts = shared_prefix.RowParts(mask.prefix_width, mask.segment_width, query_chunk * q_BKgTh.shape[2])
    return _heads_last(shared_prefix.attend(q_BKgTh, k_BKTh, v_BKTh, length_B, parts))


def attend_after_prefix(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    prefix_kv: tuple[jax.Array, jax.Array],
    prefix_length: jax.Array,
    query_chunk: int = 0,
) -> jax.Array:
    """Causal attention of rows that continue one shared prefix, whose keys and values are given → [B, T, H, h].

    Only the ends of rows may be padding. XLA computes it on every platform: rows are short, since they hold what
    follows the prefix.

    Args:
      q_BTHh: queries.
      k_BTKh: the rows' own keys.
      v_BTKh: the rows' own values.
      prefix_kv: keys and values [S, K, h] of the prefix in one layer.
      prefix_length: tokens of the prefix; the others of the S are padding.
      query_chunk: queries at a time, which bounds the scores' memory; 0: all.
    """
    T, K = q_BTHh.shape[1], k_BTKh.shape[2]
    k_KhS, v_KSh = prefix_kv[0].transpose(1, 2, 0), prefix_kv[1].transpose(1, 0, 2)
    k_BKhT, v_BKTh = k_BTKh.transpose(0, 2, 3, 1), v_BTKh.transpose(0, 2, 1, 3)
    visible_S = jnp.arange(k_KhS.shape[-1]) < prefix_length
    positions_1T = jnp.arange(T, dtype=jnp.int32)[None]

    def block(q_BKgMh: jax.Array, info: QueryInfo) -> jax.Array:
        B, _, g, M, h = q_BKgMh.shape
        # As in a decode step, the rows are samples of one prompt: the prefix takes one matmul per head for all of them.
        prefix_scores = _scores(q_BKgMh.swapaxes(0, 1).reshape(K, B * g * M, h), k_KhS)
        prefix_scores = jnp.where(visible_S, prefix_scores, MASKED_SCORE)
        causal_MT = positions_1T <= info[0][0][:, None]
        own_scores = _scores(q_BKgMh.reshape(B, K, g * M, h), k_BKhT).reshape(B, K, g, M, T)
        own_scores = jnp.where(causal_MT, own_scores, MASKED_SCORE).reshape(1, B, K, g * M, T)
        prefix_v, own_v = QuantizedArray(v_KSh[None], None), QuantizedArray(v_BKTh, None)
        out = _mix_prefix_and_own(prefix_scores[None], prefix_v, own_scores, own_v, q_BKgMh.dtype)
        return out.reshape(B, K, g, M, h).astype(q_BKgMh.dtype)

    return _heads_last(_map_query_chunks(block, _heads_first(q_BTHh, K), (positions_1T,), query_chunk))


def attend_cached(q_PGHh: jax.Array, cache: KVCache, stack: int, entry: jax.Array | int) -> jax.Array:
    """Attention of one decode step → [P, G, H, h]: over the prompt's prefix and the sample's own columns.

    `write` must have written the step's keys and values before. XLA computes it on every platform: compiled for TPU,
    the scores stay in VMEM and only keys and values are read from HBM (docs/attention.md).

    Args:
      q_PGHh: queries of one layer.
      cache: the KV cache.
      stack: the layer's stack in the cache.
      entry: the layer's index in the stack.
    """
    P, G, H, h = q_PGHh.shape
    K = cache.v[stack].values.shape[-3]
    q_PGKgh = q_PGHh.reshape(P, G, K, H // K, h)
    prefix_visible_PS, own_visible_PT = visible_positions(cache)
    prefix_k, prefix_v = read_prefix(cache, stack, entry)
    prefix_scores = _cached_scores(q_PGKgh.swapaxes(1, 2).reshape(P, K, -1, h), prefix_k)
    prefix_scores = jnp.where(prefix_visible_PS[:, None, None, :], prefix_scores, MASKED_SCORE)

    def attend_window(window: int) -> jax.Array:
        k_RKhW, v_RKWh = read_columns(cache, stack, entry, window)
        own_scores = _cached_scores(q_PGKgh.reshape(P * G, K, -1, h), k_RKhW).reshape(P, G, K, -1, window)
        own_scores = jnp.where(own_visible_PT[:, None, None, None, :window], own_scores, MASKED_SCORE)
        return _mix_prefix_and_own(prefix_scores, prefix_v, own_scores, v_RKWh, q_PGHh.dtype)

    # Early steps of a long completion need few of the columns: read the smallest window that holds the current step.
    windows = _window_sizes(cache.columns)
    smallest = jnp.sum(cache.step >= jnp.asarray(windows[:-1], jnp.int32))
    out = jax.lax.switch(smallest, [lambda window=window: attend_window(window) for window in windows])
    return out.reshape(P, G, H, h).astype(q_PGHh.dtype)


def _window_sizes(T: int, smallest: int = 256) -> list[int]:
    """Numbers of columns to read, doubling up to T from at most `smallest`."""
    # Sizes double, since each is one more branch to compile; at most twice the needed columns are read.
    windows = [T]
    while windows[0] > smallest:
        windows.insert(0, -(-windows[0] // 2))
    return windows


def _cached_scores(q: jax.Array, k: QuantizedArray) -> jax.Array:
    """Scaled scores of cached keys […, h, S]."""
    # Scales [..., 1, S] are constant over h: they multiply the scores, so that int8 keys are never dequantized.
    scores = _scores(q, k.values.astype(q.dtype))
    return scores if k.scale is None else scores * k.scale


def _weighted_cached_sum(weights: jax.Array, v: QuantizedArray, dtype: jnp.dtype) -> jax.Array:
    """Weights […, M, S] times cached values […, S, h], which are multiplied in `dtype`."""
    # The scales of values [..., S, 1] are constant over h too: they multiply the weights.
    if v.scale is not None:
        weights = weights * v.scale.swapaxes(-1, -2)
    values = v.values.astype(dtype)
    return einsum_f32("...ms,...sh->...mh", weights.astype(values.dtype), values)


def _mix_prefix_and_own(
    prefix_scores: jax.Array, prefix_v: QuantizedArray, own_scores: jax.Array, own_v: QuantizedArray, dtype: jnp.dtype
) -> jax.Array:
    """One softmax over prefix and own columns → [P, G, K, g, h] in at least float32.

    Args:
      prefix_scores: [P, K, G·g, S].
      prefix_v: [P, K, S, h].
      own_scores: [P, G, K, g, W].
      own_v: [P·G, K, W, h].
      dtype: operands of the matmuls.
    """
    P, G, K, g, _ = own_scores.shape
    prefix_max = prefix_scores.max(-1).reshape(P, K, G, g).swapaxes(1, 2)
    top = jnp.maximum(prefix_max, own_scores.max(-1))[..., None]
    prefix_weights = jnp.exp(prefix_scores - top.swapaxes(1, 2).reshape(P, K, G * g, 1))
    own_weights = jnp.exp(own_scores - top)
    prefix_total = prefix_weights.sum(-1).reshape(P, K, G, g).swapaxes(1, 2)[..., None]
    total = prefix_total + own_weights.sum(-1, keepdims=True)
    prefix_sum = _weighted_cached_sum(prefix_weights, prefix_v, dtype).reshape(P, K, G, g, -1).swapaxes(1, 2)
    own_sum = _weighted_cached_sum(own_weights.reshape(P * G, K, g, -1), own_v, dtype).reshape(P, G, K, g, -1)
    return (prefix_sum + own_sum) / total
