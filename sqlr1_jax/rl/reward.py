"""The paper's four-part reward (sql-r1.md §2), S = S_f + S_e + S_r + S_l, and parts that others add or pay instead.

Pure; knows no model and runs no SQL.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from sqlr1_jax import config
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

PAPER = ("format", "execution", "result", "length")
OTHERS = ("arctic", "overlap", "schema_recall")  # in a run's numbers only where their weight is not 0


def correct(outcome: Outcome, cfg: config.RewardConfig) -> bool:
    """Whether the result counts as gold's. An empty match does so only where cfg.empty_match says it."""
    return outcome.kind.correct and (outcome.kind != OutcomeKind.MATCH_EMPTY or cfg.empty_match == "match")


def names(cfg: config.RewardConfig) -> tuple[str, ...]:
    """The R parts that are paid, in their order: the paper's, and others with a weight."""
    return PAPER + tuple(name for name in OTHERS if getattr(cfg, name))


def weights(cfg: config.RewardConfig) -> np.ndarray:
    """What each part is multiplied by, float32 [R] in the order of `names`."""
    return np.asarray([getattr(cfg, name) for name in names(cfg)], np.float32)


def parts(
    answer: Answer, outcome: Outcome, cfg: config.RewardConfig, length: Callable[[str], int] = len, gold: str = ""
) -> np.ndarray:
    """The parts' weighted values, float32 [R] in the order of `names`.

    Args:
      answer: what the completion says.
      outcome: what running its SQL gave; of kind no_sql or bad_format where there was none to run.
      cfg: weights, and how an empty match is priced.
      length: counts a text in the unit of L: characters (`len`) or tokens.
      gold: the gold SQL, which schema_recall alone reads.
    """
    well_formed = not answer.problem
    ran = well_formed and outcome.kind.ran
    right = ran and correct(outcome, cfg)
    values = [
        1.0 if well_formed else -1.0,
        0.0 if not well_formed else 2.0 if ran else -2.0,
        0.0 if not ran else 3.0 if right else -3.0,
        _length(answer, length) if right else 0.0,
    ]
    others = {
        "arctic": lambda: 1.0 if right else 0.1 if ran else 0.0,
        "overlap": lambda: outcome.overlap if ran and (right or outcome.kind != OutcomeKind.MATCH_EMPTY) else 0.0,
        "schema_recall": lambda: schema_recall(answer.sql or "", gold) if well_formed else 0.0,
    }
    values += [others[name]() for name in names(cfg)[len(PAPER) :]]
    return np.asarray(values, np.float32) * weights(cfg)


def schema_recall(sql: str, gold: str) -> float:
    """The share of gold's tables and columns that `sql` names too, 0 to 1; 0 where either cannot be parsed."""
    wanted = schema_items(gold)
    return len(wanted & schema_items(sql)) / len(wanted) if wanted else 0.0


@functools.lru_cache(maxsize=16_384)
def schema_items(sql: str) -> frozenset[tuple[str, str]]:
    """(kind, name in lower case) of each table and column that a statement names; none where it cannot be parsed.

    Names that the statement makes up itself, of its WITH clauses and AS, are not of the schema.
    """
    import sqlglot
    from sqlglot import expressions

    try:
        tree = sqlglot.parse_one(sql, read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return frozenset()
    made = {alias.alias.lower() for alias in tree.find_all(expressions.CTE, expressions.Alias)}
    tables = {("table", table.name.lower()) for table in tree.find_all(expressions.Table)}
    columns = {("column", column.name.lower()) for column in tree.find_all(expressions.Column)}
    return frozenset(item for item in tables | columns if item[1] and item[1] not in made)


def _length(answer: Answer, length: Callable[[str], int]) -> float:
    total = length(answer.think) + length(answer.answer)
    share = length(answer.sql or "") / max(1, length(answer.answer))
    return share + 0.5 * min(total / 2048, 1.0)


def stack(groups: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rewards of P groups of G completions as float32 [P, G, R]."""
    return np.asarray(groups, np.float32)
