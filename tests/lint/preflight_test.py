from __future__ import annotations

import dataclasses
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax import config
from sqlr1_jax.data.example import Example, SetAside
from sqlr1_jax.data.prompt import PromptRenderer
from sqlr1_jax.lint.preflight import RULES, Finding, Preflight, record_findings
from sqlr1_jax.sql.executor import Executor
from testing.damage import few_or_many
from testing.damaged_databases import QUERIES, damaged_databases
from testing.databases import make_broken_parts, make_malformed, make_shop

CONFIG = config.ExecuteConfig(workers=1, max_steps=100_000, max_rows=1000)
Check = Callable[..., dict[str, dict[str, str]]]


def examples(database: Path, queries: Sequence[str], question: str = "How many?") -> list[Example]:
    return [Example(str(i), "shop", database, question, sql) for i, sql in enumerate(queries)]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("preflight"))


@pytest.fixture(scope="module")
def check() -> Iterator[Check]:
    """Checks examples: the reasons of the findings, by id and rule."""
    with Executor(CONFIG) as executor:

        def run(its: Sequence[Example], **settings: Any) -> dict[str, dict[str, str]]:
            found: dict[str, dict[str, str]] = {}
            for _, findings in Preflight(executor, **settings).findings(its):
                for finding in findings:
                    found.setdefault(finding.id, {})[finding.rule] = finding.reason
            return found

        yield run


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def test_outcomes_of_gold_queries_are_findings(check: Check, database: Path) -> None:
    queries = [
        "SELECT name FROM shop",
        "SELECT name FROM ship",
        "DROP TABLE shop",
        ENDLESS,
        "SELECT name FROM shop WHERE seats > 99",
        "SELECT max(seats) FROM shop WHERE seats > 99",
        "SELECT count(*) FROM award",
        "SELECT a.id FROM clerk a, clerk b, clerk c, clerk d, clerk e WHERE a.id + b.id + c.id + d.id > 0",
    ]
    assert check(examples(database, queries)) == {
        "1": {"fails": "syntax_error: no such table: ship"},
        "2": {"fails": "denied: DROP is not allowed here; only SELECT, WITH and VALUES are"},
        "3": {"timeout": "stopped after 100000 steps"},
        "4": {"empty": "it returns no rows"},
        "5": {"null_result": "it returns only NULL"},
        "6": {"empty_table": "no rows in award"},
        "7": {
            "fails": "too_large: more than 1000 rows",
            "cross_join": "no condition links e to the tables before: every row is joined to every row",
        },
    }


def test_zero_and_a_null_among_values_are_no_findings(check: Check, database: Path) -> None:
    queries = ["SELECT count(*) FROM shop WHERE seats > 99", "SELECT boss FROM clerk", "SELECT NULL, 1"]
    assert check(examples(database, queries)) == {}


def test_a_query_that_sqlglot_cannot_parse_is_reported(check: Check, database: Path) -> None:
    """SQLite runs the first of the queries; sqlglot does not know its type."""
    queries = ["SELECT CAST(seats AS UNSIGNED BIG INT) FROM shop", "SELECT CAST(seats AS INT) FROM shop"]
    found = check(examples(database, queries))
    assert {name: list(reasons) for name, reasons in found.items()} == {"0": ["unparsed"]}
    assert list(check(examples(database, ["SELECT name FROM shop INDEXED BY nothing"]))["0"]) == ["fails"]


def test_each_reason_of_a_rule_is_given_once(check: Check, database: Path) -> None:
    sql = "SELECT count(*) FROM shop WHERE city = 'Bonn' OR city = 'Bern' OR city = 'Bonn'"
    assert check(examples(database, [sql, sql])) == {
        name: {"absent_value": "no row of shop has city = 'Bonn'; no row of shop has city = 'Bern'"} for name in "01"
    }


def test_fan_out_applies_to_questions_that_name_the_table(check: Check, database: Path) -> None:
    queries = ["SELECT avg(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id"]
    assert list(check(examples(database, queries, "How many seats do shops with clerks have?"))["0"]) == ["fan_out"]
    assert check(examples(database, queries, "How many seats does a clerk see?")) == {}


def test_a_broken_database_is_a_finding_for_each_of_its_examples(check: Check, database: Path, tmp_path: Path) -> None:
    data = bytearray(database.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)  # keeps the page with the schema
    bad = tmp_path / "bad.sqlite"
    bad.write_bytes(data)
    found = check(examples(bad, ["SELECT name FROM shop", "SELECT 1"]))
    assert found == {name: {"broken_database": "table shop: database disk image is malformed"} for name in "01"}
    gone = check(examples(tmp_path / "gone.sqlite", ["SELECT 1"]))
    assert "gone.sqlite does not exist" in gone["0"]["broken_database"]


def test_a_broken_table_is_a_finding_only_for_queries_that_name_it(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "two.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE good (a); INSERT INTO good VALUES (1); CREATE TABLE bad (a); INSERT INTO bad VALUES (1)"
        )
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096  # the page of the last table
    path.write_bytes(data)
    found = check(examples(path, ["SELECT a FROM good", "SELECT a FROM BAD"]))
    assert found == {"1": {"broken_database": "table bad: database disk image is malformed"}}


def test_prompts_over_budget_are_found_with_a_tokenizer(check: Check, database: Path, tiny_tokenizer: Any) -> None:
    data = config.DataConfig(schema="compact", max_prompt_tokens=400)
    long = Example("long", "shop", database, "How many? " * 400, "SELECT name FROM shop")
    its = [*examples(database, ["SELECT name FROM shop"]), long]
    found = check(its, prompts=PromptRenderer(tiny_tokenizer, data))
    assert list(found) == ["long"]
    assert int(found["long"]["over_budget"].split()[0]) > 400


def test_a_second_run_takes_all_outcomes_from_disk(database: Path, tmp_path: Path) -> None:
    its = examples(database, ["SELECT name FROM shop ORDER BY seats DESC LIMIT 1", "SELECT name FROM ship"])
    seen = []
    for _ in range(2):
        with Executor(dataclasses.replace(CONFIG, gold_cache_dir=str(tmp_path))) as executor:
            run = Preflight(executor)
            seen.append((list(run.findings(its)), run.from_disk))
    (found, none), (again, of_all) = seen
    assert (found, none, of_all) == (again, 0, 1)
    assert [finding.rule for finding in found[0][1]] == ["ties", "fails"]


def test_examples_are_counted_database_by_database(database: Path, tmp_path: Path) -> None:
    other = make_shop(tmp_path)
    its = [*examples(database, ["SELECT 1", "SELECT 2"]), *examples(other, ["SELECT 1"])]
    with Executor(CONFIG) as executor:
        assert [count for count, _ in Preflight(executor).findings(its)] == [2, 1]


def test_records_set_aside_are_findings() -> None:
    aside = [SetAside("1", "lost", "no readable SQLite file for its db_id"), SetAside("2", "", "no question")]
    assert record_findings(aside) == [
        Finding("1", "lost", "missing_database", "no readable SQLite file for its db_id"),
        Finding("2", "", "bad_record", "no question"),
    ]
    assert not RULES["bad_record"].left_out  # leaving out an id that occurs twice would lose the good record too


def test_parts_that_cannot_be_read_are_findings_only_for_queries_that_need_them(check: Check, tmp_path: Path) -> None:
    path = make_malformed(tmp_path / "malformed.sqlite")
    queries = ["SELECT name FROM city", "SELECT name FROM Street", "SELECT street FROM shop", "SELECT nam FROM city"]
    assert check(examples(path, queries)) == {
        "1": {"broken_database": "street: its entry in the schema is malformed"},
        "3": {"fails": "syntax_error: no such column: nam"},
    }
    path = make_broken_parts(tmp_path / "parts.sqlite")
    queries = ["SELECT name FROM city", "SELECT id FROM street", "SELECT * FROM SpatialIndex", "SELECT * FROM lost"]
    assert check(examples(path, queries)) == {
        "2": {"broken_database": "SpatialIndex: no such module: VirtualSpatialIndex"},
        "3": {"broken_database": "lost: no such table: main.gone"},
    }


@few_or_many
def test_damaged_databases_have_findings_and_no_error(tmp_path: Path, count: int) -> None:
    found: Counter[str] = Counter()
    with Executor(dataclasses.replace(CONFIG, wall_seconds=1.0)) as executor:
        for damage, path in damaged_databases(tmp_path, count):
            its = examples(path, QUERIES)
            [(num_examples, findings)] = Preflight(executor).findings(its)
            assert num_examples == len(its), damage
            found.update(finding.rule for finding in findings)
        assert executor.stats()["sql/crashes"] == 0
    assert 0 < found["broken_database"] < 0.5 * count * len(QUERIES)
    assert set(found) <= set(RULES)
