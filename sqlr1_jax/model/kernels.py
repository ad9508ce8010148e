"""Attention over rows by kernels that never hold the scores: splash on TPU, cuDNN on GPU; each device its own share.

Both take rows of `attention.Mask` with a known layout: strided ones, and plain texts, which are all prefix.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.distributed.sharding import TRAIN_RULES, partition_spec

BLOCK = 512  # queries and keys that a turn of splash's kernel holds; a multiple of 128
Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def shard_map_attention(
    kernel: Kernel, q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, real_BT: jax.Array
) -> jax.Array:
    """`kernel(q, k, v, real)` on each device's rows and heads: the partitioner cannot cut a kernel by itself.

    Where a tensor axis is wider than the key-value heads, they are repeated until it divides them; where that is more
    than the query heads, every device computes all heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q_BTHh, k_BTKh, v_BTKh, real_BT)
    H, K = q_BTHh.shape[2], k_BTKh.shape[2]
    heads = partition_spec(("rows", None, "heads", None), TRAIN_RULES, q_BTHh.shape, mesh)
    repeats = math.lcm(K, mesh.shape["tensor"]) // K
    if H % (K * repeats):
        heads, repeats = partition_spec(("rows",), TRAIN_RULES, q_BTHh.shape, mesh), 1
    k_BTKh, v_BTKh = (jnp.repeat(x, repeats, axis=2) if repeats > 1 else x for x in (k_BTKh, v_BTKh))
    rows = partition_spec(("rows",), TRAIN_RULES, real_BT.shape, mesh)
    mapped = jax.shard_map(kernel, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return mapped(q_BTHh, k_BTKh, v_BTKh, real_BT)


@dataclasses.dataclass(frozen=True)
class SharedPrefixMask:
    """Which keys a query of a row [prefix | segment | segment | …] sees, by their places, padding apart."""

    prefix: int
    segment: int  # 0: the prefix is all

    def __call__(self, query: Any, key: Any) -> Any:
        """Whether they do; numpy's arrays or a kernel's."""
        past = key <= query
        return past & ((key < self.prefix) | (key >= self.start(query))) if self.segment else past

    def start(self, query: Any) -> Any:
        """Where a query's segment begins; of the prefix's queries, a place that hides nothing.

        In floats, since TPUs divide no vectors of integers; exact for rows of up to 2²² tokens.
        """
        before = ((query - self.prefix + 0.5) * (1 / self.segment)).astype(np.int32)
        return self.prefix + before * self.segment

    def all_or_none(self, queries: slice, keys: slice) -> bool | None:
        """Whether the queries see all the keys, or none; None: some."""
        if keys.start >= queries.stop:
            return False
        ends = queries.start, queries.stop - 1
        first, last = (self.start(np.int32(place)) if self.segment else 0 for place in ends)
        if self.prefix <= keys.start and keys.stop <= first:
            return False
        hides = max(keys.start, self.prefix) < min(keys.stop, last)
        return True if keys.stop - 1 <= queries.start and not hides else None


def splash(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    real_BT: jax.Array,
    sees: SharedPrefixMask,
    block: int = BLOCK,
    interpret: bool = False,
) -> jax.Array:
    """JAX's splash attention → [B, T, H, h]: blocks that `sees` hides are skipped, so no key is gathered.

    The end of a segment's padding is hidden by causality, the prefix's by ids: 1 where a segment may look, 0 where the
    prefix is padding, which sees itself and so stays finite.
    """
    T, H, h = q_BTHh.shape[1:]
    block = min(block, -(-T // 128) * 128)
    length = -(-T // block) * block
    widths = ((0, 0), (0, length - T))
    q_BHTh, k_BKTh, v_BKTh = (
        jnp.pad(x, (*widths, (0, 0), (0, 0))).swapaxes(1, 2) for x in (q_BTHh * h**-0.5, k_BTKh, v_BTKh)
    )
    ids_BT = None
    if sees.segment:
        hidden_BT = (real_BT == 0) & (jnp.arange(T) < sees.prefix)[None, :]
        ids_BT = jnp.pad(1 - hidden_BT.astype(jnp.int32), widths, constant_values=1)
    one = _splash_kernel(sees, length, H, block, interpret)
    return jax.vmap(one)(q_BHTh, k_BKTh, v_BKTh, ids_BT).swapaxes(1, 2)[:, :T]


def _splash_kernel(
    sees: SharedPrefixMask, length: int, heads: int, block: int, interpret: bool
) -> Callable[..., jax.Array]:
    """On one row, heads before time; imported here, since a machine without a TPU needs none of it."""
    from jax.experimental.pallas.ops.tpu import splash_attention as ops

    uniform = np.zeros((block, block), bool), np.ones((block, block), bool)

    class Rows(ops.Mask):
        """What splash's preparation asks of a mask that the kernel computes."""

        shape = (length, length)
        q_sequence = np.arange(length, dtype=np.int32)
        mask_function = sees

        def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
            queries, keys = part
            if (same := sees.all_or_none(queries, keys)) is not None:
                return uniform[same]
            return sees(np.arange(queries.start, queries.stop)[:, None], np.arange(keys.start, keys.stop)[None])

    names = [field.name for field in dataclasses.fields(ops.BlockSizes) if field.name.startswith("block_")]
    sizes = ops.BlockSizes(**dict.fromkeys(names, block))  # type: ignore[arg-type]
    mask = ops.MultiHeadMask([Rows()] * heads)
    kernel = ops.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
    return lambda q, k, v, ids: kernel(q, k, v, segment_ids=None if ids is None else ops.SegmentIds(ids, ids))


def cudnn(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    real_BT: jax.Array,
    sees: SharedPrefixMask,
    implementation: str = "cudnn",
) -> jax.Array:
    """CuDNN's flash attention → [B, T, H, h].

    The prefix is a causal text. cuDNN's causal mask has no offset, so each segment is handed the prefix's keys beside
    its own and a mask [C, S + C], which all heads share. `implementation` is JAX's name of it; "xla" computes the same.
    """
    attention = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    S, C = sees.prefix, sees.segment
    prefix = attention(q_BTHh[:, :S], k_BTKh[:, :S], v_BTKh[:, :S], is_causal=True)
    if not C:
        return prefix
    B, H, h = q_BTHh.shape[0], q_BTHh.shape[2], q_BTHh.shape[3]
    G = (q_BTHh.shape[1] - S) // C
    q_NCHh = q_BTHh[:, S:].reshape(B * G, C, H, h)
    k_NLKh, v_NLKh = (_beside(x, S, C) for x in (k_BTKh, v_BTKh))
    real_NS = jnp.repeat(real_BT[:, :S] > 0, G, axis=0)
    past_CC = jnp.tri(C, dtype=bool)
    mask_N1CL = jnp.concatenate(
        [
            jnp.broadcast_to(real_NS[:, None, None, :], (B * G, 1, C, S)),
            jnp.broadcast_to(past_CC[None, None], (B * G, 1, C, C)),
        ],
        axis=-1,
    )
    segments = attention(q_NCHh, k_NLKh, v_NLKh, mask=mask_N1CL)
    return jnp.concatenate([prefix, segments.reshape(B, G * C, H, h)], axis=1)


def _beside(x_BTKh: jax.Array, prefix: int, segment: int) -> jax.Array:
    """[B, S + G·C, K, h] → [B·G, S + C, K, h]: the prefix in front of each segment."""
    B, T, K, h = x_BTKh.shape
    G = (T - prefix) // segment
    shared = jnp.broadcast_to(x_BTKh[:, None, :prefix], (B, G, prefix, K, h))
    own = x_BTKh[:, prefix:].reshape(B, G, segment, K, h)
    return jnp.concatenate([shared, own], axis=2).reshape(B * G, prefix + segment, K, h)
