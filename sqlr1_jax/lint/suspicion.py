"""What a rule suspects of a gold query, and how the results of its queries decide whether it is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

# Decides a suspicion from its queries' outcomes. A text counts as True and is appended to the reason.
Verdict = Callable[[Sequence[Outcome]], bool | str]


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """What may be wrong with a gold query. A suspicion without queries is certain."""

    rule: str
    reason: str
    queries: tuple[str, ...] = ()  # to run on the database
    verdict: Verdict = lambda outcomes: True
    table: str = ""  # if set, the suspicion counts only for questions that name this table


def differ(outcomes: Sequence[Outcome]) -> bool:
    """Whether all variants ran and gave different multisets of rows."""
    return _all_ran(outcomes) and len({outcome.result_hash for outcome in outcomes}) > 1


def differ_in_order(outcomes: Sequence[Outcome]) -> bool:
    """Whether all variants ran and gave different rows, or their first rows in another order."""
    return _all_ran(outcomes) and len({(outcome.result_hash, outcome.rows) for outcome in outcomes}) > 1


def agree(outcomes: Sequence[Outcome]) -> bool:
    """Whether all variants ran and gave the same multiset of rows."""
    return _all_ran(outcomes) and len({outcome.result_hash for outcome in outcomes}) == 1


def is_true(outcomes: Sequence[Outcome]) -> bool:
    """Whether the only query ran and returned 1."""
    return _all_ran(outcomes) and outcomes[0].rows[:1] == ((1,),)


def _all_ran(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.kind == OutcomeKind.OK for outcome in outcomes)
