"""Length buckets: a microbatch is computed in the smallest of a few layouts that takes it, chosen on the device.

Rows reach the device in the longest layout, and one program holds all sizes as branches, so that nothing compiles
later and hosts need not agree: they choose by the same global array. What is cut off is padding, so that gradients
stay the same but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import PackedRows, RowLayout


def on_smallest_layout(
    compute: Callable[[Callable[[Any], Any], RowLayout], Any], rows: PackedRows, layout: RowLayout, buckets: int
) -> Any:
    """What `compute` gives for the smallest layout that takes `rows` [b, T]; it is told the layout, and how to cut."""
    ladder = packing.layout_ladder(layout, buckets)

    def branch(chosen: RowLayout) -> Callable[[], Any]:
        return lambda: compute(lambda tree: jax.tree.map(lambda x_BT: crop(x_BT, layout, chosen), tree), chosen)

    if len(ladder) == 1:
        return branch(layout)()
    return jax.lax.switch(smallest_layout_index(rows, layout, ladder), [branch(chosen) for chosen in ladder])


def smallest_layout_index(rows: PackedRows, layout: RowLayout, ladder: Sequence[RowLayout]) -> jax.Array:
    """The place in the ladder of the smallest layout that takes rows laid out by `layout`."""
    place_1T = jnp.asarray(_places(layout))[None]
    used_BT = jnp.where(rows.prefix > 0, place_1T + 1, 0)
    prefix, segment = used_BT[:, : layout.prefix].max(), used_BT[:, layout.prefix :].max(initial=0)
    too_small = [(prefix > one.prefix) | (segment > one.segment) for one in ladder[:-1]]
    return jnp.sum(jnp.stack(too_small), dtype=jnp.int32)


def _places(layout: RowLayout) -> np.ndarray:
    """The place of each of a row's places in its part."""
    segments = np.arange(layout.segments * layout.segment, dtype=np.int32) % max(1, layout.segment)
    return np.concatenate([np.arange(layout.prefix, dtype=np.int32), segments])


def crop(x_BT: jax.Array, layout: RowLayout, smaller: RowLayout) -> jax.Array:
    """From places of one layout to those of a smaller one."""
    prefix, segments = _parts(x_BT, layout)
    return _joined(prefix[:, : smaller.prefix], segments[:, :, : smaller.segment])


def uncrop(x_BT: jax.Array, layout: RowLayout, smaller: RowLayout) -> jax.Array:
    """The inverse of `cut`, zeros where something was cut off."""
    prefix, segments = _parts(x_BT, smaller)
    prefix = jnp.pad(prefix, ((0, 0), (0, layout.prefix - smaller.prefix)))
    return _joined(prefix, jnp.pad(segments, ((0, 0), (0, 0), (0, layout.segment - smaller.segment))))


def _parts(x_BT: jax.Array, layout: RowLayout) -> tuple[jax.Array, jax.Array]:
    segments = x_BT[:, layout.prefix :].reshape(x_BT.shape[0], layout.segments, layout.segment)
    return x_BT[:, : layout.prefix], segments


def _joined(prefix: jax.Array, segments: jax.Array) -> jax.Array:
    return jnp.concatenate([prefix, segments.reshape(len(prefix), -1)], axis=1)
