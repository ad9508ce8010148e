"""Attention within shared-prefix rows [prefix | segment | segment | …], with a custom gradient.

Each query attends causally within its own part and, from a segment, to every non-padding prefix token. No [T, T] array
exists in either pass: the forward pass saves its inputs, outputs and log-sum-exps as residuals, and the backward pass
recomputes the scores, one block of queries at a time.

Arrays have heads before time, and time at axis -2: queries [B, K, g, T, x], keys and values [B, K, T, h].
"""

# Which query (row) sees which key (column): prefix of width 4 with 3 tokens, two segments of width 3, "." is padding.
#
#                 p0 p1 p2 .    a0 a1 .    b0 b1 b2
#     prefix  p0   x                                     1. prefix queries on prefix keys: causal
#             p1   x  x
#             p2   x  x  x
#             .    x  x  x x                             a padding query's output is never read
#     seg. 1  a0   x  x  x      x                        2. segment queries on prefix keys: the first `length`
#             a1   x  x  x      x  x                     3. segment queries on their own segment's keys: causal
#             .    x  x  x      x  x  x
#     seg. 2  b0   x  x  x                 x
#             b1   x  x  x                 x  x
#             b2   x  x  x                 x  x  x
#
# In each of the three pairs a query sees the first `limit` keys, so one mask rule serves all: key index < limit.
# Padding is at the end of each part, therefore causality hides it from real queries everywhere but in pair 2.
# A segment query's outputs of pairs 2 and 3 are merged by their log-sum-exps, as flash attention merges blocks
# (Dao et al., 2022).

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqlr1_jax.model.ops import einsum_f32

Arrays = tuple[jax.Array, ...]
# (queries, keys) -> (arrays with one row per query, sums over the block's queries); each side is a tuple of arrays.
Block = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]
MASKED_SCORE = -1e30  # score of a key that the query must not see; finite, so that a query that sees no key is not NaN
# A causal part is cut into at most MAX_SPANS spans of at least MIN_SPAN_WIDTH queries. A span is multiplied only with
# keys up to its end. 8 spans compute 9/16 of all pairs; the causal minimum is 1/2.
MAX_SPANS, MIN_SPAN_WIDTH = 8, 256


class RowParts(NamedTuple):
    """Static sizes of a shared-prefix row and of a block of queries."""

    prefix_width: int  # tokens of the prefix, padding included
    segment_width: int  # tokens of each segment, padding included
    block_rows: int  # query rows (queries × g) per block, which bounds the scores' memory; 0: all at once


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q_BKgTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, length_B: jax.Array, parts: RowParts) -> jax.Array:
    """Attention within shared-prefix rows → [B, K, g, T, h] in the queries' dtype.

    Args:
      q_BKgTh: queries, g for each key-value head.
      k_BKTh: keys.
      v_BKTh: values.
      length_B: non-padding tokens of each row's prefix.
      parts: the widths of the row's parts; T is prefix_width plus a multiple of segment_width.
    """
    return _attend_forward(q_BKgTh, k_BKTh, v_BKTh, length_B, parts)[0]


def _attend_forward(
    q_BKgTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, length_B: jax.Array, parts: RowParts
) -> tuple[jax.Array, Arrays]:
    """The output, and the residuals for the backward pass."""
    pairs = _map_part_pairs(_forward_block, (q_BKgTh,), (k_BKTh, v_BKTh), length_B, parts)
    (prefix, _), (shared, _), (own, _) = pairs
    segments = _merge_softmax(shared, own)
    o_BKgTh, logsumexp_BKgT1 = (_join_parts(*pair) for pair in zip(prefix, segments, strict=True))
    o_BKgTh = o_BKgTh.astype(q_BKgTh.dtype)
    return o_BKgTh, (q_BKgTh, k_BKTh, v_BKTh, length_B, o_BKgTh, logsumexp_BKgT1)


def _attend_backward(parts: RowParts, residuals: Arrays, do_BKgTh: jax.Array) -> tuple:
    """Cotangents of queries, keys and values; None for the lengths."""
    q_BKgTh, k_BKTh, v_BKTh, length_B, o_BKgTh, logsumexp_BKgT1 = residuals
    # Flash attention's delta: rowsum(do · o) equals the sum over all keys in softmax's gradient.
    delta_BKgT = jnp.einsum("...h,...h->...", do_BKgTh, o_BKgTh, preferred_element_type=logsumexp_BKgT1.dtype)
    queries = q_BKgTh, do_BKgTh, logsumexp_BKgT1, delta_BKgT[..., None]
    pairs = _map_part_pairs(_backward_block, queries, (k_BKTh, v_BKTh), length_B, parts)
    ((dq_prefix,), dkv_prefix), ((dq_shared,), dkv_shared), ((dq_own,), dkv_own) = pairs
    dq_BKgTh = _join_parts(dq_prefix, dq_shared + dq_own)
    # The prefix's keys are seen from the prefix and from all segments; a segment's keys only from that segment.
    dkv = zip(dkv_prefix, dkv_shared, dkv_own, strict=True)
    dk_BKTh, dv_BKTh = (_join_parts(from_prefix + from_segments, own) for from_prefix, from_segments, own in dkv)
    return dq_BKgTh.astype(q_BKgTh.dtype), dk_BKTh.astype(k_BKTh.dtype), dv_BKTh.astype(v_BKTh.dtype), None


attend.defvjp(_attend_forward, _attend_backward)


def _map_part_pairs(block: Block, queries: Arrays, keys: Arrays, length_B: jax.Array, parts: RowParts) -> list:
    """Results of `block` on the three pairs: prefix on prefix, segments on prefix, segments on their own keys."""
    prefix_queries, segment_queries = zip(*(_split_parts(x, parts) for x in queries), strict=True)
    prefix_keys, segment_keys = zip(*(_split_parts(x, parts) for x in keys), strict=True)
    B, K, *query_dims = segment_queries[0].shape[:-1]
    # The queries of all segments are the rows of one matrix per key-value head: prefix keys are read once, not copied.
    rows_by_head = tuple(x.reshape(B, K, -1, x.shape[-1]) for x in segment_queries)
    limit = jnp.broadcast_to(length_B[:, None, None, None], (*rows_by_head[0].shape[:-1], 1))
    rows, sums = _scan_query_blocks(block, (*rows_by_head, limit), prefix_keys, parts.block_rows)
    segments_on_prefix = tuple(x.reshape(B, K, *query_dims, x.shape[-1]) for x in rows), sums
    prefix_on_prefix = _map_causal_spans(block, prefix_queries, prefix_keys, parts.block_rows)
    segments_on_own = _map_causal_spans(block, segment_queries, segment_keys, parts.block_rows)
    return [prefix_on_prefix, segments_on_prefix, segments_on_own]


def _split_parts(x: jax.Array, parts: RowParts) -> tuple[jax.Array, jax.Array]:
    """[B, K, …, T, x] → the prefix [B, K, …, S, x] and the segments [B, K, G, …, C, x]."""
    segments = x[..., parts.prefix_width :, :]
    segments = segments.reshape(*x.shape[:-2], -1, parts.segment_width, x.shape[-1])
    return x[..., : parts.prefix_width, :], jnp.moveaxis(segments, -3, 2)


def _join_parts(prefix: jax.Array, segments: jax.Array) -> jax.Array:
    """The inverse of `_split_parts`."""
    segments = jnp.moveaxis(segments, 2, -3).reshape(*prefix.shape[:-2], -1, prefix.shape[-1])
    return jnp.concatenate([prefix, segments], axis=-2)


def _map_causal_spans(block: Block, queries: Arrays, keys: Arrays, block_rows: int) -> tuple[Arrays, Arrays]:
    """Results of `block` where queries […, g, M, x] see the keys […, M, h] up to their own position."""
    M = keys[0].shape[-2]
    count = min(MAX_SPANS, max(1, M // MIN_SPAN_WIDTH))
    width = -(-M // (8 * count)) * 8  # a multiple of 8, the rows of a TPU register
    bounds = [(start, min(start + width, M)) for start in range(0, M, width)]
    spans = [_causal_span(block, queries, keys, block_rows, start, end) for start, end in bounds]
    rows = tuple(jnp.concatenate(arrays, axis=-2) for arrays in zip(*(rows for rows, _ in spans), strict=True))
    sums = tuple(functools.reduce(jnp.add, arrays) for arrays in zip(*(sums for _, sums in spans), strict=True))
    return rows, sums


def _causal_span(
    block: Block, queries: Arrays, keys: Arrays, block_rows: int, start: int, end: int
) -> tuple[Arrays, Arrays]:
    """Results of `block` on queries [start, end) and keys [0, end); sums over queries are padded to all M keys."""
    *lead, g, M, _ = queries[0].shape
    limit = jnp.broadcast_to(jnp.arange(start + 1, end + 1, dtype=jnp.int32)[:, None], (*lead, g, end - start, 1))
    span = (*(x[..., start:end, :] for x in queries), limit)
    rows_by_head = tuple(x.reshape(*lead, -1, x.shape[-1]) for x in span)
    rows, sums = _scan_query_blocks(block, rows_by_head, tuple(x[..., :end, :] for x in keys), block_rows)
    rows = tuple(x.reshape(*lead, g, end - start, x.shape[-1]) for x in rows)
    return rows, tuple(jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, M - end), (0, 0)]) for x in sums)


def _scan_query_blocks(block: Block, queries: Arrays, keys: Arrays, block_rows: int) -> tuple[Arrays, Arrays]:
    """Results of `block` on at most `block_rows` query rows at a time, with its sums added up; 0: all rows at once."""
    M = queries[0].shape[-2]
    if not block_rows or block_rows >= M:
        return block(queries, keys)
    chunks = tuple(split_time(x, block_rows) for x in queries)
    sum_shapes = jax.eval_shape(block, tuple(x[0] for x in chunks), keys)[1]

    def step(sums: Any, chunk: Arrays) -> tuple[Any, Arrays]:
        rows, block_sums = block(chunk, keys)
        return jax.tree.map(jnp.add, sums, block_sums), rows

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sum_shapes)
    sums, rows = jax.lax.scan(step, zeros, chunks)
    return tuple(join_time(x, M) for x in rows), sums


def split_time(x: jax.Array, chunk: int) -> jax.Array:
    """[…, T, x] → [N, …, t, x]: the fewest chunks of one length t, padded with zeros at the end.

    t is `chunk`; if 8 divides `chunk`, the smallest multiple of 8 that needs no more chunks.
    """
    *lead, T, last = x.shape
    count = -(-T // chunk)
    width = -(-T // (8 * count)) * 8 if chunk % 8 == 0 else chunk
    x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, count * width - T), (0, 0)])
    return jnp.moveaxis(x.reshape(*lead, count, width, last), -3, 0)


def join_time(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `split_time`: [N, …, t, x] → […, length, x]."""
    x = jnp.moveaxis(x, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., :length, :]


def _forward_block(queries: Arrays, keys: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs […, M, h] and log-sum-exps […, M, 1] of a block of queries."""
    (q, limit), (k, v) = queries, keys
    scores = _masked_scores(q, k, limit)
    max_score = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - max_score)
    total = weights.sum(-1, keepdims=True)
    return (einsum_f32("...ms,...sh->...mh", weights.astype(v.dtype), v) / total, max_score + jnp.log(total)), ()


def _backward_block(queries: Arrays, keys: Arrays) -> tuple[Arrays, Arrays]:
    """Cotangents of a block's queries, and the block's share of those of keys and values."""
    (q, do, logsumexp, delta, limit), (k, v) = queries, keys
    weights = jnp.exp(_masked_scores(q, k, limit) - logsumexp)
    dscores = weights * (einsum_f32("...mh,...sh->...ms", do, v) - delta)
    dscores, weights = (dscores * q.shape[-1] ** -0.5).astype(q.dtype), weights.astype(q.dtype)
    # The products have time last: on CPU that is twice as fast as a product in the keys' own layout.
    dk, dv = (einsum_f32("...mh,...ms->...hs", *pair).swapaxes(-1, -2) for pair in ((q, dscores), (do, weights)))
    return (einsum_f32("...ms,...sh->...mh", dscores, k),), (dk, dv)


def _masked_scores(q: jax.Array, k: jax.Array, limit: jax.Array) -> jax.Array:
    """Scaled scores […, M, S] of queries […, M, h]; a query sees the first `limit` […, M, 1] keys."""
    # Without the barrier JAX hoists the mask out of the loops over blocks and layers: a [T, T] array for all blocks.
    q, limit = jax.lax.optimization_barrier((q, limit))
    scores = einsum_f32("...mh,...sh->...ms", q * q.shape[-1] ** -0.5, k)
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1) < limit, scores, MASKED_SCORE)


def _merge_softmax(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> Arrays:
    """(outputs, log-sum-exps) over two disjoint sets of keys → those over their union."""
    (o_a, logsumexp_a), (o_b, logsumexp_b) = a, b
    logsumexp = jnp.logaddexp(logsumexp_a, logsumexp_b)
    return o_a * jnp.exp(logsumexp_a - logsumexp) + o_b * jnp.exp(logsumexp_b - logsumexp), logsumexp
