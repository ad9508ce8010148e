"""The paper's four-part reward (sql-r1.md §2): S = S_f + S_e + S_r + S_l. Pure; knows no model and runs no SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sqlr1_jax import config
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.sql.executor import Outcome

PARTS = ("format", "execution", "result", "length")

# Outcomes of a query that ran to its end (too_large ran, but returned more than gold ever could).
RAN = ("match", "match_empty", "mismatch", "too_large")


def correct(outcome: Outcome, cfg: config.Reward) -> bool:
    """Whether the result counts as gold's. An empty match does so only where cfg.empty_match says it."""
    return outcome.kind == "match" or (outcome.kind == "match_empty" and cfg.empty_match == "match")


def parts(answer: Answer, outcome: Outcome, cfg: config.Reward, length: Callable[[str], int] = len) -> np.ndarray:
    """The parts' weighted values, float32 [R] in the order of PARTS.

    Args:
      answer: what the completion says.
      outcome: what running its SQL gave; of kind no_sql or bad_format where there was none to run.
      cfg: weights, and how an empty match is priced.
      length: counts a text in the unit of L: characters (`len`) or tokens.
    """
    well_formed = not answer.problem
    ran = well_formed and outcome.kind in RAN
    right = ran and correct(outcome, cfg)
    values = (
        1.0 if well_formed else -1.0,
        0.0 if not well_formed else 2.0 if ran else -2.0,
        0.0 if not ran else 3.0 if right else -3.0,
        _length(answer, length) if right else 0.0,
    )
    return np.asarray(values, np.float32) * weights(cfg)


def weights(cfg: config.Reward) -> np.ndarray:
    """What each part is multiplied by, float32 [R] in the order of PARTS."""
    return np.asarray([getattr(cfg, name) for name in PARTS], np.float32)


def _length(answer: Answer, length: Callable[[str], int]) -> float:
    total = length(answer.think) + length(answer.answer)
    share = length(answer.sql or "") / max(1, length(answer.answer))
    return share + 0.5 * min(total / 2048, 1.0)


def stack(groups: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rewards of P groups of G completions as float32 [P, G, R]."""
    return np.asarray(groups, np.float32).reshape(len(groups), -1, len(PARTS))
