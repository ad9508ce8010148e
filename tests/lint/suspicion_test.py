from __future__ import annotations

from collections.abc import Sequence

import pytest

from sqlr1_jax.lint import suspicion
from sqlr1_jax.lint.suspicion import Suspicion
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

A = Outcome(OutcomeKind.OK, rows=((1,), (2,)), result_hash="a")
B = Outcome(OutcomeKind.OK, rows=((1,),), result_hash="b")
REORDERED = Outcome(OutcomeKind.OK, rows=((2,), (1,)), result_hash="a")
FAILED = Outcome(OutcomeKind.TIMEOUT)


@pytest.mark.parametrize(
    ("outcomes", "differ", "in_order", "agree"),
    [
        ([A, A], False, False, True),
        ([A, B], True, True, False),
        ([A, REORDERED], False, True, True),
        ([A, FAILED], False, False, False),
    ],
)
def test_results_of_variants_differ_or_agree(
    outcomes: Sequence[Outcome], differ: bool, in_order: bool, agree: bool
) -> None:
    assert suspicion.differ(outcomes) is differ
    assert suspicion.differ_in_order(outcomes) is in_order
    assert suspicion.agree(outcomes) is agree


def test_is_true_means_that_the_query_returned_one() -> None:
    assert suspicion.is_true([B])
    assert not suspicion.is_true([Outcome(OutcomeKind.OK, rows=((0,),))])
    assert not suspicion.is_true([Outcome(OutcomeKind.OK)])
    assert not suspicion.is_true([FAILED])


def test_a_suspicion_without_queries_is_certain() -> None:
    assert Suspicion("clock", "it asks for the time").verdict([]) is True
