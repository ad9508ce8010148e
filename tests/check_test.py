from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax import check
from sqlr1_jax.data import example
from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.lint import preflight
from sqlr1_jax.lint.preflight import RULES
from sqlr1_jax.sql.executor import Executor
from testing.damage import few_or_many
from testing.damaged_data import damaged_files
from testing.databases import make_broken_parts, make_malformed, make_shop

_JOIN = "FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id"
# Wrong gold queries, each with a rule that must find it.
PLANTED = [
    ("fails", "SELECT nam FROM shop"),
    ("fails", "SELECT name FROM shop WHERE"),
    ("empty", "SELECT name FROM shop WHERE city = 'rome'"),
    ("null_result", "SELECT max(seats) FROM shop WHERE city = 'Bonn'"),
    ("empty_table", "SELECT count(*) FROM award"),
    ("clock", "SELECT count(*) FROM sale WHERE day > date('now', '-1 year')"),
    ("ties", "SELECT name FROM shop ORDER BY seats DESC LIMIT 1"),
    ("ties", "SELECT name FROM clerk LIMIT 2"),
    ("null_comparison", "SELECT count(*) FROM clerk WHERE boss = NULL"),
    ("null_comparison", "SELECT count(*) FROM clerk WHERE id NOT IN (SELECT boss FROM clerk)"),
    ("cross_join", "SELECT count(*) FROM clerk JOIN shop"),
    ("cross_join", "SELECT T1.name FROM clerk T1 JOIN shop T2 ON T2.id = T2.id WHERE T2.city = 'Oslo'"),
    ("bare_column", "SELECT name, count(*) FROM shop GROUP BY city"),
    ("bare_column", f"SELECT T1.name, count(*) {_JOIN} GROUP BY T2.id"),
    ("text_number", "SELECT name FROM clerk WHERE weeks > 20"),
    ("text_order", "SELECT name FROM clerk ORDER BY weeks DESC LIMIT 1"),
    ("integer_division", "SELECT sum(wage) / count(*) FROM clerk WHERE shop_id = 1"),
    ("fan_out", f"SELECT sum(T2.seats) {_JOIN}"),
    ("absent_value", "SELECT count(*) FROM shop WHERE city = 'Paris'"),
    ("partial_order", "SELECT name FROM shop ORDER BY rating DESC LIMIT 1"),
]
CORRECT = ["SELECT name FROM shop", f"SELECT T1.name, T2.name {_JOIN}", "SELECT city, count(*) FROM shop GROUP BY city"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A data set of PLANTED's wrong gold queries and three correct ones."""
    make_shop(tmp_path / "databases")
    queries = [*(sql for _, sql in PLANTED), *CORRECT]
    lines = [
        {"id": f"q{i}", "db_id": "shop", "question": "What of shops?", "sql": sql} for i, sql in enumerate(queries)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"jsonl:{tmp_path}/data.jsonl"


def run(data: str, tmp_path: Path, *more: str) -> None:
    cache = f"--cache={tmp_path}/results"
    check.main([f"--data={data}", f"--output={tmp_path}/exclude.jsonl", "--workers=1", "--quiet", cache, *more])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_wrong_queries_are_found_and_correct_ones_pass(data: str, tmp_path: Path) -> None:
    run(data, tmp_path, f"--report={tmp_path}/report.jsonl")
    found = {(finding["id"], finding["rule"]) for finding in read(tmp_path / "report.jsonl")}
    assert {(f"q{i}", rule) for i, (rule, _) in enumerate(PLANTED)} <= found
    assert {name for name, _ in found} == {f"q{i}" for i in range(len(PLANTED))}


def test_training_leaves_out_the_examples_of_the_list(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(data, tmp_path)
    excluded = tmp_path / "exclude.jsonl"
    assert set(read(excluded)[0]) == {"id", "db_id", "rule", "reason", "source"}
    assert {finding["source"] for finding in read(excluded)} == {f"{tmp_path}/data.jsonl"}
    remaining = [e.id for e in example.read_examples(data, exclude=(str(excluded),))]
    # Rules of the first four are only reported by default; the last three are correct.
    assert remaining == ["q16", "q17", "q18", "q19", "q20", "q21", "q22"]
    text = capsys.readouterr().out
    assert text.startswith("23 records: 23 examples, 23 gold queries, 1 databases; ")
    assert "16 of 23 are left out; 7 remain." in text
    assert "Databases that lose more than half of their records: shop (16 of 23)." in text
    assert f"Train without them: --config.data.exclude={excluded}" in text
    assert "\nties                      2  left out  LIMIT keeps some of several rows that tie (q6, q7)\n" in text


def test_rules_option_chooses_the_excluded_examples(data: str, tmp_path: Path) -> None:
    run(data, tmp_path, "--rules=absent_value,integer_division")
    assert {(finding["id"], finding["rule"]) for finding in read(tmp_path / "exclude.jsonl")} >= {
        ("q16", "integer_division"),
        ("q18", "absent_value"),
    }
    assert {finding["rule"] for finding in read(tmp_path / "exclude.jsonl")} == {"absent_value", "integer_division"}


def test_a_second_run_finds_the_same_from_disk(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data, tmp_path)
    first = read(tmp_path / "exclude.jsonl")
    assert ", 0% of queries known from disk" in capsys.readouterr().out
    run(data, tmp_path)
    assert read(tmp_path / "exclude.jsonl") == first
    assert "% of queries known from disk" in (out := capsys.readouterr().out)
    assert ", 0% of queries" not in out


def test_a_record_without_a_database_is_left_out(tmp_path: Path) -> None:
    make_shop(tmp_path / "databases")
    lines = [{"id": i, "db_id": name, "question": "?", "sql": "SELECT 1"} for i, name in enumerate(("shop", "lost"))]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(f"jsonl:{tmp_path}/data.jsonl", tmp_path)
    assert read(tmp_path / "exclude.jsonl") == [
        {
            "id": "1",
            "db_id": "lost",
            "rule": "missing_database",
            "reason": "no readable SQLite file for its db_id",
            "source": f"{tmp_path}/data.jsonl",
        }
    ]


def test_the_counts_of_the_summary_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of eight records one has no SQL, two have no database, and one example of the other four is left out."""
    make_shop(tmp_path / "databases")
    queries = {"a": "SELECT 1", "b": "", "c": "SELECT date('now')", "d": "SELECT 2", "e": "SELECT 3", "f": "SELECT 4"}
    lines = [{"id": i, "db_id": "shop", "question": "?", "sql": sql} for i, sql in queries.items()]
    lines += [{"id": i, "db_id": "lost", "question": "?", "sql": "SELECT 1"} for i in ("g", "h")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(f"jsonl:{tmp_path}/data.jsonl", tmp_path)
    text = capsys.readouterr().out
    assert text.startswith("8 records: 5 examples, ")
    assert "3 of 8 are left out; 1 more cannot be used; 4 remain." in text
    assert "Databases that lose more than half of their records: lost (2 of 2)." in text
    assert len(example.read_examples(f"jsonl:{tmp_path}/data.jsonl", exclude=(f"{tmp_path}/exclude.jsonl",))) == 4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--rules=tie", "--rules: 'tie' leaves nothing out; choose from missing_database, "),
        ("--rules=bad_record", "--rules: 'bad_record' leaves nothing out"),
        ("--report=/nowhere/at/all.jsonl", "/nowhere/at is not a folder: create it"),
        ("--data=spidr:x", "'spidr:x' is not a data source: write PREFIX:PATH"),
        ("--workers=0", "config.execute.workers is 0; it must be at least 1."),
        ("--limit=-1", "config.data.limit is -1; it must be at least 0."),
        ("--schema=fix", "config.data.schema is 'fix'; it takes one of"),
        ("--tokenizer=/nowhere", "/nowhere has no tokenizer.json"),
    ],
)
def test_bad_input_is_an_error_before_work_starts(data: str, tmp_path: Path, more: str, words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(data, tmp_path, more)
    assert str(stopped.value).startswith("error: ")
    assert words in str(stopped.value)
    assert not (tmp_path / "exclude.jsonl").exists()


def test_twenty_wrong_queries_planted_in_spider_are_found(shared_data: Path, tmp_path: Path) -> None:
    """Removes the condition of joins of two tables; Spider itself has six gold queries with that error."""
    records = json.loads((shared_data / "spider_train" / "train_spider.json").read_text())[:400]
    planted: list[str] = []
    for i, record in enumerate(records):
        without = re.sub(r" ON T1\.\w+\s*=\s*T2\.\w+", "", record["query"])
        if record["query"].count(" JOIN ") == 1 != without.count(" ON ") and i % 3 == 0 and len(planted) < 20:
            record["query"] = without
            planted.append(str(i))
    (tmp_path / "train_spider.json").write_text(json.dumps(records))
    run(f"spider:{tmp_path}", tmp_path, f"--databases={shared_data / 'spider_train' / 'database'}")
    assert len(planted) == 20
    assert [f["id"] for f in read(tmp_path / "exclude.jsonl") if f["rule"] == "cross_join"] == planted


@few_or_many
def test_a_damaged_file_is_checked_or_named_by_the_error(
    tmp_path: Path, pets: Path, executor: Executor, count: int
) -> None:
    """The steps of `check.main`, with one pool of workers for all files."""
    num_checked = 0
    for files in damaged_files(tmp_path, count):
        try:
            examples, set_aside = example.read_all_records(
                f"{files.prefix or 'jsonl'}:{files.gold}", str(pets.parents[1])
            )
        except ExampleError as error:
            assert files.gold.name in str(error), files
            continue
        of_records = preflight.record_findings(set_aside)
        of_examples = [f for _, some in preflight.Preflight(executor).findings(examples) for f in some]
        result = check.CheckResult(examples, of_records, [*of_records, *of_examples], 0.0, 0.0)
        check.write_report(tmp_path / "found.jsonl", result)
        assert len(read(tmp_path / "found.jsonl")) == len(result.findings)
        assert f"{len(examples) + len(set_aside)} records: {len(examples)} examples" in check.summary(
            result, list(RULES)
        )
        num_checked += bool(examples)
    assert num_checked > 0.4 * count
    assert executor.stats()["sql/crashes"] == executor.stats()["sql/wall_kills"] == 0


def test_parts_of_a_database_that_cannot_be_read_cost_their_questions_and_a_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queries = {
        "malformed": ["SELECT name FROM city", "SELECT name FROM street"],
        "parts": ["SELECT name FROM city", "SELECT id FROM street", "SELECT * FROM SpatialIndex"],
    }
    for db_id, make in (("malformed", make_malformed), ("parts", make_broken_parts)):
        (tmp_path / "databases" / db_id).mkdir(parents=True)
        make(tmp_path / "databases" / db_id / f"{db_id}.sqlite")
    records = [{"db_id": db_id, "question": "?", "sql": sql} for db_id, some in queries.items() for sql in some]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run(f"jsonl:{tmp_path}/data.jsonl", tmp_path)
    assert [(line["id"], line["rule"], line["reason"]) for line in read(tmp_path / "exclude.jsonl")] == [
        ("1", "broken_database", "street: its entry in the schema is malformed"),
        ("4", "broken_database", "SpatialIndex: no such module: VirtualSpatialIndex"),
    ]
    folder = tmp_path / "databases"
    assert [message.removeprefix(f"{folder}/") for message in caplog.messages] == [
        "malformed/malformed.sqlite: malformed database schema (street) - incomplete input. "
        "Tables that cannot be read: street. Restore the file.",
        "parts/parts.sqlite: view lost is left out of the schema, since it cannot be read (no such table: main.gone).",
        "parts/parts.sqlite: table SpatialIndex is left out of the schema, since it cannot be read "
        "(no such module: VirtualSpatialIndex).",
    ]
