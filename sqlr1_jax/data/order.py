"""Data order as a function of seed and step, so that a resumed run needs no saved position in the data."""

from __future__ import annotations

import numpy as np


def batch_indices(count: int, per_step: int, seed: int, step: int) -> list[int]:
    """Indices of the `per_step` items, out of `count`, that a step (from 0) draws.

    Each epoch draws every item once, in its own random order. A batch may span the end of one epoch and the start of
    the next.

    Raises:
      ValueError: there are no items.
    """
    if count < 1:
        raise ValueError("cannot draw a batch: there are no items")
    positions = range(step * per_step, (step + 1) * per_step)  # in the concatenation of all epochs
    orders = {epoch: _permutation(count, seed, epoch) for epoch in {position // count for position in positions}}
    return [int(orders[position // count][position % count]) for position in positions]


def subset(count: int, size: int, seed: int) -> list[int]:
    """Indices of a random subset of at most `size` of `count` items, ascending; a function of its arguments.

    A smaller subset with the same seed is contained in a larger one.
    """
    return sorted(int(i) for i in _permutation(count, seed, -1)[:size])


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch + 1]).permutation(count)
