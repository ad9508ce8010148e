"""Attention over rows of one shared prefix and the segments that see it, and one step of decoding.

`choose_backend` alone says who computes attention within rows: XLA here, or one of `kernels`. Grouped-query attention never
repeats keys or values here: the query heads that share a key-value head are folded into the query's time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from sqlr1_jax.model import kernels, shared_prefix
from sqlr1_jax.model.kv_cache import KVCache, layer_of, prefix_of, visible
from sqlr1_jax.model.quantize import QuantizedArray

Rows = tuple[jax.Array, ...]  # what is known of each query: arrays [B or 1, T]
BACKENDS = ("auto", "xla", "splash", "cudnn")
BLOCKED = -1e30  # a score that is not allowed; finite, so that a query that sees nothing stays finite


@struct.dataclass
class Mask:
    """What may see what in a row: query t sees key s ≤ t of its own prefix group, in the prefix or its own segment.

    A strided row (`prefix_width` past 0) is [prefix | segment | segment | …] with padding at the end of each part only; its
    scores are then made part by part and never take the room of [T, T]. A plain text is such a row without segments.
    """

    prefix_BT: jax.Array  # which prefix group a token belongs to, from 1; 0: padding
    segment_BT: jax.Array  # 0: the prefix itself; from 1: a segment that sees it
    prefix_width: int = struct.field(pytree_node=False, default=0)  # tokens a strided row's prefix takes
    segment_width: int = struct.field(pytree_node=False, default=0)  # tokens each of its segments takes; 0: it has none


def causal_mask(tokens_BT: jax.Array, length_B: jax.Array) -> Mask:
    """Plain rows of one text each, `length_B` tokens long, padded behind."""
    places_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    valid_BT = (places_BT < length_B[:, None]).astype(jnp.int32)
    return Mask(prefix_BT=valid_BT, segment_BT=jnp.zeros_like(valid_BT), prefix_width=tokens_BT.shape[1])


def attend(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, mask: Mask, query_chunk: int = 0, backend: str = "auto"
) -> jax.Array:
    """Attention within rows → [B, T, H, h].

    Args:
      q_BTHh: queries.
      k_BTKh: keys.
      v_BTKh: values.
      mask: what may see what.
      query_chunk: queries at a time in XLA's attention, which bounds the scores' memory; 0: all.
      backend: as `choose_backend` takes it.
    """
    if (kernel := choose_backend(backend, q_BTHh, mask)) != "xla":
        return kernels.shard_map_attention(_kernel(kernel, mask), q_BTHh, k_BTKh, v_BTKh, mask.prefix_BT)
    if mask.segment_width:
        return _attend_strided(q_BTHh, k_BTKh, v_BTKh, mask, query_chunk)
    return _attend_general(q_BTHh, k_BTKh, v_BTKh, mask, query_chunk)


def choose_backend(backend: str, q_BTHh: jax.Array, mask: Mask) -> str:
    """Who computes attention within rows: "xla", "splash" or "cudnn".

    Asked for "auto", it is splash on TPU and cuDNN on GPU where they take such rows. Packed rows, whose mask is known
    when they run, are XLA's whatever is asked.

    Raises:
      ValueError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; it takes {', '.join(map(repr, BACKENDS))}.")
    if backend == "xla" or not mask.prefix_width:
        return "xla"
    if backend != "auto":
        return backend
    T, h, parts = q_BTHh.shape[1], q_BTHh.shape[3], (mask.prefix_width, mask.segment_width)
    sixteen_bits, even = q_BTHh.dtype in (jnp.bfloat16, jnp.float16), not any(part % 2 for part in parts)
    suits = {"tpu": T >= 128 and h % 64 == 0, "gpu": sixteen_bits and even and h % 8 == 0 and h <= 128}
    platform = _platform()
    return {"tpu": "splash", "gpu": "cudnn"}[platform] if suits.get(platform) else "xla"


def _platform() -> str:
    """Of the mesh that the program is traced for, which need not be this machine's; without one, this machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _kernel(name: str, mask: Mask) -> kernels.Kernel:
    """Splash is interpreted where there is no TPU, which is slow and for tests."""
    sees = kernels.SharedPrefixMask(mask.prefix_width, mask.segment_width)
    if name == "cudnn":
        return functools.partial(kernels.cudnn, sees=sees)
    return functools.partial(kernels.splash, sees=sees, interpret=_platform() != "tpu")


def _heads_first(q_BTHh: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, H, h] → [B, K, g, T, h], the g query heads of each key-value head."""
    B, T, H, h = q_BTHh.shape
    return q_BTHh.reshape(B, T, kv_heads, H // kv_heads, h).transpose(0, 2, 3, 1, 4)


def _heads_last(o_BKgTh: jax.Array) -> jax.Array:
    """The inverse of `_heads_first`."""
    B, K, g, T, h = o_BKgTh.shape
    return o_BKgTh.transpose(0, 3, 1, 2, 4).reshape(B, T, K * g, h)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """[…, M, h] and […, S, h] → […, M, S], scaled, in at least float32."""
    return _products(q, k.swapaxes(-1, -2))


def _products(q: jax.Array, k: jax.Array) -> jax.Array:
    """The same of keys with their time last: […, M, h] and […, h, S]."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum("...mh,...hs->...ms", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)


def _weigh(weights: jax.Array, v: jax.Array) -> jax.Array:
    """[…, M, S] and […, S, h] → […, M, h] in the weights' precision."""
    return jnp.einsum("...ms,...sh->...mh", weights.astype(v.dtype), v, preferred_element_type=weights.dtype)


def _by_chunks(block: Callable[[jax.Array, Rows], jax.Array], q: jax.Array, rows: Rows, chunk: int) -> jax.Array:
    """`block` on `chunk` queries at a time, keeping nothing but its inputs for the backward pass; 0: on all at once.

    q [B, …, T, h] has its time at axis -2, each array of `rows` [B or 1, T] at axis 1; so has the result.
    """
    if not chunk:
        return block(q, rows)
    T = q.shape[-2]
    chunk = min(chunk, T)
    chunks = (
        shared_prefix.split_time(q, chunk),
        tuple(shared_prefix.split_time(row[..., None], chunk)[..., 0] for row in rows),
    )
    out = jax.lax.map(lambda part: jax.checkpoint(block)(*part), chunks)
    return shared_prefix.join_time(out, T)


def _attend_general(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, mask: Mask, query_chunk: int) -> jax.Array:
    T = q_BTHh.shape[1]
    k_BKSh, v_BKSh = k_BTKh.transpose(0, 2, 1, 3), v_BTKh.transpose(0, 2, 1, 3)
    prefix_B1S, segment_B1S = mask.prefix_BT[:, None, :], mask.segment_BT[:, None, :]
    places_1T = _places(T)

    def block(q_BKgMh: jax.Array, rows: Rows) -> jax.Array:
        # Bound to its queries the mask stays within a chunk; else JAX makes all chunks' before the loop over layers.
        q_BKgMh, rows = jax.lax.optimization_barrier((q_BKgMh, rows))
        prefix_BM1, segment_BM1, places_1M1 = (row[:, :, None] for row in rows)
        visible_BMS = (segment_B1S == 0) | (segment_BM1 == segment_B1S)
        same_BMS = (prefix_BM1 == prefix_B1S) & (prefix_B1S > 0)
        past_1MS = places_1T[:, None, :] <= places_1M1
        return _attend_block(q_BKgMh, k_BKSh, v_BKSh, visible_BMS & same_BMS & past_1MS)

    rows = mask.prefix_BT, mask.segment_BT, places_1T
    return _heads_last(_by_chunks(block, _heads_first(q_BTHh, k_BTKh.shape[2]), rows, query_chunk))


def _places(length: int) -> jax.Array:
    return jnp.arange(length, dtype=jnp.int32)[None, :]


def _attend_block(q_BKgMh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array, allowed_BMS: jax.Array) -> jax.Array:
    B, K, g, M, h = q_BKgMh.shape
    S = k_BKSh.shape[2]
    scores = _scores(q_BKgMh.reshape(B, K, g * M, h), k_BKSh).reshape(B, K, g, M, S)
    scores = jnp.where(allowed_BMS[:, None, None], scores, BLOCKED).reshape(B, K, g * M, S)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = _weigh(weights, v_BKSh) / weights.sum(-1, keepdims=True)
    return mixed.astype(v_BKSh.dtype).reshape(B, K, g, M, h)


def _attend_strided(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, mask: Mask, query_chunk: int) -> jax.Array:
    q_BKgTh = _heads_first(q_BTHh, k_BTKh.shape[2])
    k_BKTh, v_BKTh = k_BTKh.transpose(0, 2, 1, 3), v_BTKh.transpose(0, 2, 1, 3)
    length_B = (mask.prefix_BT[:, : mask.prefix_width] > 0).sum(1, dtype=jnp.int32)
    places = shared_prefix.Places(mask.prefix_width, mask.segment_width, query_chunk * q_BKgTh.shape[2])
    return _heads_last(shared_prefix.attend(q_BKgTh, k_BKTh, v_BKTh, length_B, places))


def attend_cached(q_PGHh: jax.Array, cache: KVCache, stack: int, entry: jax.Array | int) -> jax.Array:
    """One decode step's queries over their prompt's prefix and their sample's own columns → [P, G, H, h].

    The step's keys and values have been written, to that entry of that stack of the cache. Of many columns only those
    that any step has reached are read, in powers of two. XLA's everywhere: compiled for TPU it holds the scores in VMEM
    and reads keys and values alone (docs/attention.md).
    """
    P, G, H, h = q_PGHh.shape
    K = cache.v[stack].values.shape[-3]
    q_PGKgh = q_PGHh.reshape(P, G, K, H // K, h)
    prefix_PS, own_PT = visible(cache)
    prefix_k, prefix_v = prefix_of(cache, stack, entry)
    shared = _stored_products(q_PGKgh.swapaxes(1, 2).reshape(P, K, -1, h), prefix_k)
    shared = jnp.where(prefix_PS[:, None, None, :], shared, BLOCKED)

    def over(window: int) -> jax.Array:
        k_RKhW, v_RKWh = layer_of(cache, stack, entry, window)
        own = _stored_products(q_PGKgh.reshape(P * G, K, -1, h), k_RKhW).reshape(P, G, K, -1, window)
        own = jnp.where(own_PT[:, None, None, None, :window], own, BLOCKED)
        return _mix_cached(shared, prefix_v, own, v_RKWh, q_PGHh.dtype)

    windows = _windows(cache.columns)
    reached = jnp.sum(cache.step >= jnp.asarray(windows[:-1], jnp.int32))
    out = jax.lax.switch(reached, [lambda window=window: over(window) for window in windows])
    return out.reshape(P, G, H, h).astype(q_PGHh.dtype)


def _windows(T: int, smallest: int = 256) -> list[int]:
    """Numbers of columns to read, doubling up to T; a few more cost less than a program that leaves them out."""
    windows = [T]
    while windows[0] > smallest:
        windows.insert(0, -(-windows[0] // 2))
    return windows


def _stored_products(q: jax.Array, k: QuantizedArray) -> jax.Array:
    """Scores of stored keys: a token's scale multiplies its score, so int8 keys are never made wide."""
    scores = _products(q, k.values.astype(q.dtype))
    return scores if k.scale is None else scores * k.scale


def _weigh_stored(weights: jax.Array, v: QuantizedArray, dtype: jnp.dtype) -> jax.Array:
    """The same of values: a token's scale multiplies its weight."""
    if v.scale is not None:
        weights = weights * v.scale.swapaxes(-1, -2)
    return _weigh(weights, v.values.astype(dtype))


def _mix_cached(
    shared: jax.Array, prefix_v: QuantizedArray, own: jax.Array, v: QuantizedArray, dtype: jnp.dtype
) -> jax.Array:
    """Scores [P, K, G·g, S] and [P, G, K, g, W], values of the latter [P·G, K, W, h] → [P, G, K, g, h]."""
    P, G, K, g, _ = own.shape
    top = jnp.maximum(shared.max(-1).reshape(P, K, G, g).swapaxes(1, 2), own.max(-1))[..., None]
    shared = jnp.exp(shared - top.swapaxes(1, 2).reshape(P, K, G * g, 1))
    own = jnp.exp(own - top)
    total = shared.sum(-1).reshape(P, K, G, g).swapaxes(1, 2)[..., None] + own.sum(-1, keepdims=True)
    mixed = _weigh_stored(shared, prefix_v, dtype).reshape(P, K, G, g, -1).swapaxes(1, 2)
    return (mixed + _weigh_stored(own.reshape(P * G, K, g, -1), v, dtype).reshape(P, G, K, g, -1)) / total
