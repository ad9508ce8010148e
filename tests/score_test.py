from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax import score
from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.evaluate.benchmarks import formats, metrics
from sqlr1_jax.sql.executor import Executor
from testing.damage import few_or_many
from testing.damaged_data import damaged_files
from testing.databases import make_malformed

GOLD = [
    {"question_id": 11, "db_id": "pets", "SQL": "SELECT DISTINCT age FROM dogs", "difficulty": "simple"},
    {"question_id": 12, "db_id": "pets", "SQL": "SELECT 1, 2", "difficulty": "moderate"},
    {"question_id": 13, "db_id": "kennel", "SQL": "SELECT nope FROM dogs", "difficulty": "simple"},
    {"question_id": 14, "db_id": "kennel", "SQL": "SELECT count(*) FROM dogs", "difficulty": "simple"},
]
PREDICTED = [
    {"id": 11, "db_id": "pets", "sql": "SELECT age FROM dogs"},
    {"id": 12, "db_id": "pets", "sql": "SELECT 2, 1"},
    {"id": 13, "db_id": "kennel", "sql": "SELECT 1"},
    {"id": 99, "db_id": "elsewhere", "sql": "SELECT 1"},
]


@pytest.fixture
def files(tmp_path: Path, pets: Path) -> Path:
    for name in ("pets", "kennel"):
        (tmp_path / "databases" / name).mkdir(parents=True)
        shutil.copy(pets, tmp_path / "databases" / name / f"{name}.sqlite")
    (tmp_path / "dev.json").write_text(json.dumps(GOLD))
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in PREDICTED))
    return tmp_path


def arguments(files: Path, *more: str) -> list[str]:
    return [f"--gold={files}/dev.json", f"--predictions={files}/predictions.jsonl", "--workers=1", *more]


def printed(files: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    score.main(arguments(files, "--json", *more))
    return json.loads(capsys.readouterr().out)


def verdicts(files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (files / "verdicts.jsonl").read_text().splitlines()]


def test_json_output_has_the_figures_and_output_the_verdicts(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = printed(files, capsys, "--metric=spider,bird,soft_f1", f"--output={files}/verdicts.jsonl")
    assert result["metrics"]["spider"]["all"] == {"n": 4, "score": 0.25, "interval": [0.0, 0.5]}
    assert result["metrics"]["bird"]["all"]["score"] == 0.25
    assert result["metrics"]["soft_f1"]["all"]["score"] == 0.5
    by_difficulty = result["metrics"]["spider"]["by_difficulty"]
    assert {name: (figure["n"], figure["score"]) for name, figure in by_difficulty.items()} == {
        "simple": (3, 0.0),
        "moderate": (1, 1.0),
    }
    assert (result["n"], result["databases"], result["missing"], result["ignored"], result["gold_errors"]) == (
        4,
        2,
        1,
        1,
        1,
    )
    assert result["outcomes"] == {"gold_error": 1, "match": 1, "mismatch": 1, "missing": 1}
    assert (result["compat"], result["sqlite"]) == (False, sqlite3.sqlite_version)
    assert verdicts(files) == [
        {"id": "11", "spider": False, "bird": True, "soft_f1": 1.0, "outcome": "mismatch"},
        {"id": "12", "spider": True, "bird": False, "soft_f1": 1.0, "outcome": "match"},
        {"id": "13", "spider": False, "bird": False, "soft_f1": 0.0, "outcome": "gold_error"},
        {"id": "14", "spider": False, "bird": False, "soft_f1": 0.0, "outcome": "missing"},
    ]


def test_compat_removes_distinct_and_gives_null_where_the_official_code_raises(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "--compat", "--metric=spider,bird", f"--output={files}/verdicts.jsonl"
    result = printed(files, capsys, *more)
    assert result["metrics"]["spider"]["all"]["score"] == 0.5
    assert result["raised"] == {"spider": 1, "bird": 0}
    assert (result["compat"], result["keep_distinct"]) == (True, False)
    assert [line["spider"] for line in verdicts(files)] == [True, True, None, False]
    assert [line["bird"] for line in verdicts(files)] == [True, False, False, False]
    assert printed(files, capsys, *more, "--keep_distinct")["metrics"]["spider"]["all"]["score"] == 0.25
    assert [line["spider"] for line in verdicts(files)] == [False, True, None, False]


def test_the_table_has_figures_and_remarks(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score.main(arguments(files, "--metric=spider"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["spider", "all", "4", "25.00", "0.0", "to", "50.0"]
    assert lines[3].split() == ["spider", "moderate", "1", "100.00", "none:", "one", "database"]
    assert f"4 gold queries on 2 databases, compared by this project's rules; SQLite {sqlite3.sqlite_version}" in lines
    assert "1 gold queries without a prediction, counted as wrong" in lines
    assert "1 predictions whose id is not in the gold file, ignored" in lines
    assert any(line.startswith("1 gold queries that fail") for line in lines)
    (files / "dev.sql").write_text("SELECT 1\tpets\n")
    (files / "predictions.txt").write_text("SELECT 1\n")
    score.main([f"--gold={files}/dev.sql", f"--predictions={files}/predictions.txt", "--workers=1"])
    assert "the gold file has no difficulties" in capsys.readouterr().out


def test_r_ves_scores_timed_runs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = printed(files, capsys, "--metric=r_ves", "--iterations=3", f"--output={files}/verdicts.jsonl")
    rewards = [line["r_ves"] for line in verdicts(files)]
    assert 0 < rewards[0] <= 1.25**0.5  # right as a set; the others are wrong
    assert rewards[1:] == [0.0, 0.0, 0.0]
    assert result["metrics"]["r_ves"]["all"]["score"] == pytest.approx(sum(rewards) / 4)


def test_an_evaluation_has_the_same_score_as_in_the_run(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = files / "databases" / "pets" / "pets.sqlite"
    golds = ["SELECT count(*) FROM dogs", "SELECT color FROM dogs WHERE age > 99", "SELECT 1", "SELECT 2"]
    texts = ["```sql\nSELECT 4\n```", "```sql\nSELECT 1 WHERE 0\n```", "no", "```sql\nDROP TABLE dogs\n```"]
    examples = [Example(f"h-{i}", "pets", database, "?", sql, complexity="Simple") for i, sql in enumerate(golds)]
    with Executor(ExecuteConfig(workers=1)) as executor:
        candidates = accuracy.execute_candidates(executor, examples, [[text] for text in texts], "direct", "spider")
    lines = [accuracy.evaluation_line(e, "heldout", g[0]) for e, g in zip(examples, candidates, strict=True)]
    lines.append(lines[0] | {"id": "n-0", "set": "newnames", "db_id": "newnames_0"})
    (files / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = [{"id": e.id, "db_id": "pets", "sql": e.sql, "sql_complexity": e.complexity} for e in examples]
    (files / "dev.json").write_text(json.dumps(records))
    result = printed(files, capsys, f"--output={files}/verdicts.jsonl")
    assert (
        result["metrics"]["spider"]["all"]["score"]
        == accuracy.fraction_correct(g[0].correct for g in candidates)
        == 0.5
    )
    assert [line["outcome"] for line in verdicts(files)] == ["match", "match_empty", "no_sql", "denied"]
    assert result["ignored"] == 1


def test_bad_input_is_reported_before_any_query_runs(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "Executor", None)
    with pytest.raises(SystemExit, match=r"error: .*nowhere.jsonl: no such file; check --predictions="):
        score.main([f"--gold={files}/dev.json", f"--predictions={files}/nowhere.jsonl"])
    with pytest.raises(SystemExit, match=r"error: 2 of 2 databases are missing, first pets"):
        score.main(arguments(files, f"--databases={files}/elsewhere"))
    for wrong, message in [
        ("--metric=spyder", "there is no metric 'spyder'; choose from spider,bird,soft_f1,r_ves"),
        ("--keep_distinct", "--keep_distinct needs --compat"),
        ("--iterations=1", "one run has no spread"),
        ("--workers=0", "0 is not a positive integer"),
        ("--output=nowhere/verdicts.jsonl", "--output=nowhere/verdicts.jsonl: the folder does not exist"),
    ]:
        with pytest.raises(SystemExit):
            score.main(arguments(files, wrong))
        assert message in capsys.readouterr().err


def test_compat_refuses_a_metric_without_an_official_rule(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = dataclasses.replace(metrics.METRICS["bird"], official_rule=None)
    monkeypatch.setitem(metrics.METRICS, "ours", ours)
    score.main(arguments(files, "--metric=ours"))
    monkeypatch.setattr(score, "Executor", None)  # nothing runs
    with pytest.raises(SystemExit, match=r"^error: --compat: ours has no official rule\..*--metric=[^\n]*$"):
        score.main(arguments(files, "--metric=spider,ours", "--compat"))


def test_the_command_does_not_import_jax() -> None:
    code = "import sys, sqlr1_jax.score; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@few_or_many
def test_damaged_files_are_scored_or_named_by_the_error(
    tmp_path: Path, pets: Path, executor: Executor, count: int
) -> None:
    """The steps of `score.score`, with one pool of workers for all files."""
    num_scored = 0
    for files in damaged_files(tmp_path, count):
        for compat in (False, True):
            protocol = metrics.Protocol(compat)
            try:
                golds = formats.read_golds(files.gold, compat)
                predictions = formats.read_predictions(files.predictions, golds)
                databases = formats.find_databases(golds, pets.parents[1], compat)
            except ExampleError as error:
                assert files.gold.name in str(error) or files.predictions.name in str(error) or "missing" in str(error)
                continue
            verdicts = metrics.judge_predictions(executor, "spider", golds, predictions, databases, protocol)
            json.dumps(metrics.figures(golds, verdicts))
            num_scored += any(verdict.value == 1 for verdict in verdicts)
    assert num_scored > 0.3 * count
    assert executor.stats()["sql/crashes"] == executor.stats()["sql/wall_kills"] == 0


def test_a_malformed_entry_of_one_table_costs_the_queries_on_it_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "databases" / "parts").mkdir(parents=True)
    path = make_malformed(tmp_path / "databases" / "parts" / "parts.sqlite")
    queries = ["SELECT name FROM city", "SELECT count(*) FROM shop", "SELECT name FROM street"]
    (tmp_path / "dev.json").write_text(json.dumps([{"db_id": "parts", "query": sql} for sql in queries]))
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps({"sql": sql}) + "\n" for sql in queries))
    result = printed(tmp_path, capsys)
    assert (result["outcomes"], result["gold_errors"]) == ({"gold_error": 1, "match": 2}, 1)
    assert [message.partition(" - ")[0] for message in caplog.messages] == [
        f"{path}: malformed database schema (street)"
    ]
    assert printed(tmp_path, capsys, "--compat")["outcomes"] == {"gold_error": 3}  # the official code can read no table
