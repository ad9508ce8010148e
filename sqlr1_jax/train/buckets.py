"""Length buckets: each microbatch is computed in the smallest of a few row layouts that fits it.

Prefix and segments have sizes of their own, and a layout is a pair of them.

Rows arrive on the device in the largest layout, and one program contains all sizes as branches:

    layout   | prefix . . . . | segment . . . | segment . . . |
    cropped  | prefix . . | segment . | segment . |                   '.': padding

The device picks the branch from the global array of rows. So nothing compiles after the first step, and all processes
pick the same branch without communication. Only padding is cropped, so gradients are equal up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.data.packing import Buckets, PackedRows, RowLayout


def apply_in_smallest_layout(
    compute: Callable[[Callable[[Any], Any], RowLayout], Any], rows: PackedRows, layout: RowLayout, buckets: Buckets
) -> Any:
    """Calls `compute(crop_tree, smaller)` with the smallest layout that fits `rows` [b, T].

    Args:
      compute: a function whose result has the same shapes for every layout. `crop_tree` crops a tree of arrays [b, T]
        from `layout` to `smaller`.
      rows: rows laid out by `layout`.
      layout: the largest layout.
      buckets: numbers of sizes.
    """
    layouts = smaller_layouts(layout, buckets)

    def branch(smaller: RowLayout) -> Callable[[], Any]:
        return lambda: compute(lambda tree: jax.tree.map(lambda x_BT: crop(x_BT, layout, smaller), tree), smaller)

    if len(layouts) == 1:
        return branch(layout)()
    index = smallest_layout_index(rows, layout, buckets)
    return jax.lax.switch(index, [branch(smaller) for smaller in layouts])


def smaller_layouts(layout: RowLayout, buckets: Buckets) -> list[RowLayout]:
    """Every pair of a prefix's and a segment's size, ascending; the last one is `layout`."""
    prefixes, segments = buckets.sizes(layout)
    return [RowLayout(prefix, layout.segments, segment) for prefix in prefixes for segment in segments]


def smallest_layout_index(rows: PackedRows, layout: RowLayout, buckets: Buckets) -> jax.Array:
    """Index in `smaller_layouts` of the smallest one that fits rows laid out by `layout`, int32 []."""
    # Each token's index within its prefix or segment. Index + 1 is the width needed to hold the token.
    segments_T = np.arange(layout.segments * layout.segment, dtype=np.int32) % max(1, layout.segment)
    position_1T = jnp.asarray(np.concatenate([np.arange(layout.prefix, dtype=np.int32), segments_T]))[None]
    used_BT = jnp.where(rows.prefix > 0, position_1T + 1, 0)
    prefix, segment = used_BT[:, : layout.prefix].max(), used_BT[:, layout.prefix :].max(initial=0)
    prefixes, segments = (jnp.asarray(sizes, jnp.int32) for sizes in buckets.sizes(layout))
    too_small = jnp.sum(prefix > prefixes, dtype=jnp.int32), jnp.sum(segment > segments, dtype=jnp.int32)
    return too_small[0] * len(segments) + too_small[1]


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
