from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sqlr1_jax import lint
from sqlr1_jax.data import schema
from sqlr1_jax.lint.statement import Statement
from testing.databases import make_shop

FindReasons = Callable[[str], dict[str, str]]
_JOIN = "FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id"
# By rule: pairs of a query in which it must find something and a similar one in which it must not.
CASES = {
    "ties": [
        ("SELECT name FROM shop ORDER BY seats DESC LIMIT 1", "SELECT name FROM shop ORDER BY rating DESC LIMIT 1"),
        ("SELECT name FROM shop LIMIT 2", "SELECT name FROM shop LIMIT 3"),
        ("SELECT city FROM shop ORDER BY seats DESC LIMIT 1", "SELECT seats FROM shop ORDER BY seats DESC LIMIT 1"),
        (
            "SELECT amount FROM sale WHERE clerk_id = (SELECT id FROM clerk ORDER BY wage DESC LIMIT 1)",
            "SELECT amount FROM sale WHERE clerk_id = (SELECT id FROM clerk ORDER BY wage DESC, id LIMIT 1)",
        ),
        (
            "SELECT shop_id FROM clerk GROUP BY shop_id ORDER BY count(*) LIMIT 1",
            "SELECT shop_id FROM clerk GROUP BY shop_id ORDER BY count(*) DESC LIMIT 1",
        ),
        (
            "SELECT seats, name FROM shop UNION SELECT wage, name FROM clerk ORDER BY 1 DESC LIMIT 1",
            "SELECT seats, name FROM shop UNION SELECT wage, name FROM clerk ORDER BY 1 LIMIT 1",
        ),
        ("SELECT * FROM shop ORDER BY seats DESC LIMIT 1", "SELECT * FROM shop ORDER BY seats LIMIT 1"),
    ],
    "partial_order": [
        ("SELECT name FROM shop ORDER BY rating LIMIT 1", "SELECT name FROM shop ORDER BY id LIMIT 1"),
        (
            "SELECT city FROM shop GROUP BY city ORDER BY count(*) DESC LIMIT 1",
            "SELECT city, count(*) FROM shop GROUP BY city ORDER BY count(*) DESC, city LIMIT 1",
        ),
        (
            "SELECT DISTINCT name FROM shop ORDER BY rating LIMIT 1",
            "SELECT DISTINCT name FROM shop ORDER BY name LIMIT 1",
        ),
        ("SELECT name FROM clerk ORDER BY wage LIMIT 1", "SELECT wage FROM clerk ORDER BY wage LIMIT 1"),
        ("SELECT name FROM shop LIMIT 5", "SELECT min(wage) FROM clerk LIMIT 1"),
    ],
    "bare_column": [
        ("SELECT name, count(*) FROM shop GROUP BY city", "SELECT city, count(*) FROM shop GROUP BY city"),
        ("SELECT name, count(*) FROM shop", "SELECT max(name), count(*) FROM shop"),
        ("SELECT name, avg(seats) FROM shop GROUP BY city", "SELECT name, max(rating) FROM shop GROUP BY city"),
        (
            f"SELECT T1.name, count(*) {_JOIN} GROUP BY T1.shop_id",
            f"SELECT T2.name, count(*) {_JOIN} GROUP BY T1.shop_id",
        ),
        (
            "SELECT city FROM shop GROUP BY city ORDER BY rating",
            "SELECT city FROM shop GROUP BY city ORDER BY sum(rating)",
        ),
        (
            "SELECT name, count(*) FROM clerk GROUP BY 2 + wage",
            "SELECT wage + 2, count(*) FROM clerk GROUP BY wage + 2",
        ),
    ],
    "cross_join": [
        ("SELECT T1.name FROM clerk T1 JOIN shop T2", f"SELECT T1.name {_JOIN}"),
        ("SELECT clerk.name FROM clerk, shop", "SELECT clerk.name FROM clerk, shop WHERE shop.id = shop_id"),
        ("SELECT T1.name FROM clerk T1 JOIN shop T2 ON T2.id = T2.id", "SELECT a.id FROM clerk a NATURAL JOIN shop b"),
        (
            "SELECT a.name FROM shop a, (SELECT seats FROM shop) b",
            "SELECT a.name FROM shop a, (SELECT avg(seats) AS mean FROM shop) b",
        ),
        (
            f"SELECT T3.day {_JOIN} JOIN sale T3",
            f"SELECT T3.day {_JOIN} JOIN sale T3 ON T3.clerk_id = T1.id OR T1.id = 9",
        ),
    ],
    "fan_out": [
        (f"SELECT sum(T2.seats) {_JOIN}", f"SELECT sum(T1.wage) {_JOIN}"),
        (f"SELECT avg(T2.rating) {_JOIN} GROUP BY T2.city", f"SELECT max(T2.rating) {_JOIN} GROUP BY T2.city"),
        (f"SELECT count(T2.name) {_JOIN}", f"SELECT count(DISTINCT T2.name) {_JOIN}"),
        (f"SELECT sum(T2.seats) {_JOIN}", f"SELECT sum(T2.seats) {_JOIN} WHERE T2.city = 'Oslo'"),
    ],
}


@pytest.mark.parametrize(("rule", "wrong"), [(rule, pair[0]) for rule, pairs in CASES.items() for pair in pairs])
def test_a_rule_finds_wrong_queries(find_reasons: FindReasons, rule: str, wrong: str) -> None:
    assert rule in find_reasons(wrong)


@pytest.mark.parametrize(("rule", "correct"), [(rule, pair[1]) for rule, pairs in CASES.items() for pair in pairs])
def test_a_rule_passes_similar_correct_queries(find_reasons: FindReasons, rule: str, correct: str) -> None:
    assert rule not in find_reasons(correct)


def test_reasons_describe_the_problem(find_reasons: FindReasons) -> None:
    assert find_reasons("SELECT name, count(*) FROM shop GROUP BY city")["bare_column"] == (
        "name has several values in a group (grouped by city), and SQLite shows an arbitrary one"
    )
    assert find_reasons("SELECT name FROM shop ORDER BY seats DESC LIMIT 1") == {
        "ties": "rows tie under ORDER BY seats DESC, so LIMIT keeps arbitrary ones"
    }
    assert find_reasons(f"SELECT sum(T2.seats) {_JOIN}") == {
        "fan_out": "the join repeats rows of t2, so SUM(T2.seats) counts some of them more than once"
    }


def test_fan_out_names_the_table_whose_rows_repeat(tmp_path: Path) -> None:
    tables = schema.read_schema(make_shop(tmp_path), sampled=False)
    suspicions = lint.suspicions(Statement(f"SELECT sum(T2.seats) {_JOIN}", tables))
    assert [(suspicion.rule, suspicion.table) for suspicion in suspicions] == [("fan_out", "shop")]
