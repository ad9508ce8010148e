"""Attention within strided rows [prefix | segment | segment | …], with a gradient of its own.

A query may see the first `limit` keys of a part: of its own prefix or segment those up to itself, of the prefix before
it those that are no padding. A segment's queries see two parts, whose outputs are merged by their log-sum-exps, as
flash attention merges blocks (Dao et al., 2022). Kept for the backward pass are inputs, outputs and log-sum-exps; the
scores are made once more there, a block of queries at a time, and no [T, T] exists.

Arrays are heads first, with time at axis -2: queries and what is known of each [B, K, g, T, x], keys [B, K, T, h].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Arrays = tuple[jax.Array, ...]
Block = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]  # (queries, keys) -> (a row a query, sums over queries)
BLOCKED = -1e30  # a score that is not allowed; finite, so that a query that sees nothing stays finite
SPANS, NARROW = 8, 256  # a causal part is cut into so many spans, none narrower; none is multiplied with keys past it


class Places(NamedTuple):
    """A strided row's fixed places, and how many queries are taken at a time (0: all), which bounds the scores."""

    prefix: int
    segment: int
    chunk: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q_BKgTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, length_B: jax.Array, places: Places) -> jax.Array:
    """Attention [B, K, g, T, h]; the prefixes hold `length_B` tokens, and padding stands at the end of each part."""
    return _forward(q_BKgTh, k_BKTh, v_BKTh, length_B, places)[0]


def _forward(
    q_BKgTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, length_B: jax.Array, places: Places
) -> tuple[jax.Array, Arrays]:
    (prefix, _), (shared, _), (own, _) = _over_parts(_look, (q_BKgTh,), (k_BKTh, v_BKTh), length_B, places)
    o_BKgTh, total_BKgT1 = (_join(*pair) for pair in zip(prefix, _merge(shared, own), strict=True))
    o_BKgTh = o_BKgTh.astype(q_BKgTh.dtype)
    return o_BKgTh, (q_BKgTh, k_BKTh, v_BKTh, length_B, o_BKgTh, total_BKgT1)


def _backward(places: Places, kept: Arrays, do_BKgTh: jax.Array) -> tuple:
    q_BKgTh, k_BKTh, v_BKTh, length_B, o_BKgTh, total_BKgT1 = kept
    through_BKgT1 = jnp.einsum("...h,...h->...", do_BKgTh, o_BKgTh, preferred_element_type=total_BKgT1.dtype)[..., None]
    queries = q_BKgTh, do_BKgTh, total_BKgT1, through_BKgT1
    prefix, shared, own = _over_parts(_look_back, queries, (k_BKTh, v_BKTh), length_B, places)
    dq_BKgTh = _join(prefix[0][0], shared[0][0] + own[0][0])
    dk_BKTh, dv_BKTh = (_join(a + b, c) for a, b, c in zip(prefix[1], shared[1], own[1], strict=True))
    return dq_BKgTh.astype(q_BKgTh.dtype), dk_BKTh.astype(k_BKTh.dtype), dv_BKTh.astype(v_BKTh.dtype), None


attend.defvjp(_forward, _backward)


def _over_parts(block: Block, queries: Arrays, keys: Arrays, length_B: jax.Array, places: Places) -> list:
    """`block` of the prefix's queries on the prefix, and of the segments' on the prefix and on themselves."""
    prefix, segments = zip(*(_cut(x, places) for x in queries), strict=True)
    prefix_keys, segment_keys = zip(*(_cut(x, places) for x in keys), strict=True)
    B, K, *like = segments[0].shape[:-1]
    flat = tuple(x.reshape(B, K, -1, x.shape[-1]) for x in segments)
    limit = jnp.broadcast_to(length_B[:, None, None, None], (*flat[0].shape[:-1], 1))
    rows, sums = _by_blocks(block, (*flat, limit), prefix_keys, places.chunk)
    shared = tuple(x.reshape(B, K, *like, x.shape[-1]) for x in rows), sums
    alone = ((prefix, prefix_keys), (segments, segment_keys))
    of_prefix, of_segments = (_causal(block, *part, places.chunk) for part in alone)
    return [of_prefix, shared, of_segments]


def _cut(x: jax.Array, places: Places) -> tuple[jax.Array, jax.Array]:
    """Time's prefix and its segments, those in front of what follows B and K: [B, K, G, …, C, x]."""
    segments = x[..., places.prefix :, :]
    segments = segments.reshape(*x.shape[:-2], -1, places.segment, x.shape[-1])
    return x[..., : places.prefix, :], jnp.moveaxis(segments, -3, 2)


def _join(prefix: jax.Array, segments: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    segments = jnp.moveaxis(segments, 2, -3).reshape(*prefix.shape[:-2], -1, prefix.shape[-1])
    return jnp.concatenate([prefix, segments], axis=-2)


def _causal(block: Block, queries: Arrays, keys: Arrays, chunk: int) -> tuple[Arrays, Arrays]:
    """`block` of queries […, g, M, x] that see the keys […, M, h] up to themselves; no span meets keys past its end."""
    spans = [_span(block, queries, keys, chunk, *bounds) for bounds in _spans(keys[0].shape[-2])]
    rows = tuple(jnp.concatenate(parts, axis=-2) for parts in zip(*(out for out, _ in spans), strict=True))
    sums = tuple(functools.reduce(jnp.add, parts) for parts in zip(*(more for _, more in spans), strict=True))
    return rows, sums


def _spans(length: int) -> Iterator[tuple[int, int]]:
    count = min(SPANS, max(1, length // NARROW))
    width = -(-length // (8 * count)) * 8
    return ((start, min(start + width, length)) for start in range(0, length, width))


def _span(block: Block, queries: Arrays, keys: Arrays, chunk: int, start: int, end: int) -> tuple[Arrays, Arrays]:
    *lead, g, M, _ = queries[0].shape
    limit = jnp.broadcast_to(jnp.arange(start + 1, end + 1, dtype=jnp.int32)[:, None], (*lead, g, end - start, 1))
    cut = (*(x[..., start:end, :] for x in queries), limit)
    flat = tuple(x.reshape(*lead, -1, x.shape[-1]) for x in cut)
    rows, sums = _by_blocks(block, flat, tuple(x[..., :end, :] for x in keys), chunk)
    rows = tuple(x.reshape(*lead, g, end - start, x.shape[-1]) for x in rows)
    return rows, tuple(jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, M - end), (0, 0)]) for x in sums)


def _by_blocks(block: Block, queries: Arrays, keys: Arrays, chunk: int) -> tuple[Arrays, Arrays]:
    """`block` on at most `chunk` queries at a time, its sums added up; 0: on all at once."""
    M = queries[0].shape[-2]
    if not chunk or chunk >= M:
        return block(queries, keys)
    parts = tuple(split_time(x, chunk) for x in queries)
    shapes = jax.eval_shape(block, tuple(x[0] for x in parts), keys)[1]

    def step(sums: Any, part: Arrays) -> tuple[Any, Arrays]:
        rows, more = block(part, keys)
        return jax.tree.map(jnp.add, sums, more), rows

    sums, rows = jax.lax.scan(step, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)
    return tuple(join_time(x, M) for x in rows), sums


def split_time(x: jax.Array, chunk: int) -> jax.Array:
    """[…, T, x] → [N, …, t, x], in as many pieces of one length as chunks are needed, zeros behind."""
    *lead, T, last = x.shape
    count = -(-T // chunk)
    width = -(-T // (8 * count)) * 8 if chunk % 8 == 0 else chunk
    x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, count * width - T), (0, 0)])
    return jnp.moveaxis(x.reshape(*lead, count, width, last), -3, 0)


def join_time(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `split_time`."""
    x = jnp.moveaxis(x, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., :length, :]


def _look(queries: Arrays, keys: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs and log-sum-exps."""
    (q, limit), (k, v) = queries, keys
    scores = _scores(q, k, limit)
    top = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return (_product("...ms,...sh->...mh", weights.astype(v.dtype), v) / total, top + jnp.log(total)), ()


def _look_back(queries: Arrays, keys: Arrays) -> tuple[Arrays, Arrays]:
    """Gradients of queries, and of keys and values, from those of the outputs (`through`: their product with these)."""
    (q, do, total, through, limit), (k, v) = queries, keys
    weights = jnp.exp(_scores(q, k, limit) - total)
    slope = weights * (_product("...mh,...sh->...ms", do, v) - through)
    slope, weights = (slope * q.shape[-1] ** -0.5).astype(q.dtype), weights.astype(q.dtype)
    # Time last: on CPU twice as fast as the product that has the keys' own layout.
    dk, dv = (_product("...mh,...ms->...hs", *pair).swapaxes(-1, -2) for pair in ((q, slope), (do, weights)))
    return (_product("...ms,...sh->...mh", slope, k),), (dk, dv)


def _scores(q: jax.Array, k: jax.Array, limit: jax.Array) -> jax.Array:
    """[…, M, S] of queries [.., M, h], scaled, in at least float32; a query sees the first `limit` […, M, 1] keys."""
    # Bound to its queries the mask stays within a block; else JAX makes all blocks' before the loop over layers.
    q, limit = jax.lax.optimization_barrier((q, limit))
    scores = _product("...mh,...sh->...ms", q * q.shape[-1] ** -0.5, k)
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1) < limit, scores, BLOCKED)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _merge(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> Arrays:
    """Outputs and log-sum-exps over two sets of keys as those over both."""
    total = jnp.logaddexp(one[1], other[1])
    return one[0] * jnp.exp(one[1] - total) + other[0] * jnp.exp(other[1] - total), total
