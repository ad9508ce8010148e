"""How near two results are."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

# (dtype, tolerance) of gradients. Those of float32 show nothing that float64's don't show more closely.
PRECISIONS = (pytest.param("float32", 1e-5, marks=pytest.mark.nightly), ("float64", 1e-10))


def assert_close(ours: jax.Array | np.ndarray, theirs: np.ndarray, relative: float) -> None:
    """Fails where the largest difference is more than `relative` of the largest of theirs."""
    assert np.abs(np.asarray(ours) - theirs).max() <= relative * np.abs(theirs).max()


def relative_distance(tree: Any, other: Any) -> float:
    """‖difference‖ / ‖other‖ over all leaves."""
    ours, theirs = ([np.asarray(x, float) for x in jax.tree.leaves(t)] for t in (tree, other))
    gap = sum(((a - b) ** 2).sum() for a, b in zip(ours, theirs, strict=True))
    return float((gap / sum((b**2).sum() for b in theirs)) ** 0.5)


def largest_leaf_error(tree: Any, other: Any) -> float:
    """The largest difference in a leaf over its largest entry, of the worst leaf; key biases, near 0, left out."""

    def leaf_error(path: tuple, a: jax.Array, b: jax.Array) -> float:
        return 0.0 if "k_bias" in str(path) else float(np.abs(a - b).max() / np.abs(b).max())

    return max(jax.tree.leaves(jax.tree_util.tree_map_with_path(leaf_error, tree, other)))
