from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from sqlr1_jax.data import record_index
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.record_index import Index, IndexedExamples

ROWS_NR = np.array([[10, 5, 0, 1], [20, 6, 2, 0], [30, 7, 3, 1]], np.int64)
INDEX = Index(ROWS_NR, [("pets", "/pets.sqlite"), ("shop", "/shop.sqlite")], [(logging.WARNING, "one set aside")])


def fail() -> Index:
    raise AssertionError("the index was made again")


def test_an_index_is_kept_with_what_there_was_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_index.open_or_make(tmp_path / "indices", ["a", 1], lambda: INDEX)
    kept = record_index.open_or_make(tmp_path / "indices", ["a", 1], fail)
    assert kept.rows_NR.tolist() == ROWS_NR.tolist()
    assert isinstance(kept.rows_NR, np.memmap)
    assert kept.databases == INDEX.databases
    assert caplog.messages == ["one set aside"] * 2
    with pytest.raises(AssertionError, match="made again"):
        record_index.open_or_make(tmp_path / "indices", ["a", 2], fail)


@pytest.mark.parametrize("name", ["rows.npy", "index.json"])
def test_a_damaged_index_is_made_again(tmp_path: Path, name: str) -> None:
    record_index.open_or_make(tmp_path, "key", lambda: INDEX)
    (file,) = tmp_path.glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[:-20])
    assert record_index.open_or_make(tmp_path, "key", lambda: INDEX) is INDEX
    assert record_index.open_or_make(tmp_path, "key", fail).rows_NR.tolist() == ROWS_NR.tolist()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert record_index.open_or_make(tmp_path / "file", "key", lambda: INDEX) is INDEX
    assert "cannot be kept" in caplog.text


def test_examples_are_made_when_asked_for() -> None:
    made = []

    def make(row: record_index.Row, db_id: str, database: str) -> Example:
        made.append(row.start)
        return Example(str(row.position), db_id, Path(database), "How many?", "SELECT 1")

    examples = IndexedExamples(INDEX, make)
    assert (len(examples), made) == (3, [])
    assert [positions.tolist() for positions in examples.positions_by_database()] == [[0, 2], [1]]
    assert [positions.tolist() for positions in examples[1:].positions_by_database()] == [[0], [1]]
    assert (examples[-1].id, examples[1].db_id, examples[1].database) == ("3", "pets", Path("/pets.sqlite"))
    assert made == [30, 20, 20]
    assert [one.id for one in examples[1:]] == ["2", "3"]
    assert [one.id for one in examples] == ["0", "2", "3"]
    with pytest.raises(IndexError):
        examples[3]
