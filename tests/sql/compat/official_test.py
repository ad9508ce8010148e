from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.sql import compare
from sqlr1_jax.sql.compat import official
from sqlr1_jax.sql.compat.official import OfficialError, spider_text


@pytest.mark.parametrize(
    ("sql", "runs"),
    [
        ("SELECT DISTINCT a FROM t", "SELECT  a FROM t"),
        ("SELECT count(distinct a) FROM t", "SELECT count( a) FROM t"),
        ("SELECT DISTINCT(a) FROM t", "SELECT (a) FROM t"),
        ("SELECT 1 IS DISTINCT FROM 2", "SELECT 1 IS  FROM 2"),
        ("SELECT t.distinct FROM t", "SELECT t. FROM t"),
        ("SELECT 'distinct', \"distinct\", `distinct`, [distinct]", None),
        ("SELECT 1 -- distinct\n", None),
        ("SELECT 1 /* DISTINCT; */, 2 # distinct ;", None),
        ("SELECT 1 /* oops distinct", "SELECT 1 /* oops "),  # no comment before it is closed
        ("SELECT 1; SELECT 2", "SELECT 1;"),
        ("; SELECT 1", ";"),
        ("\n SELECT 1;; ", "\n SELECT 1;"),
        ("SELECT 'a;b' || 'it''s; me'; x", "SELECT 'a;b' || 'it''s; me';"),
        ("SELECT 'a\\'; SELECT 'b'", "SELECT 'a\\'; SELECT 'b'"),  # a backslash hides the quote
        ("SELECT (SELECT 1; SELECT 2); SELECT 3", "SELECT (SELECT 1; SELECT 2);"),
        ("SELECT CASE WHEN 1 THEN 2 END; SELECT 2", "SELECT CASE WHEN 1 THEN 2 END;"),
        ("SELECT CASE WHEN 1 THEN (2 END; 3", "SELECT CASE WHEN 1 THEN (2 END;"),  # END pays for the parenthesis
        ("SELECT begin FROM t; SELECT 2", None),  # a block that is never ended
        ("SELECT t.begin FROM t; SELECT 2", "SELECT t.begin FROM t;"),
        ("BEGIN; SELECT 2", "BEGIN;"),
        ("BEGIN TRANSACTION; SELECT 2", "BEGIN TRANSACTION;"),
        ("BEGIN IF 1; END IF; END; x", "BEGIN IF 1; END IF; END;"),
        ("BEGIN WHILE 1 DO 2; END WHILE; END; x", "BEGIN WHILE 1 DO 2; END WHILE; END;"),
        ("BEGIN LOOP 3; END LOOP; END; x", "BEGIN LOOP 3; END LOOP; END;"),
        ("CREATE PROCEDURE DECLARE a; BEGIN 1; END; x", "CREATE PROCEDURE DECLARE a; BEGIN 1; END;"),
        ("SELECT 1 GO SELECT 2", "SELECT 1 GO"),
        ("SELECT 1 GO 5 x", "SELECT 1 GO 5"),
        ("SELECT 1 go", None),
        ("SELECT 2 > = 1, '! =', 1 < = 2", "SELECT 2 >= 1, '!=', 1 <= 2"),
        ("SELECT Year ( curdate( ) ) - 1", "SELECT 2020- 1"),
    ],
)  # fmt: skip
def test_what_spider_runs(sql: str, runs: str | None) -> None:
    assert spider_text(sql, keep_distinct=False) == (sql if runs is None else runs)


def test_with_distinct_kept_only_operators_and_the_year_change() -> None:
    sql = "SELECT DISTINCT a > = YEAR(CURDATE()); SELECT 2"
    assert spider_text(sql, keep_distinct=True) == "SELECT DISTINCT a >= 2020; SELECT 2"
    assert spider_text(" ", keep_distinct=True) == " "


@pytest.mark.parametrize("sql", ["", " \n\t"])
def test_nothing_raises_where_a_statement_is_taken(sql: str) -> None:
    with pytest.raises(OfficialError, match="IndexError"):
        spider_text(sql, keep_distinct=False)
    assert spider_text("-- only a comment", keep_distinct=False) == "-- only a comment"


@given(st.text(alphabet="a1.;'\"()/*-# \n`[]dD", max_size=40))
def test_any_text_keeps_its_beginning(sql: str) -> None:
    if sql.strip():
        assert sql.startswith(spider_text(sql, keep_distinct=False))


def test_a_text_full_of_openers_takes_no_time() -> None:
    begin = time.process_time()
    for piece in ("/*", "'", '"\\', "(", "[", "BEGIN "):
        spider_text(piece * 10_000, keep_distinct=False)
    assert time.process_time() - begin < 10


@pytest.mark.parametrize(
    ("gold", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT rank() OVER (ORDER BY a) FROM t", True),
        ("SELECT 'order by'", True),
        ("SELECT a FROM t ORDER  BY a", False),
        ("SELECT a FROM t ORDER\nBY a", False),
    ],
)
def test_order_matters_by_the_letters(gold: str, ordered: bool) -> None:
    assert official.is_ordered(gold) is ordered


@pytest.mark.parametrize(
    ("gold", "rows", "ordered", "equal"),
    [
        ([(1,)], [(1.0,)], False, True),
        ([(1, 1.5)], [(1.0, 1.5)], False, False),  # '1<class…' stands behind '1.5<…', '1.0<…' before it
        ([(2, 10)], [(2.0, 10)], False, True),
        ([(1, 1.5)], [(1.5, 1)], False, True),
        ([(0.0, -1)], [(-0.0, -1)], False, False),
        ([(None, "None")], [("None", None)], False, True),
        ([], [], True, True),
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1, 2), (2, 1)], [(1, 2), (1, 2)], False, False),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
        ([(1,)], [(1, 1)], False, False),
        ([(1,)], [], False, False),
        ([], [(1,)], False, False),
    ],
)
def test_spider(gold: list[tuple], rows: list[tuple], ordered: bool, equal: bool) -> None:
    assert official.spider(gold, rows, ordered) is equal


ROWS = st.lists(st.tuples(*[st.sampled_from([None, 0, 1, 1.0, 1.5, -0.0, "1", b"1"])] * 3), max_size=4)


@given(ROWS, ROWS, st.booleans())
def test_spider_is_never_laxer_than_ours(gold: list[tuple], rows: list[tuple], ordered: bool) -> None:
    assert official.spider(gold, gold, ordered)
    assert official.spider(gold, rows, ordered) <= bool(compare.spider(gold, rows, ordered))


def test_defect_08_many_equal_columns_take_no_time() -> None:
    rows: list[Any] = [tuple([0] * 60)] * 50
    begin = time.process_time()
    assert official.spider(rows, [*rows[:-1], tuple([0.0] * 60)], True)
    assert time.process_time() - begin < 5
