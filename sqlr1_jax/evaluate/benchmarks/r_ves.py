"""R-VES, BIRD's reward-based valid efficiency score, as mini_dev's evaluation_ves.py has it (sql-r1.md §7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ITERATIONS = 100  # of the official code
_REWARDS = ((2.0, 1.25), (1.0, 1.0), (0.5, 0.75), (0.25, 0.5))  # for a ratio of at least
_SLOWEST = 0.25


def reward(ratios: Sequence[float]) -> float:
    """The reward of a right answer, from gold's time over the prediction's in each of its runs.

    Ratios that leave no mean get 0: one alone, or all of them equal, since the filter keeps what is within 3
    standard deviations, strictly.
    """
    kept = within_three_sigma(ratios) if ratios else []
    return reward_of(sum(kept) / len(kept)) if kept else 0.0


def within_three_sigma(values: Sequence[float]) -> list[float]:
    """The values strictly within 3 standard deviations of their mean."""
    array = np.asarray(values, float)
    mean, reach = np.mean(array), 3 * np.std(array)
    return [value for value in array if mean - reach < value < mean + reach]


def reward_of(tau: float) -> float:
    """The reward of a mean ratio, 0 to 1.25; only a ratio of 0 gets none."""
    if tau == 0:
        return 0.0
    return next((value for least, value in _REWARDS if tau >= least), _SLOWEST)


def ratios(times: Sequence[tuple[float, float]]) -> list[float]:
    """Gold's time over the prediction's in each run; none when a prediction took no measurable time."""
    return [gold / took for gold, took in times] if all(took for _, took in times) else []
