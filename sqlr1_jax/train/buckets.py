"""Length buckets: each microbatch is computed in the smallest of a few row layouts that fits it.

Rows arrive on the device in the largest layout, and one program contains all sizes as branches:

    layout   | prefix . . . . | segment . . . | segment . . . |
    cropped  | prefix . . | segment . | segment . |                   '.': padding

The device picks the branch from the global array of rows. So nothing compiles after the first step, and all processes
pick the same branch without communication. Only padding is cropped, so gradients are equal up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import PackedRows, RowLayout


def apply_in_smallest_layout(
    compute: Callable[[Callable[[Any], Any], RowLayout], Any], rows: PackedRows, layout: RowLayout, buckets: int
) -> Any:
    """Calls `compute(crop_tree, smaller)` with the smallest layout of `packing.layout_ladder` that fits `rows` [b, T].

    Args:
      compute: a function whose result has the same shapes for every layout. `crop_tree` crops a tree of arrays [b, T]
        from `layout` to `smaller`.
      rows: rows laid out by `layout`.
      layout: the largest layout.
      buckets: largest number of layouts.
    """
    ladder = packing.layout_ladder(layout, buckets)

    def branch(smaller: RowLayout) -> Callable[[], Any]:
        return lambda: compute(lambda tree: jax.tree.map(lambda x_BT: crop(x_BT, layout, smaller), tree), smaller)

    if len(ladder) == 1:
        return branch(layout)()
    return jax.lax.switch(smallest_layout_index(rows, layout, ladder), [branch(smaller) for smaller in ladder])


def smallest_layout_index(rows: PackedRows, layout: RowLayout, ladder: Sequence[RowLayout]) -> jax.Array:
    """Index in the ladder of the smallest layout that fits rows laid out by `layout`, int32 []."""
    # Each token's index within its prefix or segment. Index + 1 is the width needed to hold the token.
    segments_T = np.arange(layout.segments * layout.segment, dtype=np.int32) % max(1, layout.segment)
    position_1T = jnp.asarray(np.concatenate([np.arange(layout.prefix, dtype=np.int32), segments_T]))[None]
    used_BT = jnp.where(rows.prefix > 0, position_1T + 1, 0)
    prefix, segment = used_BT[:, : layout.prefix].max(), used_BT[:, layout.prefix :].max(initial=0)
    too_small = [(prefix > smaller.prefix) | (segment > smaller.segment) for smaller in ladder[:-1]]
    return jnp.sum(jnp.stack(too_small), dtype=jnp.int32)


def crop(x_BT: jax.Array, layout: RowLayout, smaller: RowLayout) -> jax.Array:
    """An array [b, T] moved from one layout to a smaller one, without the trailing positions of each part."""
    prefix, segments = _split(x_BT, layout)
    return _join(prefix[:, : smaller.prefix], segments[:, :, : smaller.segment])


def uncrop(x_BT: jax.Array, layout: RowLayout, smaller: RowLayout) -> jax.Array:
    """The inverse of `crop`, with zeros at the cropped positions."""
    prefix, segments = _split(x_BT, smaller)
    prefix = jnp.pad(prefix, ((0, 0), (0, layout.prefix - smaller.prefix)))
    return _join(prefix, jnp.pad(segments, ((0, 0), (0, 0), (0, layout.segment - smaller.segment))))


def _split(x_BT: jax.Array, layout: RowLayout) -> tuple[jax.Array, jax.Array]:
    """Prefixes [b, prefix] and segments [b, segments, segment] of rows [b, T]."""
    segments = x_BT[:, layout.prefix :].reshape(x_BT.shape[0], layout.segments, layout.segment)
    return x_BT[:, : layout.prefix], segments


def _join(prefix: jax.Array, segments: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    return jnp.concatenate([prefix, segments.reshape(len(prefix), -1)], axis=1)
