from __future__ import annotations

from collections.abc import Sequence

import pytest

from sqlr1_jax.data.lint import suspicion
from sqlr1_jax.data.lint.suspicion import Suspicion
from sqlr1_jax.sql.executor import Outcome

A, B = Outcome("ok", rows=((1,), (2,)), result_hash="a"), Outcome("ok", rows=((1,),), result_hash="b")
TURNED = Outcome("ok", rows=((2,), (1,)), result_hash="a")
FAILED = Outcome("timeout")


@pytest.mark.parametrize(
    ("outcomes", "differ", "in_order", "agree"),
    [
        ([A, A], False, False, True),
        ([A, B], True, True, False),
        ([A, TURNED], False, True, True),
        ([A, FAILED], False, False, False),
    ],
)
def test_variants_decide(outcomes: Sequence[Outcome], differ: bool, in_order: bool, agree: bool) -> None:
    assert suspicion.differ(outcomes) is differ
    assert suspicion.differ_in_order(outcomes) is in_order
    assert suspicion.agree(outcomes) is agree


def test_one_query_says_yes_by_answering_one() -> None:
    assert suspicion.yes([B])
    assert not suspicion.yes([Outcome("ok", rows=((0,),))])
    assert not suspicion.yes([Outcome("ok")])
    assert not suspicion.yes([FAILED])


def test_without_queries_it_is_certain() -> None:
    assert Suspicion("clock", "it asks for the time").verdict([]) is True
