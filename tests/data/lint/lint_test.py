from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import shop

from sqlr1_jax import config
from sqlr1_jax.data import lint, schema
from sqlr1_jax.data.lint.statement import Statement
from sqlr1_jax.sql.executor import Executor

Found = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """The reasons of the rules that speak on a query over the shop, by rule."""
    database = shop.make(tmp_path_factory.mktemp("lint"))
    tables = schema.read_schema(database, sampled=False)
    with Executor(config.Execute(workers=1)) as executor:

        def one(sql: str) -> dict[str, str]:
            reasons = {}
            for suspicion in lint.suspicions(Statement(sql, tables)):
                outcomes = [executor.run(database, query).result() for query in suspicion.queries]
                verdict = suspicion.verdict(outcomes)
                if verdict:
                    reasons[suspicion.rule] = suspicion.reason + (verdict if isinstance(verdict, str) else "")
            return reasons

        yield one


_JOIN = "FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id"
# By rule: golds that it must find, each followed by its near miss.
CASES = {
    "clock": [
        ("SELECT name FROM shop WHERE date('now') > '2000'", "SELECT name FROM shop WHERE date('2001-01-01') > '2000'"),
        ("SELECT current_timestamp", "SELECT name FROM shop WHERE name = 'now' OR seats = 10"),
        ("SELECT strftime('%Y', 'now')", "SELECT strftime('%Y', day) FROM sale"),
        ("SELECT datetime()", "SELECT datetime(day) FROM sale"),
    ],
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
        ("SELECT wage FROM clerk ORDER BY wage LIMIT 1", "SELECT min(wage) FROM clerk LIMIT 1"),
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
    "null_comparison": [
        ("SELECT name FROM clerk WHERE boss = NULL", "SELECT name FROM clerk WHERE boss IS NULL"),
        ("SELECT name FROM clerk WHERE boss <> NULL", "SELECT name FROM clerk WHERE boss IS NOT NULL"),
        (
            "SELECT name FROM clerk WHERE id NOT IN (SELECT boss FROM clerk)",
            "SELECT name FROM clerk WHERE id NOT IN (SELECT boss FROM clerk WHERE boss IS NOT NULL)",
        ),
        ("SELECT name FROM clerk WHERE id IN (1, NULL)", "SELECT name FROM clerk WHERE id IN (SELECT boss FROM clerk)"),
    ],
    "text_number": [
        ("SELECT name FROM clerk WHERE weeks > 20", "SELECT name FROM clerk WHERE wage > 7"),
        ("SELECT name FROM clerk WHERE weeks < '9'", "SELECT name FROM clerk WHERE CAST(weeks AS INTEGER) < 9"),
        ("SELECT name FROM shop WHERE seats > 'many'", "SELECT name FROM shop WHERE seats > '15'"),
        ("SELECT name FROM clerk WHERE 20 < weeks", "SELECT name FROM clerk WHERE weeks = 20"),
        ("SELECT name FROM clerk WHERE weeks >= 20", "SELECT amount FROM sale WHERE day >= '2024'"),
    ],
    "text_order": [
        ("SELECT name FROM clerk ORDER BY weeks", "SELECT name FROM clerk ORDER BY wage, id"),
        (
            "SELECT name FROM clerk ORDER BY weeks DESC LIMIT 1",
            "SELECT name FROM clerk ORDER BY weeks + 0 DESC LIMIT 1",
        ),
        ("SELECT max(weeks) FROM clerk", "SELECT max(weeks) FROM clerk WHERE id > 1 AND id < 3"),
        ("SELECT min(weeks) FROM clerk", "SELECT min(name) FROM clerk"),
    ],
    "integer_division": [
        ("SELECT sum(wage) / count(*) FROM clerk WHERE shop_id = 1", "SELECT sum(wage) / count(*) FROM clerk"),
        ("SELECT seats / 3 FROM shop", "SELECT seats / 3.0 FROM shop"),
        (
            "SELECT (SELECT count(*) FROM shop) / (SELECT count(*) FROM clerk)",
            "SELECT CAST((SELECT count(*) FROM shop) AS REAL) / (SELECT count(*) FROM clerk)",
        ),
        ("SELECT seats / wage FROM clerk JOIN shop ON shop_id = shop.id", "SELECT rating / seats FROM shop"),
    ],
    "absent_value": [
        ("SELECT count(*) FROM shop WHERE city = 'Paris'", "SELECT count(*) FROM shop WHERE city = 'Rome'"),
        (
            "SELECT name FROM shop WHERE city IN ('Oslo', 'Bonn')",
            "SELECT name FROM shop WHERE city IN ('Oslo', 'Rome')",
        ),
        ('SELECT name FROM shop WHERE city != "oslo"', 'SELECT name FROM shop WHERE city != "Oslo"'),
        ("SELECT count(*) FROM shop WHERE name LIKE '%z%'", "SELECT count(*) FROM shop WHERE name LIKE '%a%'"),
        ("SELECT count(*) FROM sale WHERE amount = 99", "SELECT count(*) FROM sale WHERE amount > 99"),
    ],
}


@pytest.mark.parametrize(("rule", "wrong"), [(rule, pair[0]) for rule, pairs in CASES.items() for pair in pairs])
def test_a_rule_finds(found: Found, rule: str, wrong: str) -> None:
    assert rule in found(wrong)


@pytest.mark.parametrize(("rule", "sound"), [(rule, pair[1]) for rule, pairs in CASES.items() for pair in pairs])
def test_a_rule_lets_the_near_miss_pass(found: Found, rule: str, sound: str) -> None:
    assert rule not in found(sound)


def test_reasons_name_what_is_wrong(found: Found) -> None:
    assert found("SELECT name, count(*) FROM shop GROUP BY city")["bare_column"] == (
        "name has several values in a group (grouped by city), of which SQLite shows any"
    )
    assert found("SELECT name FROM shop ORDER BY seats DESC LIMIT 1") == {
        "ties": "rows tie under ORDER BY seats DESC: which of them LIMIT keeps is chance"
    }
    assert found("SELECT count(*) FROM shop WHERE city = 'rome '")["absent_value"] == (
        "no row of shop has city = 'rome ', but one has 'Rome'"
    )
    assert found(f"SELECT sum(T2.seats) {_JOIN}") == {
        "fan_out": "the join repeats rows of t2, so SUM(T2.seats) takes some of them more than once"
    }


def test_fan_out_is_about_the_table_that_is_repeated(tmp_path: Path) -> None:
    tables = schema.read_schema(shop.make(tmp_path), sampled=False)
    found = lint.suspicions(Statement(f"SELECT sum(T2.seats) {_JOIN}", tables))
    assert [(one.rule, one.about) for one in found] == [("fan_out", "shop")]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM shop WHERE city = 'Rome' ORDER BY name",
        "WITH big AS (SELECT id FROM shop WHERE seats > 10) SELECT count(*) FROM big JOIN clerk ON shop_id = big.id",
        "SELECT name, rank() OVER (PARTITION BY city ORDER BY rating) FROM shop",
        f"SELECT T2.city, avg(T1.wage) {_JOIN} GROUP BY T2.city HAVING count(*) > 1",
        "SELECT name FROM shop WHERE EXISTS (SELECT 1 FROM clerk WHERE shop_id = shop.id AND wage > 6)",
        "SELECT name FROM shop EXCEPT SELECT name FROM clerk",
    ],
)
def test_sound_golds_raise_no_suspicion(found: Found, sql: str) -> None:
    assert found(sql) == {}
