from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from sqlr1_jax import config
from sqlr1_jax.sql.database import DatabaseError
from sqlr1_jax.sql.executor import Executor, Outcome
from sqlr1_jax.sql.gold_files import GoldFile

CFG = config.Execute(workers=1)
RED = Outcome("ok", ((10, "é", None, 2.5),), ("a", "b", "c", "d"), 1, 1000, 0.5, "", "f00")


def test_an_outcome_comes_back_as_it_was(tmp_path: Path, pets: Path) -> None:
    first = GoldFile(tmp_path / "golds", pets, CFG)
    first.put("SELECT 1", RED)
    assert first.get("SELECT 1") == RED
    first.save()
    second = GoldFile(tmp_path / "golds", pets, CFG)
    assert second.get("SELECT 1") == RED
    assert second.get("SELECT 2") is None


def test_what_the_sandbox_answers_comes_back(tmp_path: Path, pets: Path) -> None:
    with Executor(CFG) as executor:
        outcomes = {sql: executor.run(pets, sql).result() for sql in ("SELECT * FROM dogs", "SELECT fur FROM dogs")}
    file = GoldFile(tmp_path, pets, CFG)
    for sql, outcome in outcomes.items():
        file.put(sql, outcome)
    file.save()
    again = GoldFile(tmp_path, pets, CFG)
    assert {sql: again.get(sql) for sql in outcomes} == outcomes
    assert [one.kind for one in outcomes.values()] == ["ok", "syntax_error"]


def test_the_key_is_content_and_limits_not_the_path(tmp_path: Path, pets: Path) -> None:
    here = GoldFile(tmp_path, pets, CFG).path
    copy = tmp_path / "copy.sqlite"
    shutil.copy(pets, copy)
    assert GoldFile(tmp_path, copy, CFG).path == here
    assert GoldFile(tmp_path, pets, dataclasses.replace(CFG, max_steps=5000)).path != here
    assert GoldFile(tmp_path, pets, dataclasses.replace(CFG, workers=7, wall_seconds=9.0)).path == here
    with copy.open("ab") as file:
        file.write(b"\0" * 4096)
    assert GoldFile(tmp_path, copy, CFG).path != here


def test_another_version_of_sqlite_has_other_files(tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = GoldFile(tmp_path, pets, CFG).path
    monkeypatch.setattr("sqlr1_jax.sql.backends.version", lambda name: "9.9.9")
    assert GoldFile(tmp_path, pets, CFG).path != here


def test_a_truncated_file_loses_no_more_than_its_last_line(tmp_path: Path, pets: Path) -> None:
    file = GoldFile(tmp_path, pets, CFG)
    for number in range(5):
        file.put(f"SELECT {number}", RED)
    file.save()
    data = file.path.read_bytes()
    file.path.write_bytes(data[:-30])
    again = GoldFile(tmp_path, pets, CFG)
    assert [again.get(f"SELECT {number}") == RED for number in range(5)] == [True] * 4 + [False]
    again.put("SELECT 4", RED)
    again.save()
    assert file.path.read_bytes() == data


@pytest.mark.parametrize("line", ["", "[]", '{"sql": "SELECT 0"}', '{"sql": "SELECT 0", "kind": "ok"}', "\x00\xff"])
def test_a_line_that_is_no_outcome_is_as_if_absent(tmp_path: Path, pets: Path, line: str) -> None:
    file = GoldFile(tmp_path, pets, CFG)
    file.path.write_text(f"{line}\n{json.dumps({'sql': 'SELECT 1', **dataclasses.asdict(RED)})}\n")
    again = GoldFile(tmp_path, pets, CFG)
    assert again.get("SELECT 0") is None
    assert again.get("SELECT 1") == RED


def test_two_that_write_in_turn_keep_each_others_outcomes(tmp_path: Path, pets: Path) -> None:
    one, other = GoldFile(tmp_path, pets, CFG), GoldFile(tmp_path, pets, CFG)
    one.put("SELECT 1", RED)
    other.put("SELECT 2", RED)
    one.save()
    other.save()
    third = GoldFile(tmp_path, pets, CFG)
    assert third.get("SELECT 1") == third.get("SELECT 2") == RED
    assert [path.name for path in tmp_path.iterdir()] == [one.path.name]


def test_what_the_wall_clock_decided_is_not_kept(tmp_path: Path, pets: Path) -> None:
    file = GoldFile(tmp_path, pets, CFG)
    file.put("SELECT 1", Outcome("timeout", message="killed, no word for 30 s"))
    file.save()
    assert file.get("SELECT 1") is None
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"lost\.sqlite does not exist"):
        GoldFile(tmp_path, tmp_path / "lost.sqlite", CFG)
