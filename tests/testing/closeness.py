"""Distances between arrays and between trees of arrays."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

# (dtype, relative tolerance) of gradients. Errors show more clearly in float64, so float32 runs only nightly.
PRECISIONS = (pytest.param("float32", 1e-5, marks=pytest.mark.nightly), ("float64", 1e-10))


def assert_close(actual: jax.Array | np.ndarray, expected: np.ndarray, relative: float) -> None:
    """Fails if the largest difference exceeds `relative` times the largest absolute value of `expected`."""
    assert np.abs(np.asarray(actual) - expected).max() <= relative * np.abs(expected).max()


def relative_distance(tree: Any, expected: Any) -> float:
    """‖tree − expected‖ / ‖expected‖ over all leaves."""
    leaves, expected_leaves = ([np.asarray(x, float) for x in jax.tree.leaves(t)] for t in (tree, expected))
    square_error = sum(((a - b) ** 2).sum() for a, b in zip(leaves, expected_leaves, strict=True))
    return float((square_error / sum((b**2).sum() for b in expected_leaves)) ** 0.5)


def largest_leaf_error(tree: Any, expected: Any) -> float:
    """The largest max|difference| / max|expected| of a leaf, without key biases, whose gradients are near 0."""

    def leaf_error(path: tuple, a: jax.Array, b: jax.Array) -> float:
        return 0.0 if "k_bias" in str(path) else float(np.abs(a - b).max() / np.abs(b).max())

    return max(jax.tree.leaves(jax.tree_util.tree_map_with_path(leaf_error, tree, expected)))
