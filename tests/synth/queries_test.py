from __future__ import annotations

import sqlite3

import pytest

from sqlr1_jax.synth.queries import Compound, Condition, Expr, Query, Rank, Select, With, sql, weaker

RED = Condition(Expr("color"), "=", "'red'")
OLD = Condition(Expr("age"), ">", "3")
AVERAGE = Select((Expr("age", "avg"),), "dogs", where=(RED,))

WRITTEN = [
    (
        Select((Expr("color"),), "dogs", where=(RED, OLD)),
        "SELECT color FROM dogs WHERE color = 'red' AND age > 3",
    ),
    (
        Select((Expr("", "count"),), "dogs", where=(RED, OLD), connective="OR"),
        "SELECT count( * ) FROM dogs WHERE color = 'red' OR age > 3",
    ),
    (Select((Expr("color", "count", True),), "dogs"), "SELECT count( DISTINCT color ) FROM dogs"),
    (
        Select((Expr("city"),), "dogs", "owners", ("keeper", "tag"), order="age", descending=True, limit=1),
        "SELECT city FROM dogs JOIN owners ON keeper = tag ORDER BY age DESC LIMIT 1",
    ),
    (
        Select((Expr("color"),), "dogs", group="color", having=(Condition(Expr("", "count"), ">", "1"),)),
        "SELECT color FROM dogs GROUP BY color HAVING count( * ) > 1",
    ),
    (
        Select((Expr("color"),), "dogs", where=(Condition(Expr("age"), ">", AVERAGE),), distinct=True),
        "SELECT DISTINCT color FROM dogs WHERE age > ( SELECT avg( age ) FROM dogs WHERE color = 'red' )",
    ),
    (
        Compound("EXCEPT", Select((Expr("color"),), "dogs"), Select((Expr("color"),), "dogs", where=(OLD,))),
        "SELECT color FROM dogs EXCEPT SELECT color FROM dogs WHERE age > 3",
    ),
    (
        With(
            "totals",
            Select((Expr("color"), Expr("age", "sum", alias="total")), "dogs", group="color"),
            Select((Expr("total", "max"),), "totals"),
        ),
        "WITH totals AS ( SELECT color, sum( age ) AS total FROM dogs GROUP BY color ) SELECT max( total ) FROM totals",
    ),
    (
        Select(
            (Expr("color"),),
            Select((Expr("color"), Rank("age", False, "color", "place")), "dogs"),
            where=(Condition(Expr("place"), "=", "1"),),
        ),
        "SELECT color FROM ( SELECT color, rank( ) OVER ( PARTITION BY color ORDER BY age ASC ) AS place "
        "FROM dogs ) WHERE place = 1",
    ),
]


@pytest.mark.parametrize(("query", "text"), WRITTEN)
def test_sql_is_written_in_one_form_that_sqlite_accepts(query: Query, text: str) -> None:
    assert sql(query) == text
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE owners (tag, city)")
    connection.execute("CREATE TABLE dogs (code, color, age, keeper)")
    connection.execute(text)


def _without(query: Query) -> list[str]:
    return [sql(weakened) for weakened in weaker(query)]


def test_weaker_removes_each_condition_once() -> None:
    query = Select((Expr("color"),), "dogs", where=(RED, OLD), group="color", having=(OLD,))
    assert _without(query) == [
        "SELECT color FROM dogs WHERE age > 3 GROUP BY color HAVING age > 3",
        "SELECT color FROM dogs WHERE color = 'red' GROUP BY color HAVING age > 3",
        "SELECT color FROM dogs WHERE color = 'red' AND age > 3 GROUP BY color",
    ]


def test_weaker_removes_conditions_of_subqueries() -> None:
    nested = Select((Expr("color"),), "dogs", where=(Condition(Expr("age"), ">", AVERAGE),))
    assert _without(nested) == [
        "SELECT color FROM dogs",
        "SELECT color FROM dogs WHERE age > ( SELECT avg( age ) FROM dogs )",
    ]
    assert _without(Select((Expr("color"),), nested)) == [f"SELECT color FROM ( {text} )" for text in _without(nested)]


def test_weaker_of_a_compound_includes_each_side() -> None:
    red, old = (Select((Expr("color"),), "dogs", where=(condition,)) for condition in (RED, OLD))
    unfiltered = "SELECT color FROM dogs"
    assert _without(Compound("INTERSECT", red, old)) == [
        sql(red),
        sql(old),
        f"{unfiltered} INTERSECT {sql(old)}",
        f"{sql(red)} INTERSECT {unfiltered}",
    ]


def test_weaker_of_a_cte_covers_both_queries() -> None:
    inner, outer = (
        Select((Expr("age"),), "dogs", where=(RED,)),
        Select((Expr("age"),), "totals", where=(OLD,)),
    )
    assert _without(With("totals", inner, outer)) == [
        "WITH totals AS ( SELECT age FROM dogs ) SELECT age FROM totals WHERE age > 3",
        "WITH totals AS ( SELECT age FROM dogs WHERE color = 'red' ) SELECT age FROM totals",
    ]
