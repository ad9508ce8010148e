"""What a rule says of a gold, and how the queries that it asks for decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

Verdict = Callable[[Sequence[Outcome]], bool | str]  # of the queries; a text is yes, and more to say


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """What may be wrong with a gold; certain where it has no queries."""

    rule: str
    reason: str
    queries: tuple[str, ...] = ()
    verdict: Verdict = lambda outcomes: True
    about: str = ""  # a table: the suspicion stands only for questions that name it


def differ(outcomes: Sequence[Outcome]) -> bool:
    """Whether both variants ran and gave different multisets of rows."""
    return _ran(outcomes) and len({outcome.result_hash for outcome in outcomes}) > 1


def differ_in_order(outcomes: Sequence[Outcome]) -> bool:
    """Whether both variants ran and gave different rows, or their first rows in another order."""
    return _ran(outcomes) and len({(outcome.result_hash, outcome.rows) for outcome in outcomes}) > 1


def agree(outcomes: Sequence[Outcome]) -> bool:
    """Whether both variants ran and gave the same multiset of rows."""
    return _ran(outcomes) and len({outcome.result_hash for outcome in outcomes}) == 1


def yes(outcomes: Sequence[Outcome]) -> bool:
    """Whether the one query answered 1."""
    return _ran(outcomes) and outcomes[0].rows[:1] == ((1,),)


def _ran(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.kind == OutcomeKind.OK for outcome in outcomes)
