from __future__ import annotations

from collections.abc import Callable

import pytest

FindReasons = Callable[[str], dict[str, str]]
# By rule: pairs of a query in which it must find something and a similar one in which it must not.
CASES = {
    "clock": [
        ("SELECT name FROM shop WHERE date('now') > '2000'", "SELECT name FROM shop WHERE date('2001-01-01') > '2000'"),
        ("SELECT current_timestamp", "SELECT name FROM shop WHERE name = 'now' OR seats = 10"),
        ("SELECT strftime('%Y', 'now')", "SELECT strftime('%Y', day) FROM sale"),
        ("SELECT datetime()", "SELECT datetime(day) FROM sale"),
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
def test_a_rule_finds_wrong_queries(find_reasons: FindReasons, rule: str, wrong: str) -> None:
    assert rule in find_reasons(wrong)


@pytest.mark.parametrize(("rule", "correct"), [(rule, pair[1]) for rule, pairs in CASES.items() for pair in pairs])
def test_a_rule_passes_similar_correct_queries(find_reasons: FindReasons, rule: str, correct: str) -> None:
    assert rule not in find_reasons(correct)


def test_reasons_describe_the_problem(find_reasons: FindReasons) -> None:
    assert find_reasons("SELECT count(*) FROM shop WHERE city = 'rome '")["absent_value"] == (
        "no row of shop has city = 'rome ', but one has 'Rome'"
    )
