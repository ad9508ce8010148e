from __future__ import annotations

from sqlr1_jax.synth import teacher
from sqlr1_jax.synth.queries import Compound, Condition, Expr, Select, With, sql

TOP = Select((Expr("color"),), "dogs", order="age", limit=1)
NESTED = Select((Expr("color"),), "dogs", where=(Condition(Expr("age"), "<", Select((Expr("age", "avg"),), "dogs")),))
UNIQUE = Select((Expr("color"),), "dogs", distinct=True)
COUNTED = Select((Expr("color", "count", True),), "dogs")
PLAIN = Select((Expr("color"),), "dogs")
MEMBER = Select((Expr("city"),), "owners", where=(Condition(Expr("tag"), "IN", Select((Expr("keeper"),), "dogs")),))


def test_habit_names_the_habit_that_applies() -> None:
    assert [teacher.habit(q) for q in (TOP, NESTED)] == ["extra_column"] * 2
    assert [teacher.habit(q) for q in (UNIQUE, COUNTED)] == ["dropped_distinct"] * 2
    others = (PLAIN, MEMBER, Compound("EXCEPT", TOP, UNIQUE), With("totals", PLAIN, UNIQUE))
    assert [teacher.habit(q) for q in others] == [""] * 4


def test_the_extra_column_is_the_one_ordered_by_or_compared() -> None:
    assert sql(teacher.spoil(TOP)) == "SELECT color, age FROM dogs ORDER BY age ASC LIMIT 1"
    assert sql(teacher.spoil(NESTED)) == "SELECT color, age FROM dogs WHERE age < ( SELECT avg( age ) FROM dogs )"


def test_dropped_distinct_removes_distinct() -> None:
    assert sql(teacher.spoil(UNIQUE)) == "SELECT color FROM dogs"
    assert sql(teacher.spoil(COUNTED)) == "SELECT count( color ) FROM dogs"


def test_a_query_without_a_habit_stays_the_same() -> None:
    assert teacher.spoil(PLAIN) == PLAIN
    assert teacher.spoil(MEMBER) == MEMBER
