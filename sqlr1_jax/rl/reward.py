"""The reward of a completion: the paper's four parts, and four more that have weight 0 by default.

`PARTS` is the one list of parts. A part sees the answer, the outcome of its SQL and the gold SQL, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from sqlr1_jax.config import RewardConfig
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.rl.clause_agreement import clause_agreement
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

LENGTH_CAP = 2048  # length at which the length part stops growing


def correct(outcome: Outcome, config: RewardConfig) -> bool:
    """Whether the result counts as a match. Two equal empty results count only with config.empty_match="match"."""
    return outcome.kind.correct and (outcome.kind != OutcomeKind.MATCH_EMPTY or config.empty_match == "match")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What the parts are computed from: one completion after its SQL was executed."""

    answer: Answer
    outcome: Outcome
    gold_sql: str
    measure: Callable[[str], int]  # length of a text, in characters or tokens
    well_formed: bool  # the completion has the answer form
    ran: bool  # ... and its SQL ran
    correct: bool  # ... and its result matches the gold result


# The paper's table. Each row is a kind of outcome; totals are with all weights 1.
#
#   outcome                                        format  execution  result    length      total
#   match                                             1        2         3     0 to 1.5   6 to 7.5
#   mismatch, too_large                               1        2        -3        0           0
#   syntax_error, runtime_error, timeout, denied      1       -2         0        0          -1
#   no_sql, bad_format                               -1        0         0        0          -1
#
# match_empty is a mismatch, or a match with empty_match="match". After gold_error the group is dropped.


def _length(attempt: Attempt) -> float:
    """Share of the answer that is SQL, plus up to 0.5 for the whole length; only for a correct result."""
    if not attempt.correct:
        return 0.0
    answer, measure = attempt.answer, attempt.measure
    total = measure(answer.think) + measure(answer.answer)
    sql_share = measure(answer.sql or "") / max(1, measure(answer.answer))
    return sql_share + 0.5 * min(total / LENGTH_CAP, 1.0)


def _overlap(attempt: Attempt) -> float:
    """F1 of the cells of both results. Two empty results overlap fully, but count only if they are correct."""
    empty_mismatch = attempt.outcome.kind == OutcomeKind.MATCH_EMPTY and not attempt.correct
    return attempt.outcome.overlap if attempt.ran and not empty_mismatch else 0.0


PARTS: dict[str, Callable[[Attempt], float]] = {
    "format": lambda a: 1.0 if a.well_formed else -1.0,
    "execution": lambda a: (2.0 if a.ran else -2.0) if a.well_formed else 0.0,
    "result": lambda a: (3.0 if a.correct else -3.0) if a.ran else 0.0,
    "length": _length,
    "arctic": lambda a: 1.0 if a.correct else 0.1 if a.ran else 0.0,  # the whole reward of Arctic-Text2SQL-R1
    "overlap": _overlap,
    "schema_recall": lambda a: schema_recall(a.answer.sql or "", a.gold_sql) if a.well_formed else 0.0,
    "clauses": lambda a: clause_agreement(a.answer.sql or "", a.gold_sql) if a.well_formed else 0.0,
}
PAPER_PARTS = ("format", "execution", "result", "length")  # logged even if their weight is 0


def part_names(config: RewardConfig) -> tuple[str, ...]:
    """Names of the R parts in use, in the order of `PARTS`: the paper's, and others whose weight is not 0."""
    return tuple(name for name in PARTS if name in PAPER_PARTS or getattr(config, name))


def part_weights(config: RewardConfig) -> np.ndarray:
    """Weights of the parts in use, float32 [R] in the order of `part_names`."""
    return np.asarray([getattr(config, name) for name in part_names(config)], np.float32)


def weighted_parts(
    answer: Answer, outcome: Outcome, config: RewardConfig, measure: Callable[[str], int] = len, gold_sql: str = ""
) -> np.ndarray:
    """Values of the parts in use times their weights, float32 [R] in the order of `part_names`.

    Args:
      answer: what was parsed from the completion.
      outcome: the outcome of its SQL; of kind no_sql or bad_format if there was no SQL to run.
      config: the weights, and whether two empty results match.
      measure: length of a text in characters (`len`) or in tokens.
      gold_sql: the gold query, which only schema_recall and clauses read.
    """
    well_formed = not answer.problem
    ran = well_formed and outcome.kind.ran
    attempt = Attempt(answer, outcome, gold_sql, measure, well_formed, ran, ran and correct(outcome, config))
    values = [PARTS[name](attempt) for name in part_names(config)]
    return np.asarray(values, np.float32) * part_weights(config)


def schema_recall(sql: str, gold_sql: str) -> float:
    """Fraction of the gold query's tables and columns that `sql` names too; 0 if either cannot be parsed."""
    gold_items = schema_items(gold_sql)
    return len(gold_items & schema_items(sql)) / len(gold_items) if gold_items else 0.0


@functools.lru_cache(maxsize=16_384)
def schema_items(sql: str) -> frozenset[tuple[str, str]]:
    """(kind, lower-case name) of each table and column that a statement names; empty if it cannot be parsed.

    Names that the statement itself defines, by WITH or AS, are left out, because they are not part of the schema.
    """
    import sqlglot
    from sqlglot import expressions

    try:
        tree = sqlglot.parse_one(sql, read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return frozenset()
    aliases = {alias.alias.lower() for alias in tree.find_all(expressions.CTE, expressions.Alias)}
    tables = {("table", table.name.lower()) for table in tree.find_all(expressions.Table)}
    columns = {("column", column.name.lower()) for column in tree.find_all(expressions.Column)}
    return frozenset(item for item in tables | columns if item[1] and item[1] not in aliases)
