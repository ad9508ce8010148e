from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sqlr1_jax.io import JsonError, atomic_write_text, read_json, read_jsonl, read_numbered_jsonl


def test_a_text_replaces_the_one_before_and_leaves_no_other_file(tmp_path: Path) -> None:
    for text in ("first, and longer", "zwei ≥ 2"):
        atomic_write_text(tmp_path / "summary.json", text)
        assert (tmp_path / "summary.json").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_write_that_fails_leaves_the_old_text(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(tmp_path / "a", "new \ud800")
    assert (tmp_path / "a").read_text() == "old"


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": "≥"}', encoding="utf-8")
    assert read_json(path) == {"a": "≥"}
    path.write_text('{"a": ')
    with pytest.raises(JsonError, match=r"config\.json is not JSON \(.*\)\. Restore the file"):
        read_json(path)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A JSONL file whose fourth line is not JSON."""
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": "≥"}\n\n  \n{broken\n"text"\n{"b": 1', encoding="utf-8")
    return path


def test_a_bad_line_is_an_error_that_names_file_line_and_fix(lines: Path) -> None:
    with pytest.raises(JsonError) as error:
        list(read_jsonl(lines))
    assert str(error.value) == f"{lines}, line 4 is not JSON: '{{broken'. Repair the line or remove it."


def test_lines_before_a_bad_one_are_read(lines: Path) -> None:
    assert next(read_jsonl(lines)) == {"a": "≥"}


def test_bad_lines_are_left_out_and_logged(lines: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(read_jsonl(lines, on_bad_lines="warn")) == [{"a": "≥"}, "text"]
    assert [message.partition(" is not")[0] for message in caplog.messages] == [f"{lines}, line 4", f"{lines}, line 6"]


def test_bad_lines_are_kept_as_text(lines: Path) -> None:
    assert list(read_jsonl(lines, on_bad_lines="keep")) == [{"a": "≥"}, "{broken\n", "text", '{"b": 1']


def test_line_numbers_count_blank_lines(lines: Path) -> None:
    assert [number for number, _ in read_numbered_jsonl(lines, on_bad_lines="keep")] == [1, 4, 5, 6]


def test_a_separator_within_a_string_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [{"question": "one\u2028two\x85three"}]
