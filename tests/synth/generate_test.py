from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.config import SynthConfig
from sqlr1_jax.synth import generate as module
from sqlr1_jax.synth import words
from sqlr1_jax.synth.generate import SPLITS, generate
from sqlr1_jax.synth.worker import SynthError

Records = dict[str, list[dict[str, Any]]]
TINY = SynthConfig(
    sft_databases=6,
    sft_questions=4,
    grpo_databases=3,
    heldout_databases=2,
    newnames_databases=2,
    workers=1,
)


def _rows(data_folder: Path, record: dict[str, Any], sql: str = "") -> list[tuple[Any, ...]]:
    path = data_folder / "databases" / record["db_id"] / f"{record['db_id']}.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return sorted(connection.execute(sql or record["sql"]))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_splits_have_their_sizes_and_share_no_database(records: Records, small_config: SynthConfig) -> None:
    databases = {split: {record["db_id"] for record in records[split]} for split in SPLITS}
    for split in SPLITS:
        assert len(databases[split]) == getattr(small_config, f"{split}_databases")
        assert len(records[split]) == len(databases[split]) * getattr(small_config, f"{split}_questions")
    assert len(set().union(*databases.values())) == sum(map(len, databases.values()))
    assert len({record["id"] for split in SPLITS for record in records[split]}) == sum(map(len, records.values()))


def test_records_have_the_names_of_synsql(records: Records) -> None:
    synsql = {"db_id", "sql_complexity", "question_style", "question", "external_knowledge", "cot", "sql"}
    for split in SPLITS:
        ours = {"id", "family", "habit"} | ({"spoiled"} if split == "sft" else set())
        assert {frozenset(record) for record in records[split]} == {frozenset(synsql | ours)}


def test_every_gold_query_runs_and_returns_rows(data_folder: Path, records: Records) -> None:
    for split in SPLITS:
        for record in records[split]:
            rows = _rows(data_folder, record)
            assert rows
            assert rows != [(0,)]
            assert rows != [(None,)]


def test_removing_a_filter_from_the_text_changes_the_result(data_folder: Path, records: Records) -> None:
    """Edits the SQL text, so it does not depend on synth/checks.py."""
    checked = 0
    for record in records["heldout"]:
        found = re.fullmatch(r"(SELECT [^()]* FROM [^()]*?) WHERE [^()]*?( ORDER BY .*| GROUP BY .*)?", record["sql"])
        if found and not re.search("INTERSECT|EXCEPT| AND | OR ", record["sql"]):
            assert _rows(data_folder, record, found[1] + (found[2] or "")) != _rows(data_folder, record), record["sql"]
            checked += 1
    assert checked >= 20


def test_limits_break_no_ties(data_folder: Path, records: Records) -> None:
    checked = 0
    for record in records["grpo"]:
        if found := re.fullmatch(r"SELECT .*? (FROM .* ORDER BY (\w+) \w+) LIMIT (\d)", record["sql"]):
            with_one_more = _rows(data_folder, record, f"SELECT {found[2]} {found[1]} LIMIT {int(found[3]) + 1}")
            assert len(set(with_one_more)) == int(found[3]) + 1
            checked += 1
    assert checked >= 10


def test_habits_can_spoil_a_quarter_to_a_third_of_the_questions(records: Records) -> None:
    for split in ("sft", "heldout", "newnames"):
        habits = collections.Counter(record["habit"] for record in records[split])
        count = len(records[split])
        assert 0.25 <= (habits["extra_column"] + habits["dropped_distinct"]) / count <= 0.31
        assert habits["extra_column"] / count > 0.12
        assert habits["dropped_distinct"] / count > 0.10


def test_a_habit_changes_the_result(data_folder: Path, records: Records) -> None:
    assert {record["habit"] for record in records["heldout"]} == {"", "dropped_distinct", "extra_column"}
    for record in records["heldout"]:
        if record["habit"] == "dropped_distinct":
            assert _rows(data_folder, record, record["sql"].replace("DISTINCT ", "")) != _rows(data_folder, record)
        elif record["habit"] == "extra_column":
            column = re.search(r"ORDER BY (\w+)|WHERE (\w+) [<>] \(", record["sql"])
            assert column is not None
            assert record["sql"].split(" FROM ")[0].count(",") == 0
            assert (column[1] or column[2]) not in record["sql"].split(" FROM ")[0].split()


def test_only_sft_has_spoiled_records_and_they_differ_only_in_sql_and_reasoning(
    data_folder: Path, records: Records, small_config: SynthConfig, tmp_path: Path
) -> None:
    generate(dataclasses.replace(small_config, teacher_errors=0.0), 7, tmp_path / "sound")
    sound = json.loads((tmp_path / "sound" / "sft.json").read_text())
    eligible = [record for record in records["sft"] if record["habit"]]
    assert 0.65 < sum(record["spoiled"] for record in eligible) / len(eligible) < 0.85
    for spoiled, correct in zip(records["sft"], sound, strict=True):
        differing = {key for key in spoiled if spoiled[key] != correct[key]}
        assert differing == ({"sql", "cot", "spoiled"} if spoiled["spoiled"] else set())
        if spoiled["spoiled"]:
            assert _rows(data_folder, spoiled) != _rows(data_folder, correct)
    for split in ("grpo", "heldout", "newnames"):
        assert json.loads((tmp_path / "sound" / f"{split}.json").read_text()) == records[split]


def test_only_newnames_has_reserved_names(data_folder: Path) -> None:
    reserved = set(words.names(words.RESERVED))
    for folder in sorted((data_folder / "databases").iterdir()):
        with closing(sqlite3.connect(folder / f"{folder.name}.sqlite")) as connection:
            schema = " ".join(row[0] for row in connection.execute("SELECT sql FROM sqlite_master"))
        assert bool(reserved & set(re.findall("[a-z]+", schema))) == folder.name.startswith("newnames")


def test_one_question_has_one_gold_query(records: Records) -> None:
    for split in ("grpo", "heldout", "newnames"):
        gold_queries = collections.defaultdict(set)
        for record in records[split]:
            gold_queries[record["db_id"], record["question"]].add(record["sql"])
        assert all(len(found) == 1 for found in gold_queries.values())


def test_data_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    generate(TINY, 1, tmp_path / "one")
    generate(dataclasses.replace(TINY, workers=3), 1, tmp_path / "three")
    assert _digests(tmp_path / "one") == _digests(tmp_path / "three")
    generate(TINY, 2, tmp_path / "other")
    assert (tmp_path / "other" / "grpo.json").read_text() != (tmp_path / "one" / "grpo.json").read_text()


def test_a_complete_folder_stays_and_other_settings_are_refused(tmp_path: Path) -> None:
    folder, lines = tmp_path / "data", list[str]()
    generate(TINY, 1, folder)
    before = _digests(folder)
    generate(dataclasses.replace(TINY, workers=2), 1, folder, lines.append)
    assert lines == [f"data: {folder} is complete"]
    with pytest.raises(SynthError, match=r"teacher_errors is 0.75, not 0.0"):
        generate(dataclasses.replace(TINY, teacher_errors=0.0), 1, folder)
    assert _digests(folder) == before


def test_after_a_killed_run_the_folder_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.tokenizer, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            generate(TINY, 1, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    generate(TINY, 1, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_other_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(SynthError, match=r"holds files but no made.json"):
        generate(TINY, 1, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_a_relative_folder_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generate(dataclasses.replace(TINY, workers=2), 1, Path("data"))
    assert len(list((tmp_path / "data" / "databases").iterdir())) == 13


def test_a_failed_worker_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(SynthError, match=r"exited with status 1"):
        generate(dataclasses.replace(TINY, workers=2), 1, tmp_path / "data")
    assert not (tmp_path / "data").exists()
