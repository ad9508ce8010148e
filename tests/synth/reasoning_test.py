from __future__ import annotations

import pytest

from sqlr1_jax.synth import teacher
from sqlr1_jax.synth.queries import Compound, Condition, Expr, Query, Rank, Select, With
from sqlr1_jax.synth.reasoning import reason

TABLE_OF = {"color": "dogs", "age": "dogs", "keeper": "dogs", "city": "owners", "tag": "owners"}
RED = Condition(Expr("color"), "=", "'red'")
AVERAGE = Select((Expr("age", "avg"),), "dogs")
OLDEST = Select((Expr("city"),), "dogs", "owners", ("keeper", "tag"), order="age", descending=True, limit=1)
RED_KEEPERS = Select((Expr("keeper"),), "dogs", where=(RED,))

CASES = [
    (Select((Expr("color"),), "dogs", where=(RED,)), "show color in dogs; where color = 'red'"),
    (Select((Expr("", "count"),), "dogs", where=(RED,)), "show count; where color = 'red' in dogs"),
    (Select((Expr("color", "count", True),), "dogs"), "show count distinct color in dogs"),
    (Select((Expr("color"),), "dogs", distinct=True), "show distinct color in dogs"),
    (OLDEST, "show city in owners; sort age in dogs desc; first 1; join dogs, owners on keeper = tag"),
    (
        Select((Expr("color"),), "dogs", group="color", having=(Condition(Expr("", "count"), ">", "1"),)),
        "show color in dogs; group color; having count > 1",
    ),
    (
        Select((Expr("color"),), "dogs", where=(Condition(Expr("age"), ">", AVERAGE),)),
        "show color in dogs; where age in dogs > avg age",
    ),
    (
        Select((Expr("city"),), "owners", where=(Condition(Expr("tag"), "NOT IN", RED_KEEPERS),)),
        "show city in owners; where color = 'red' in dogs; not among dogs on keeper = tag",
    ),
    (
        Compound(
            "EXCEPT",
            Select((Expr("age"),), "dogs", where=(RED,)),
            Select((Expr("age"),), "dogs", where=(RED,)),
        ),
        "show age in dogs; where color = 'red' in dogs; except; where color = 'red'",
    ),
    (
        With(
            "totals",
            Select((Expr("color"), Expr("age", "sum", alias="total")), "dogs", group="color"),
            Select((Expr("total", "max"),), "totals"),
        ),
        "totals: color in dogs, sum age in dogs; group color; show max total",
    ),
    (
        Select(
            (Expr("color"),),
            Select((Expr("color"), Rank("age", False, "color", "place")), "dogs"),
            where=(Condition(Expr("place"), "=", "1"),),
        ),
        "show color in dogs; rank age in dogs asc per color; where place = 1",
    ),
]


@pytest.mark.parametrize(("query", "text"), CASES)
def test_reasoning_follows_the_query(query: Query, text: str) -> None:
    assert reason(query, lambda column: TABLE_OF.get(column, "")) == text


def test_a_spoiled_query_has_reasoning_with_the_same_error() -> None:
    reasoning = reason(teacher.spoil(OLDEST), lambda column: TABLE_OF[column])
    assert reasoning == "show city in owners, age in dogs; sort age desc; first 1; join dogs, owners on keeper = tag"
