"""File access: text files that are written atomically, JSON and JSONL."""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from sqlr1_jax.errors import ConfigError, Sqlr1Error

log = logging.getLogger(__name__)

OnBadLines = Literal["error", "warn", "keep"]
_START = 256  # bytes of a file that tell what it is
_SURROGATE = re.compile("[\ud800-\udfff]")


class EncodingError(Sqlr1Error):
    """A text file that is not UTF-8; the message names the file, the line and the fix."""


class JsonError(Sqlr1Error):
    """A file or a line of a JSONL file that is not JSON; the message names the file, the line and the fix."""


@contextlib.contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Opens a file of UTF-8, with or without a byte order mark.

    newline: as in `open`; "" keeps every line end as it is, so that lengths add up to positions in the file.

    Raises:
      EncodingError: the file is read inside the context, and is not UTF-8.
    """
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise EncodingError(_where_not_utf8(path)) from error


def _where_not_utf8(path: Path) -> str:
    fix = "save the file as UTF-8, for example with `iconv -t utf-8 -f"
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return f"{path} is UTF-16; {fix} utf-16`."
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{path}: in line {number}, byte {error.start} is not UTF-8; {fix} latin1`."
    return f"{path} is not UTF-8; {fix} latin1`."


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a text to a temporary file next to `path` and renames it, so that a reader finds the old text or the new.

    If two processes write one file, the later one wins.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON for people to read, atomically."""
    atomic_write_text(path, json.dumps(value, indent=1))


def write_jsonl(path: Path, records: Iterable[Any], ensure_ascii: bool = True) -> None:
    """Writes a line of JSON per record, atomically. ensure_ascii: whether to escape letters outside ASCII."""
    text = "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records)
    # A file cannot hold half of a surrogate pair, which a string of JSON can.
    atomic_write_text(path, _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):x}", text))


def user_path(text: str) -> Path:
    """The path that a user wrote; ~ is the home folder, which a shell leaves as it is in --workdir=~/runs.

    Raises:
      ConfigError: there is no home folder, and the path needs one.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text}: there is no home folder (HOME is not set). Write an absolute path.") from error


def find_fault(path: Path) -> str:
    """What an interrupted or refused download left instead of a file, as the end of a sentence; "" if nothing known."""
    return _fault_of(_first_bytes(path))


def _fault_of(content: bytes) -> str:
    """The fault of a file that begins with these bytes, as of `find_fault`."""
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start and len(content) < _START:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer instead of the file: run `git lfs pull` in its folder"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page instead of the file, perhaps one that asks for a login"
    return ""


def find_text_fault(path: Path) -> str:
    """As `find_fault`, for a file of text: it may also be UTF-16 without a byte order mark, which is valid UTF-8."""
    content = _first_bytes(path)
    if len(content) >= 8 and not (any(content[:8:2]) and any(content[1:8:2])):
        return "is UTF-16 or UTF-32: save it as UTF-8, for example with `iconv -t utf-8 -f utf-16le`"
    return _fault_of(content)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_START)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is not JSON, or nested too deeply, or it has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """The value that a JSON file holds.

    Raises:
      JsonError: it is not JSON; the message says if it is empty, a Git LFS pointer or a web page.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        if fault := find_fault(path):
            raise JsonError(f"{path} {fault}. Restore the file, or download it again.") from error
        raise JsonError(f"{path} is not JSON ({error}). Restore the file, or download it again.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      JsonError: it is not JSON, or another value than an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise JsonError(
            f"{path} holds a {type(value).__name__}, not an object. Restore the file, or download it again."
        )
    return value


def read_jsonl(path: Path, on_bad_lines: OnBadLines = "error") -> Iterator[Any]:
    """Yields the value of each line that is not blank, one line in memory at a time.

    on_bad_lines: what happens to a line that is not JSON. "error": raises; "warn": logs and skips it, for files whose
    last line may be cut off because the writer was killed; "keep": yields the line's text in place of a value.

    Raises:
      JsonError: a line is not JSON, under "error".
      EncodingError: the file is not UTF-8.
    """
    return (value for _, value in read_numbered_jsonl(path, on_bad_lines))


def read_numbered_jsonl(path: Path, on_bad_lines: OnBadLines = "error") -> Iterator[tuple[int, Any]]:
    """Yields (line number, value) as `read_jsonl` yields values; lines count from 1, blank ones too."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = parse_json(line)
            except ValueError:
                problem = f"{path}, line {number} is not JSON: {line.strip()[:60]!r}"
                if on_bad_lines == "error":
                    raise JsonError(f"{problem}. Repair the line or remove it.") from None
                if on_bad_lines == "warn":
                    log.warning("%s: left out, perhaps cut short by a kill", problem)
                    continue
                value = line
            yield number, value
