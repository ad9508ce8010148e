from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import OutcomeKind
from testing.databases import make_shop

FindReasons = Callable[[str], dict[str, str]]
_JOIN = "FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id"


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
def test_no_rule_finds_anything_in_correct_queries(find_reasons: FindReasons, sql: str) -> None:
    assert find_reasons(sql) == {}


# Queries on the shop database, one a line: "+" if the rule must find something in it, "-" if it must not. The rules'
# author wrote them and revised some labels, queries and rules after a first run, so the figures guard against
# regressions; they do not estimate precision or recall on other data. partial_order.sql began as the rule's own output
# on ties.sql, read and corrected in four lines, so its recall says nothing.
LABELLED = Path(__file__).parent / "labelled"
# What each rule misjudges: the limits that docs/data.md names.
MISJUDGED = {
    "null_comparison": [
        "+ SELECT name FROM clerk c WHERE c.id NOT IN (SELECT d.boss FROM clerk d WHERE d.shop_id = c.shop_id)"
    ],
}
FIGURES = {  # found and wrong, found, wrong: precision is the first by the second, recall the first by the third
    "absent_value": (32, 32, 32),
    "bare_column": (34, 34, 34),
    "clock": (45, 45, 45),
    "cross_join": (37, 37, 37),
    "fan_out": (32, 32, 32),
    "integer_division": (45, 45, 45),
    "null_comparison": (29, 29, 30),
    "partial_order": (21, 21, 21),
    "text_number": (35, 35, 35),
    "text_order": (32, 32, 32),
    "ties": (37, 37, 37),
}


@pytest.mark.parametrize("rule", sorted(path.stem for path in LABELLED.glob("*.sql")))
def test_precision_and_recall_on_labelled_queries(find_reasons: FindReasons, rule: str) -> None:
    lines = (LABELLED / f"{rule}.sql").read_text().splitlines()
    judged = [(line, line[0] == "+", rule in find_reasons(line[2:])) for line in lines]
    counts = Counter((is_wrong, found) for _, is_wrong, found in judged)
    right, found, wrong = (
        counts[True, True],
        counts[True, True] + counts[False, True],
        counts[True, True] + counts[True, False],
    )
    assert len(set(lines)) == len(lines) >= 60
    assert min(wrong, len(lines) - wrong) >= 20
    assert [line for line, is_wrong, found_ in judged if found_ != is_wrong] == MISJUDGED.get(rule, [])
    assert (right, found, wrong) == FIGURES[rule]


def test_labelled_queries_run(executor: Executor, tmp_path: Path) -> None:
    database = make_shop(tmp_path)
    queries = {line[2:] for path in LABELLED.glob("*.sql") for line in path.read_text().splitlines()}
    pending = {sql: executor.run(database, sql) for sql in queries}
    assert [sql for sql, future in pending.items() if future.result().kind != OutcomeKind.OK] == []
