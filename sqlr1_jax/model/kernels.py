"""Flash attention kernels that never hold the scores in HBM: splash on TPU, cuDNN on GPU.

Both take rows of `attention.Mask` with a static layout: shared-prefix rows, and plain texts, which are only a prefix.
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

BLOCK = 512  # queries and keys in one block of splash's grid; a multiple of 128
# (q_BTHh, k_BTKh, v_BTKh, real_BT) -> o_BTHh, where real_BT is 0 for padding.
Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def shard_map_attention(
    kernel: Kernel, q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, real_BT: jax.Array
) -> jax.Array:
    """Runs a kernel on each device's shard of rows and heads → [B, T, H, h].

    If there are fewer key-value heads than the tensor axis has devices, they are repeated until their number is a
    multiple of it. If the number of query heads is not a multiple of that, each device computes all heads of its
    examples.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q_BTHh, k_BTKh, v_BTKh, real_BT)
    H, K = q_BTHh.shape[2], k_BTKh.shape[2]
    heads_spec = partition_spec(("rows", None, "heads", None), TRAIN_RULES, q_BTHh.shape, mesh)
    repeats = math.lcm(K, mesh.shape["tensor"]) // K
    if H % (K * repeats):
        heads_spec, repeats = partition_spec(("rows",), TRAIN_RULES, q_BTHh.shape, mesh), 1
    k_BTKh, v_BTKh = (jnp.repeat(x, repeats, axis=2) if repeats > 1 else x for x in (k_BTKh, v_BTKh))
    rows_spec = partition_spec(("rows",), TRAIN_RULES, real_BT.shape, mesh)
    # The partitioner cannot split a kernel by itself, so shard_map hands each device its own rows and heads.
    in_specs = (heads_spec, heads_spec, heads_spec, rows_spec)
    sharded = jax.shard_map(kernel, in_specs=in_specs, out_specs=heads_spec, check_vma=False)
    return sharded(q_BTHh, k_BTKh, v_BTKh, real_BT)


@dataclasses.dataclass(frozen=True)
class SharedPrefixMask:
    """The static mask of a row [prefix | segment | segment | …], as a function of positions; it ignores padding.

    Hashable and computed on the fly, so that splash needs no [T, T] array.
    """

    prefix_width: int
    segment_width: int  # 0: the row is only a prefix

    def __call__(self, query: Any, key: Any) -> Any:
        """Whether the queries at `query` see the keys at `key`: both numpy arrays, or traced arrays inside a kernel."""
        causal = key <= query
        if not self.segment_width:
            return causal
        return causal & ((key < self.prefix_width) | (key >= self.segment_start(query)))

    def segment_start(self, query: Any) -> Any:
        """The first position of the query's segment; for a query in the prefix, a position that masks nothing.

        Exact for rows of up to 2²² tokens.
        """
        # In float32, since TPUs have no vector division of integers; + 0.5 keeps the quotient off whole numbers.
        index = ((query - self.prefix_width + 0.5) * (1 / self.segment_width)).astype(np.int32)
        return self.prefix_width + index * self.segment_width

    def all_or_none(self, queries: slice, keys: slice) -> bool | None:
        """True if every query of the block sees every key, False if none sees any, None if the block is mixed."""
        if keys.start >= queries.stop:
            return False  # every key is in the future
        ends = queries.start, queries.stop - 1
        first, last = (self.segment_start(np.int32(position)) if self.segment_width else 0 for position in ends)
        if self.prefix_width <= keys.start and keys.stop <= first:
            return False  # every key is in an earlier segment
        hides_segment = max(keys.start, self.prefix_width) < min(keys.stop, last)
        return True if keys.stop - 1 <= queries.start and not hides_segment else None


def splash(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    real_BT: jax.Array,
    mask: SharedPrefixMask,
    block: int = BLOCK,
    interpret: bool = False,
) -> jax.Array:
    """JAX's splash attention (TPU) → [B, T, H, h]. Blocks that the mask hides are skipped, and no key is gathered.

    Args:
      q_BTHh: queries.
      k_BTKh: keys.
      v_BTKh: values.
      real_BT: 0 for padding.
      mask: the row's layout.
      block: queries and keys per block of the grid, a multiple of 128.
      interpret: run without a TPU, slowly.
    """
    T, H, h = q_BTHh.shape[1:]
    block = min(block, -(-T // 128) * 128)
    padded_T = -(-T // block) * block
    time_padding = ((0, 0), (0, padded_T - T))
    q_BHTh, k_BKTh, v_BKTh = (
        jnp.pad(x, (*time_padding, (0, 0), (0, 0))).swapaxes(1, 2) for x in (q_BTHh * h**-0.5, k_BTKh, v_BTKh)
    )
    # The mask already hides a segment's padding from real queries, but not the prefix's padding from the segments,
    # because that depends on the data. Splash's segment ids hide it: 0 for prefix padding, 1 for all else. Padding
    # attends to padding, so its output stays finite.
    ids_BT = None
    if mask.segment_width:
        hidden_BT = (real_BT == 0) & (jnp.arange(T) < mask.prefix_width)[None, :]
        ids_BT = jnp.pad(1 - hidden_BT.astype(jnp.int32), time_padding, constant_values=1)
    attend_row = _splash_row_kernel(mask, padded_T, H, block, interpret)
    return jax.vmap(attend_row)(q_BHTh, k_BKTh, v_BKTh, ids_BT).swapaxes(1, 2)[:, :T]


def _splash_row_kernel(
    mask: SharedPrefixMask, length: int, heads: int, block: int, interpret: bool
) -> Callable[..., jax.Array]:
    """Splash on one row: (q [H, T, h], k [K, T, h], v [K, T, h], ids [T] or None) → [H, T, h]."""
    # Imported here: only a machine that runs or compiles for a TPU needs Pallas.
    from jax.experimental.pallas.ops.tpu import splash_attention as ops

    uniform_blocks = np.zeros((block, block), bool), np.ones((block, block), bool)

    class ComputedMask(ops.Mask):
        """A mask that splash's preparation reads block by block and that the kernel computes."""

        # Splash computes masks in the kernel if these attributes exist; otherwise it loads arrays from HBM.
        shape = (length, length)
        q_sequence = np.arange(length, dtype=np.int32)
        mask_function = mask

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            queries, keys = index
            # Fully visible and fully masked blocks reuse two arrays, since a row of 20,480 tokens has 1,600 blocks.
            if (uniform := mask.all_or_none(queries, keys)) is not None:
                return uniform_blocks[uniform]
            return mask(np.arange(queries.start, queries.stop)[:, None], np.arange(keys.start, keys.stop)[None])

    block_fields = [field.name for field in dataclasses.fields(ops.BlockSizes) if field.name.startswith("block_")]
    sizes = ops.BlockSizes(**dict.fromkeys(block_fields, block))  # type: ignore[arg-type]
    head_masks = ops.MultiHeadMask([ComputedMask()] * heads)
    kernel = ops.make_splash_mha_single_device(head_masks, block_sizes=sizes, interpret=interpret)
    return lambda q, k, v, ids: kernel(q, k, v, segment_ids=None if ids is None else ops.SegmentIds(ids, ids))


def cudnn(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    real_BT: jax.Array,
    mask: SharedPrefixMask,
    implementation: str = "cudnn",
) -> jax.Array:
    """CuDNN's flash attention (GPU) → [B, T, H, h].

    Args:
      q_BTHh: queries.
      k_BTKh: keys.
      v_BTKh: values.
      real_BT: 0 for padding.
      mask: the row's layout.
      implementation: of `jax.nn.dot_product_attention`; "xla" computes the same on any platform.
    """
    # cuDNN's causal mask has no offset, so there are two calls. The first is causal, on the prefix. The second has the
    # N = B·G segments as its batch; each has L = S + C keys (the prefix's, then its own) and one mask [C, L] for all
    # heads.
    #
    #     keys      prefix, S        own, C
    #     mask    [ real_NS        | causal_CC ]
    attention = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    S, C = mask.prefix_width, mask.segment_width
    prefix_out = attention(q_BTHh[:, :S], k_BTKh[:, :S], v_BTKh[:, :S], is_causal=True)
    if not C:
        return prefix_out
    B, H, h = q_BTHh.shape[0], q_BTHh.shape[2], q_BTHh.shape[3]
    G = (q_BTHh.shape[1] - S) // C
    q_NCHh = q_BTHh[:, S:].reshape(B * G, C, H, h)
    k_NLKh, v_NLKh = (_prepend_prefix(x, S, C) for x in (k_BTKh, v_BTKh))
    real_NS = jnp.repeat(real_BT[:, :S] > 0, G, axis=0)
    causal_CC = jnp.tri(C, dtype=bool)
    mask_N1CL = jnp.concatenate(
        [
            jnp.broadcast_to(real_NS[:, None, None, :], (B * G, 1, C, S)),
            jnp.broadcast_to(causal_CC[None, None], (B * G, 1, C, C)),
        ],
        axis=-1,
    )
    segments_out = attention(q_NCHh, k_NLKh, v_NLKh, mask=mask_N1CL)
    return jnp.concatenate([prefix_out, segments_out.reshape(B, G * C, H, h)], axis=1)


def _prepend_prefix(x_BTKh: jax.Array, prefix_width: int, segment_width: int) -> jax.Array:
    """Keys or values [B, S + G·C, K, h] → [B·G, S + C, K, h]: each segment after a copy of its row's prefix."""
    B, T, K, h = x_BTKh.shape
    G = (T - prefix_width) // segment_width
    prefix = jnp.broadcast_to(x_BTKh[:, None, :prefix_width], (B, G, prefix_width, K, h))
    segments = x_BTKh[:, prefix_width:].reshape(B, G, segment_width, K, h)
    return jnp.concatenate([prefix, segments], axis=2).reshape(B * G, prefix_width + segment_width, K, h)
