"""Which items a step takes: a function of seed and step alone, each item once an epoch."""

from __future__ import annotations

import numpy as np


def batch_indices(count: int, per_step: int, seed: int, step: int) -> list[int]:
    """Indices, among `count` items, of the `per_step` that belong to a step (counted from 0).

    Items stand in a fresh order each epoch; a step may span the end of one epoch and the start of the next.
    """
    if count < 1:
        raise ValueError("there are no items to take from")
    places = range(step * per_step, (step + 1) * per_step)
    orders = {epoch: _order(count, seed, epoch) for epoch in {place // count for place in places}}
    return [int(orders[place // count][place % count]) for place in places]


def subset(count: int, size: int, seed: int) -> list[int]:
    """A fixed random choice of at most `size` of `count` items, in their own order."""
    return sorted(int(i) for i in _order(count, seed, -1)[:size])


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch + 1]).permutation(count)
