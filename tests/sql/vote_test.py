from __future__ import annotations

import pytest

from sqlr1_jax.sql.compare import canonical_hash
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.sql.vote import vote


def ran(*cells: object) -> Outcome:
    return Outcome(OutcomeKind.MISMATCH, result_hash=canonical_hash([(cell,) for cell in cells]))


FAILED = Outcome(OutcomeKind.SYNTAX_ERROR)


@pytest.mark.parametrize(
    ("outcomes", "winner"),
    [
        ([], None),
        ([FAILED, Outcome(OutcomeKind.TIMEOUT)], None),
        ([FAILED, ran(1)], 1),
        ([ran(1), ran(2), ran(2)], 1),
        ([ran(1), ran(2), ran(2), ran(1)], 0),  # a tie goes to the group seen first
        ([FAILED, FAILED, FAILED, ran(3), ran(2), ran(2)], 4),
        ([ran(1), ran(), ran()], 1),  # an empty result is a result
        ([ran(1, 2), ran(3), ran(2, 1)], 0),  # row order does not divide a group
    ],
)
def test_largest_group_of_equal_results_wins(outcomes: list[Outcome], winner: int | None) -> None:
    assert vote(outcomes) == winner
