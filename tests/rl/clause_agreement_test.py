from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.rl.clause_agreement import MAX_CHARACTERS, clause_agreement, query_clauses

GOLD = (
    "SELECT T1.name, T2.name FROM dogs AS T1 JOIN owners AS T2 ON T1.owner = T2.id"
    " WHERE T2.age > 3 AND T1.color = 'red' ORDER BY T1.age DESC LIMIT 1"
)


def test_a_query_is_split_into_the_parts_of_its_clauses() -> None:
    assert query_clauses(GOLD) == {
        "select": Counter(["dogs.name", "owners.name"]),
        "from": Counter(["dogs", "owners", "eq(dogs.owner, owners.id)"]),
        "where": Counter(["lt(3, owners.age)", "eq('red', dogs.color)"]),
        "order": Counter(["1: dogs.age desc"]),
        "limit": Counter(["1"]),
    }


@pytest.mark.parametrize(
    ("sql", "score"),
    [
        (GOLD, 1.0),
        # where: 1 of 2 and 1 parts, F1 2/3
        (GOLD.replace("AND T1.color = 'red' ", ""), (1 + 1 + 2 / 3 + 1 + 1) / 5),
        # A value counts, and so does the direction of ORDER BY.
        (GOLD.replace("'red'", "'Red'"), (1 + 1 + 1 / 2 + 1 + 1) / 5),
        (GOLD.replace("DESC", "ASC"), (1 + 1 + 1 + 0 + 1) / 5),
        # A clause too many, and two too few.
        (GOLD.replace(" ORDER BY", " GROUP BY T1.id ORDER BY"), (1 + 1 + 1 + 0 + 1 + 1) / 6),
        (GOLD.replace(" ORDER BY T1.age DESC LIMIT 1", ""), (1 + 1 + 1 + 0 + 0) / 5),
        # select: 1 of 1 and 2 parts, from: 1 of 1 and 3; where, order and limit 0
        ("SELECT name FROM dogs", (2 / 3 + 1 / 2 + 0 + 0 + 0) / 5),
        (GOLD.replace("JOIN", "LEFT JOIN"), (1 + 2 * 2 / 6 + 1 + 1 + 1) / 5),
        (GOLD.replace("SELECT", "SELECT DISTINCT"), (2 * 2 / 5 + 1 + 1 + 1 + 1) / 5),
        ("SELECT city FROM towns", 0.0),
        ("SELECT FROM WHERE", 0.0),
        ("DELETE FROM dogs", 0.0),
        ("SELECT 1; SELECT 2", 0.0),
        ("", 0.0),
    ],
)
def test_the_score_is_the_mean_f1_of_the_clauses(sql: str, score: float) -> None:
    assert clause_agreement(sql, GOLD) == pytest.approx(score)
    assert clause_agreement(GOLD, sql) == pytest.approx(score)


@pytest.mark.parametrize("gold", ["SELEC name FROM dogs", "", "PRAGMA table_info(dogs)", "WITH max(a) FROM t"])
def test_a_gold_query_that_cannot_be_parsed_gives_zero_to_every_answer(gold: str) -> None:
    assert clause_agreement(GOLD, gold) == clause_agreement(gold, gold) == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT name FROM dogs WHERE age > 3", "select D.NAME from DOGS as d where 3 < d.Age;"),
        ("SELECT name FROM dogs; -- all of them", "SELECT `name` FROM [dogs]"),
        ('SELECT name FROM dogs WHERE color = "red"', "SELECT name FROM dogs WHERE 'red' = color"),
        ("SELECT a, b FROM t", "SELECT b, a FROM t"),
        ("SELECT a FROM t WHERE b IN (1, 2) OR c = 3", "SELECT a FROM t WHERE (c = 3) OR b IN (2, 1)"),
        ("SELECT a FROM t WHERE (b = 1 AND c = 2) AND d = 3", "SELECT a FROM t WHERE d = 3 AND (c = 2 AND b = 1)"),
        ("SELECT t.a FROM t JOIN u ON t.i = u.i", "SELECT t.a FROM t, u WHERE u.i = t.i"),
        (
            "SELECT t.a FROM t INNER JOIN u ON t.i = u.i AND u.k = 1",
            "SELECT t.a FROM u JOIN t ON t.i = u.i WHERE u.k = 1",
        ),
        (
            "SELECT a, count(*) AS n FROM t GROUP BY a HAVING n > 1 ORDER BY n",
            "SELECT a, count(*) FROM t GROUP BY 1 HAVING count(*) > 1 ORDER BY 2 ASC",
        ),
        ("SELECT a FROM t LIMIT 2, 1", "SELECT a FROM t LIMIT 1 OFFSET 2"),
        ("WITH x AS (SELECT a FROM t) SELECT a FROM x", "WITH y AS (SELECT a FROM t) SELECT y.a FROM y"),
        (
            "SELECT a FROM t WHERE b = (SELECT max(b) FROM t)",
            "SELECT a FROM t AS u WHERE (SELECT max(v.b) FROM t AS v) = u.b",
        ),
        ("SELECT a FROM t WHERE b != 1", "SELECT a FROM t WHERE b <> 1"),
        ("SELECT count(*) FROM t", "SELECT COUNT(*) AS n FROM t"),
    ],
)  # fmt: skip
def test_spellings_of_one_query_agree_fully(one: str, other: str) -> None:
    assert query_clauses(one) == query_clauses(other) != {}
    assert clause_agreement(one, other) == 1.0


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [
        # where: the condition and 1 of the 2 parts of the subquery agree, F1 4/6
        (
            "SELECT a FROM t WHERE b IN (SELECT b FROM u)",
            "SELECT a FROM t WHERE b IN (SELECT c FROM u)",
            (1 + 1 + 4 / 6) / 3,
        ),
        # where: 2 of 3 parts agree, those of the subquery
        (
            "SELECT a FROM t WHERE b IN (SELECT b FROM u)",
            "SELECT a FROM t WHERE b NOT IN (SELECT b FROM u)",
            (1 + 1 + 4 / 6) / 3,
        ),
        # A subquery on its own table is not the same as one linked to the outer query.
        (
            "SELECT a FROM t AS x WHERE b > (SELECT avg(b) FROM t AS y WHERE y.c = x.c)",
            "SELECT a FROM t AS x WHERE b > (SELECT avg(b) FROM t AS y WHERE y.c = y.c)",
            (1 + 1 + 2 * 3 / 8) / 3,
        ),
        # set: the operator agrees, but of the right query neither v nor its column
        ("SELECT a FROM t UNION SELECT a FROM u", "SELECT a FROM t UNION SELECT a FROM v", (1 + 1 + 2 / 6) / 3),
        ("SELECT a FROM t UNION SELECT a FROM u", "SELECT a FROM t UNION SELECT b FROM u", (1 + 1 + 4 / 6) / 3),
        ("SELECT a FROM t UNION SELECT a FROM u", "SELECT a FROM t UNION ALL SELECT a FROM u", (1 + 1 + 4 / 6) / 3),
        ("SELECT a FROM t EXCEPT SELECT a FROM u", "SELECT a FROM t", (1 + 1 + 0) / 3),
        # from: the word `query` and 1 of its 2 parts
        ("SELECT a FROM (SELECT a FROM t)", "SELECT a FROM (SELECT b FROM t)", (1 + 4 / 6) / 2),
        ("SELECT x.a FROM t x JOIN t y ON x.i = y.j", "SELECT y.a FROM t x JOIN t y ON x.i = y.j", (0 + 1) / 2),
        # from: the subquery of ON is part of it, 4 of 5 parts agree
        (
            "SELECT t.a FROM t LEFT JOIN u ON t.b = (SELECT max(b) FROM v)",
            "SELECT t.a FROM t LEFT JOIN u ON t.b = (SELECT min(b) FROM v)",
            (1 + 2 * 4 / 10) / 2,
        ),
        ("SELECT a FROM t GROUP BY a, b", "SELECT a FROM t GROUP BY b", (1 + 1 + 2 / 3) / 3),
        ("SELECT a FROM t ORDER BY a, b", "SELECT a FROM t ORDER BY b, a", (1 + 1 + 0) / 3),
        # with: 1 of 2 parts
        (
            "WITH x AS (SELECT a FROM t) SELECT a FROM x",
            "WITH x AS (SELECT b FROM t) SELECT a FROM x",
            (1 / 2 + 1 + 1) / 3,
        ),
        # from: the same function of another text, and the same rows under another name
        ("SELECT 1 FROM json_each('[1]') AS j", "SELECT 1 FROM json_each('[2]') AS j", (1 + 0) / 2),
        ("SELECT 1 FROM (VALUES (1), (2)) AS v", "SELECT 1 FROM (VALUES (1), (2)) AS w", 1.0),
        ("VALUES (1)", "VALUES (2)", 0.0),
        ("SELECT a FROM t WHERE b AND TRUE", "SELECT a FROM t WHERE b AND FALSE", (1 + 1 + 1 / 2) / 3),
    ],
)  # fmt: skip
def test_nested_queries_and_set_operations_earn_credit_by_their_parts(one: str, other: str, score: float) -> None:
    assert clause_agreement(one, other) == clause_agreement(other, one) == pytest.approx(score)


COLUMNS = st.sampled_from(["name", "age", "color", "owner"])
CONDITIONS = st.builds("{{0}}.{} {} {}".format, COLUMNS, st.sampled_from(["=", "<", ">=", "!="]), st.integers(0, 9))


@st.composite
def queries(draw: st.DrawFn) -> tuple[list[str], list[str], str]:
    """Result columns, conditions and the end of a query on dogs, with {0} for the table's alias."""
    columns = draw(st.lists(COLUMNS.map("{{0}}.{}".format), min_size=1, max_size=3))
    conditions = draw(st.lists(CONDITIONS, min_size=1, max_size=4))
    return columns, conditions, draw(st.sampled_from(["", " ORDER BY {0}.age DESC", " GROUP BY {0}.color LIMIT 3"]))


def write(query: tuple[list[str], list[str], str], alias: str = "T1") -> str:
    columns, conditions, end = query
    text = f"SELECT {', '.join(columns)} FROM dogs AS {{0}} WHERE {' AND '.join(conditions)}{end}"
    return text.format(alias)


@given(queries(), st.randoms(), st.sampled_from(["T1", "d", "dogs", "OUTER1"]))
def test_aliases_and_orders_do_not_matter(query: tuple[list[str], list[str], str], random: Random, alias: str) -> None:
    columns, conditions, end = query
    shuffled = random.sample(columns, len(columns)), random.sample(conditions, len(conditions)), end
    assert clause_agreement(write(query), write(shuffled, alias)) == 1.0


@given(queries(), queries())
def test_scores_are_symmetric_and_between_zero_and_one(
    one: tuple[list[str], list[str], str], other: tuple[list[str], list[str], str]
) -> None:
    score = clause_agreement(write(one), write(other))
    assert 0 < score <= 1  # both read dogs
    assert score == pytest.approx(clause_agreement(write(other), write(one)))
    assert (score == 1) == (query_clauses(write(one)) == query_clauses(write(other)))


WORDS = [
    *("SELECT", "FROM", "WHERE", "AND", "IN", "JOIN", "ON", "GROUP", "BY", "UNION", "VALUES", "WITH", "AS"),
    *("a", "t", ".", ",", "(", ")", "=", "'x'", "1"),
]


@given(st.lists(st.sampled_from(WORDS)))
def test_no_text_is_an_error(words: list[str]) -> None:
    sql = " ".join(words)
    assert clause_agreement(sql, sql) in (0.0, 1.0)
    assert 0 <= clause_agreement(sql, GOLD) <= 1


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 400 + "1" + ")" * 400,
        "SELECT a FROM t WHERE " + " AND ".join(["a = 1"] * 400),
        "SELECT a FROM t WHERE a IN (" + ", ".join(["1"] * 1600) + ")",
        "SELECT " + ", ".join(["a"] * 800) + " FROM t ORDER BY " + ", ".join(["a"] * 800),
        "SELECT a IN (" + ", ".join(["1"] * 800) + ") AS x FROM t ORDER BY " + ", ".join(["x"] * 800),
        " UNION ".join(["SELECT 1"] * 320),
        "SELECT a FROM t WHERE a IN (" * 170 + "1" + ")" * 170,
    ],
    ids=["parentheses", "conditions", "list", "columns", "alias", "union", "nested"],
)
def test_long_sql_takes_little_time(sql: str) -> None:
    start = time.process_time()
    assert clause_agreement(sql, sql) in (0.0, 1.0)
    assert time.process_time() - start < 5  # a quarter of a second on a free core


def test_sql_over_the_limit_is_not_parsed() -> None:
    within, over = (f"SELECT '{'x' * (MAX_CHARACTERS - 9 + more)}'" for more in (0, 1))
    assert len(within) == MAX_CHARACTERS
    assert clause_agreement(within, within) == 1.0
    assert clause_agreement(over, over) == 0.0


def test_every_gold_query_of_spider_agrees_with_itself(shared_data: Path) -> None:
    records = json.loads((shared_data / "spider_train" / "train_spider.json").read_text())
    golds = {record["query"] for record in records}
    assert [sql for sql in golds if clause_agreement(sql, sql) != 1.0] == []
    assert len(golds) == 3925


SPELLINGS = (
    *(
        "identity",
        "case_change",
        "backtick_identifiers",
        "dquote_identifiers",
        "column_order_permuted",
        "join_to_comma",
    ),
    *("table_alias_renamed", "select_alias_added", "pretty_print", "leading_comment", "trailing_comment"),
)


def test_changed_queries_of_the_oracle_score_by_what_was_changed(shared_data: Path) -> None:
    lines = (shared_data / "oracles" / "evaluator_oracle.jsonl").read_text(encoding="utf-8").splitlines()
    scores: dict[str, list[float]] = {}
    for pair in map(json.loads, lines):
        scores.setdefault(pair["mutation"], []).append(clause_agreement(pair["pred"], pair["gold"]))
    assert {name for name in SPELLINGS if set(scores[name]) != {1.0}} == set()
    mean = {name: sum(values) / len(values) for name, values in scores.items()}
    assert 0.8 < mean["missing_column"] < 1  # one part of a clause
    assert 0.6 < mean["order_dropped"] < mean["missing_column"]  # a clause of three or four
    assert mean["not_sql"] == 0 < mean["other_question"] < 0.2  # about the same database
