from __future__ import annotations

import sqlite3

import pytest

from sqlr1_jax.synth.checks import is_sound
from sqlr1_jax.synth.queries import Compound, Condition, Expr, Query, Rank, Select


@pytest.fixture(scope="module")
def dogs() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE dogs (code, color, age, weight)")
    rows = [(1, "red", 3, 10), (2, "red", 5, 20), (3, "blue", 5, 30), (4, "green", 9, 40), (5, "red", 1, 50)]
    connection.executemany("INSERT INTO dogs VALUES (?, ?, ?, ?)", rows)
    return connection


def _where(column: str, op: str, value: str) -> Condition:
    return Condition(Expr(column), op, value)


def _top(order: str, limit: int, descending: bool = True) -> Select:
    return Select((Expr("code"),), "dogs", order=order, descending=descending, limit=limit)


CODE = Select((Expr("code"),), "dogs")
RANKED = Select((Expr("code"), Rank("weight", True)), "dogs")

SOUND = {
    "a filter": CODE._replace(where=(_where("color", "=", "'red'"),)),
    "two filters": CODE._replace(where=(_where("color", "=", "'red'"), _where("age", ">", "1"))),
    "a maximum without ties": _top("weight", 1),
    "ties beyond the limit": _top("age", 2, descending=False),
    "distinct with repeats": Select((Expr("color"),), "dogs", distinct=True),
    "ranks": RANKED,
    "groups": Select((Expr("color"), Expr("", "count")), "dogs", group="color"),
}
UNSOUND = {
    "no rows": CODE._replace(where=(_where("color", "=", "'pink'"),)),
    "a count of no rows": Select((Expr("", "count"),), "dogs", where=(_where("age", ">", "99"),)),
    "a sum over no rows": Select((Expr("age", "sum"),), "dogs", where=(_where("age", ">", "99"),)),
    "a filter that drops nothing": CODE._replace(where=(_where("age", ">", "0"),)),
    "a filter implied by another": CODE._replace(where=(_where("age", ">", "3"), _where("age", ">", "1"))),
    "a tie at the limit": _top("age", 2),
    "a tie among the rows kept": _top("age", 3),
    "a limit that keeps everything": _top("weight", 5),
    "distinct without repeats": Select((Expr("code"),), "dogs", distinct=True),
    "a distinct count without repeats": Select((Expr("code", "count", True),), "dogs"),
    "tied ranks": RANKED._replace(columns=(Expr("code"), Rank("age", True))),
    "groups of one row": Select((Expr("code"), Expr("", "count")), "dogs", group="code"),
    "one group": Select(
        (Expr("color"), Expr("", "count")), "dogs", group="color", where=(_where("color", "=", "'red'"),)
    ),
    "having that drops nothing": Select(
        (Expr("color"),), "dogs", group="color", having=(Condition(Expr("", "count"), ">", "0"),)
    ),
    "a side of a compound that drops nothing": Compound(
        "EXCEPT",
        CODE._replace(where=(_where("age", ">", "4"),)),
        CODE._replace(where=(_where("age", "<", "2"),)),
    ),
}


@pytest.mark.parametrize("query", SOUND.values(), ids=SOUND)
def test_sound_queries_pass(dogs: sqlite3.Connection, query: Query) -> None:
    assert is_sound(dogs, query)


@pytest.mark.parametrize("query", UNSOUND.values(), ids=UNSOUND)
def test_unsound_queries_are_rejected(dogs: sqlite3.Connection, query: Query) -> None:
    assert not is_sound(dogs, query)
