"""R-VES, BIRD's reward-based valid efficiency score, as in mini_dev's evaluation_ves.py (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ITERATIONS = 100  # timed runs per query in the official code
_REWARDS = ((2.0, 1.25), (1.0, 1.0), (0.5, 0.75), (0.25, 0.5))  # (smallest ratio, reward), in descending order
_SLOWEST_REWARD = 0.25


def reward(ratios: Sequence[float]) -> float:
    """The reward of a correct answer, from the ratios of gold time to prediction time in its runs.

    The reward is 0 if the 3-sigma filter leaves no ratio to average, which happens for a single ratio and for equal
    ones: the filter's bounds are strict, and the standard deviation is 0.
    """
    kept = within_three_sigma(ratios) if ratios else []
    return reward_of(sum(kept) / len(kept)) if kept else 0.0


def within_three_sigma(values: Sequence[float]) -> list[float]:
    """The values strictly within 3 standard deviations of their mean."""
    array = np.asarray(values, float)
    mean, reach = np.mean(array), 3 * np.std(array)
    return [value for value in array if mean - reach < value < mean + reach]


def reward_of(tau: float) -> float:
    """The reward of a mean ratio: 0.25 to 1.25, and 0 for a ratio of 0."""
    if tau == 0:
        return 0.0
    return next((value for least, value in _REWARDS if tau >= least), _SLOWEST_REWARD)


def ratios(times: Sequence[tuple[float, float]]) -> list[float]:
    """Gold time over prediction time of each run; empty if any prediction took no measurable time.

    `times` are (gold, prediction) pairs in any unit.
    """
    return [gold / prediction for gold, prediction in times] if all(prediction for _, prediction in times) else []
