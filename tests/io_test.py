from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sqlr1_jax.io import (
    JsonError,
    atomic_write_text,
    find_text_fault,
    parse_json,
    read_json,
    read_jsonl,
    read_numbered_jsonl,
    write_jsonl,
)


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


@pytest.mark.parametrize(
    ("text", "why"), [("[" * 100_000, "nested too deeply"), ("9" * 5000, "digits"), ("{", "Expecting property name")]
)
def test_a_text_that_is_no_usable_json_is_a_value_error(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)
    path = tmp_path / "lines.jsonl"
    path.write_text(f"1\n{text}\n2\n")
    with pytest.raises(JsonError, match=r"lines\.jsonl, line 2 is not JSON"):
        list(read_jsonl(path))
    assert list(read_jsonl(path, "warn")) == [1, 2]
    with pytest.raises(JsonError, match=why):
        path.write_text(text)
        read_json(path)


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_half_of_a_surrogate_pair_is_written_as_json_can(tmp_path: Path, ensure_ascii: bool) -> None:
    records = [{"id": "a\ud800b", "sql": "größe 😀"}, "\udfff"]
    write_jsonl(tmp_path / "a.jsonl", records, ensure_ascii)
    assert list(read_jsonl(tmp_path / "a.jsonl")) == records


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("SELECT 1\n".encode("utf-16-le"), "is UTF-16"),
        ("SELECT 1\n".encode("utf-16-be"), "is UTF-16"),
        ("SELECT 1\n".encode("utf-32-le"), "is UTF-16 or UTF-32"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"\n" * 1000 + b"SELECT 1", ""),
        (b"SELECT 1", ""),
    ],
)
def test_faults_of_a_file_of_text(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "a.sql").write_bytes(content)
    found = find_text_fault(tmp_path / "a.sql")
    assert found.startswith(fault) and bool(found) == bool(fault)
