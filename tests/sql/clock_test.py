from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.sql.clock import NOW, stop_clock


@pytest.fixture(scope="module")
def stopped() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        stop_clock(connection)
        yield connection


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("date('now')", "2025-01-01"),
        ("date()", "2025-01-01"),
        ("date('NOW', '+1 month')", "2025-02-01"),
        ("date('n' || 'ow')", "2025-01-01"),
        ("date(x'6e6f77')", "2025-01-01"),
        ("time('now')", "00:00:00"),
        ("datetime('now', '-1 second')", "2024-12-31 23:59:59"),
        ("strftime('%Y')", "2025"),
        ("strftime('%Y-%m', 'now')", "2025-01"),
        ("julianday('now') - julianday('2024-12-31')", 1.0),
        ("current_date", "2025-01-01"),
        ("current_time", "00:00:00"),
        ("current_timestamp", NOW),
        ("strftime()", None),
        ("date(NULL)", None),
    ],
)
def test_now_is_always_the_same_moment(stopped: sqlite3.Connection, expression: str, value: object) -> None:
    assert stopped.execute(f"SELECT {expression}").fetchone() == (value,)


MOMENTS = st.sampled_from(
    ["2020-02-29", "2020-02-29 13:05:06.789", "12:30", "soon", 0, 2460000, 2460000.5, None, b"2020-01-01"]
)
MODIFIERS = st.sampled_from(
    ["+1 day", "start of month", "-2 years", "weekday 0", "unixepoch", "auto", "utc", "nonsense", None]
)


@given(st.sampled_from(["date", "time", "datetime", "julianday"]), MOMENTS, st.lists(MODIFIERS, max_size=2))
def test_other_moments_are_sqlites_own(name: str, moment: object, modifiers: list[object]) -> None:
    marks = ", ".join("?" * (1 + len(modifiers)))
    with closing(sqlite3.connect(":memory:")) as plain, closing(sqlite3.connect(":memory:")) as stopped:
        stop_clock(stopped)
        expected = plain.execute(f"SELECT {name}({marks})", (moment, *modifiers)).fetchone()
        assert stopped.execute(f"SELECT {name}({marks})", (moment, *modifiers)).fetchone() == expected
