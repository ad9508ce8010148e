"""The file formats of text-to-SQL data (docs/method.md, section 10).

Each format is read as a stream of records with `Example`'s field names. A record lacks the fields that its format
lacks. Records of JSON and JSONL files tell where in the file they are, so that one of them can be read again alone.
This module checks only that the file can be parsed; `example.read_examples` checks the records.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.io import EncodingError, find_text_fault, open_text, parse_json

# An upper bound on the length of a JSON token that is not a string or number. If the buffer's end cuts a token off, the
# parser's error lies within this many characters of the end.
_MAX_TOKEN_LENGTH = 16
_BLANKS = " \t\r\n"
_DECODER = json.JSONDecoder()

Rename = Callable[[Mapping[str, Any]], dict[str, Any]]


class Span(NamedTuple):
    """Where a record is in its file, in bytes."""

    start: int
    length: int


class Record(NamedTuple):
    """One record under this project's names."""

    position: int  # among the file's records, from 0
    fields: dict[str, Any]  # empty: it is not a JSON object
    span: Span | None  # None: the format has no records that can be read alone


Values = Iterator[tuple[Any, Span | None]]


class ExampleError(Sqlr1Error):
    """Data that cannot be read or used; the message names the file, the record and the fix."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: its file, the usual folder of its databases, and how its records are read."""

    file: str
    databases: Path | None
    values: Callable[[], Values]  # the records as the file has them
    rename: Rename  # of a record's fields

    def records(self) -> Iterator[Record]:
        """Yields the records, one in memory at a time."""
        try:
            for position, (value, span) in enumerate(self.values()):
                yield Record(position, self._fields(value), span)
        except EncodingError as error:
            raise ExampleError(str(error)) from error

    def read(self, descriptor: int, span: Span) -> dict[str, Any]:
        """The fields of the record at `span`; `descriptor` is of the open file, and any thread may use it.

        Raises:
          ExampleError: there is no record, because the file has changed.
        """
        try:
            return self._fields(parse_json(os.pread(descriptor, span.length, span.start)))
        except ValueError as error:
            raise ExampleError(f"{self.file} changed while it was in use: start the run again.") from error

    def _fields(self, value: Any) -> dict[str, Any]:
        return self.rename(value) if isinstance(value, Mapping) else {}


def open_source(prefix: str, path: str) -> Source:
    """Opens the source that `PREFIX:PATH` names, one of `PREFIXES`.

    Raises:
      ExampleError: there is no such file.
    """
    if prefix == "hub":
        return Source(path, None, lambda: ((value, None) for value in _hub(path)), _from_any)
    file_format = _FORMATS[prefix]
    file = _find_file(prefix, Path(path), file_format.files)
    databases = database_folder(file, file_format.database_folders)
    return Source(str(file), databases, lambda: _read_values(file), file_format.rename)


def database_folder(file: Path, names: Sequence[str]) -> Path:
    """The first of these folders that exists in the file's folder; if none does, the path of the first name there."""
    return next((file.parent / name for name in names if (file.parent / name).is_dir()), file.parent / names[0])


def json_list(file: Path, chunk: int = 1 << 22) -> Iterator[tuple[Any, Span]]:
    """Yields the elements of a JSON list and keeps only one in memory, because SynSQL's list has several gigabytes.

    chunk: characters to read from the file at a time.

    Raises:
      ExampleError: the file is not a JSON list, or is broken; the message names the record.
    """
    with open_text(file, newline="") as text:
        buffer, count = text.read(chunk), 0
        position = _skip(buffer, 0, _BLANKS)
        if buffer[position : position + 1] != "[":
            raise ExampleError(
                f"{file}: not a JSON list of records. Write [{{…}}, {{…}}], or a .jsonl file with a record a line."
            )
        position += 1
        offset = _mark_length(file) + position  # of buffer[position] in the file, in bytes
        while True:
            skipped = _skip(buffer, position, _BLANKS + ",")
            position, offset = skipped, offset + skipped - position
            if buffer[position : position + 1] == "]":
                return
            parsed, error = _parse_value(buffer, position)
            if parsed is not None:
                value, end = parsed
                span = Span(offset, _byte_length(buffer[position:end]))
                yield value, span
                position, offset, count = end, offset + span.length, count + 1
                continue
            more = "" if error else text.read(chunk)
            if not more:
                reason = error or "the file ends in it"
                raise ExampleError(
                    f"{file}: broken JSON at record {count} ({reason}). Repair the record, or download the file again."
                )
            buffer, position = buffer[position:] + more, 0


def _skip(text: str, position: int, characters: str) -> int:
    """The first position from `position` on that has none of these characters."""
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _byte_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _mark_length(file: Path) -> int:
    """The bytes of the byte order mark that a file begins with."""
    with file.open("rb") as opened:
        return len(codecs.BOM_UTF8) if opened.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0


def _json_lines(file: Path) -> Iterator[tuple[Any, Span]]:
    """Yields the value of each line that is not blank; None for a line that is not JSON."""
    offset = _mark_length(file)
    with open_text(file, newline="") as text:
        for line in text:
            length = _byte_length(line)
            if line.strip():
                yield _value_or_none(line), Span(offset, length)
            offset += length


def _value_or_none(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _parse_value(buffer: str, position: int) -> tuple[tuple[Any, int] | None, str]:
    """The JSON value at a position and its end; or None and the error, which is "" if more text may complete the value.

    Broken JSON is an error at once, so that a broken record does not make the reader load the rest of the file.
    """
    try:
        value, end = _DECODER.raw_decode(buffer, position)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos > len(buffer) - _MAX_TOKEN_LENGTH
        return None, "" if cut else error.msg
    except ValueError:
        return None, "a number has too many digits"
    except RecursionError:
        return None, "it is nested too deeply"
    if end == len(buffer):  # more digits of a number may follow
        return None, ""
    return (value, end), ""


def _read_values(file: Path) -> Values:
    if file.suffix in (".json", ".jsonl"):
        check_content(file)
    if file.suffix == ".jsonl":
        return _json_lines(file)
    if file.suffix == ".parquet" or file.is_dir():
        return _parquet_values(file)
    return json_list(file)


def _parquet_values(file: Path) -> Values:
    """Yields the rows of a parquet file, or of all below a folder."""
    import datasets

    files = [str(file)] if file.is_file() else sorted(map(str, file.glob("**/*.parquet")))
    try:
        for value in datasets.load_dataset("parquet", data_files=files, split="train", streaming=True):
            yield value, None
    except (OSError, ValueError) as error:  # of pyarrow
        raise ExampleError(f"{file} cannot be read as parquet ({error}): download it again.") from error


def check_content(file: Path) -> None:
    """Raises ExampleError if a file of text is empty, UTF-16, or what an interrupted or refused download left."""
    if fault := find_text_fault(file):
        raise ExampleError(f"{file} {fault}. Restore the file, or download it again.")


def _find_file(prefix: str, path: Path, names: tuple[str, ...]) -> Path:
    """The path itself if it is a file; in a folder, the first of these names that exists."""
    if path.is_file():
        return path
    existing = [path / name for name in names if (path / name).is_file()]
    if existing:
        return existing[0]
    if prefix == "parquet" and any(path.glob("**/*.parquet")):
        return path
    looked = f" (a folder without {' or '.join(names)})" if path.is_dir() else ""
    raise ExampleError(f"{path}: no such data{looked}. Give {prefix}: a folder or a file that exists.")


def _hub(name: str) -> Iterator[Any]:
    """A data set of the Hugging Face Hub: `owner/name`, or `owner/name/split` for one that is not train."""
    import datasets

    owner, _, rest = name.partition("/")
    repository, _, split = rest.partition("/")
    return iter(datasets.load_dataset(f"{owner}/{repository}", split=split or "train", streaming=True))


# The names that public data sets have for a field of `Example`. Of several in a record, the first with content counts.
FIELD_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "question_id"),
    "db_id": ("db_id",),
    "question": ("question",),
    "sql": ("sql", "SQL", "query"),  # SynSQL, BIRD, Spider
    "knowledge": ("external_knowledge", "evidence", "knowledge"),
    "reasoning": ("cot", "reasoning"),
    "complexity": ("sql_complexity", "difficulty", "complexity"),
    "style": ("question_style", "style"),
}
_SPIDER_NAMES = {**FIELD_NAMES, "sql": ("query", "SQL", "sql")}  # Spider's `sql` is a parse tree
_BIRD_NAMES = {**FIELD_NAMES, "id": ("question_id", "id"), "sql": ("SQL", "sql", "query")}
_TRUTHS = ("reward_model", "reward_spec")  # records that hold gold SQL as `ground_truth`: verl, SkyRL


def _from_any(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of any public form. With a ground truth, the question may stand only in the prompt."""
    renamed = _renamed(record, FIELD_NAMES)
    truth = _ground_truth(record)
    renamed.update({name: truth[name] for name in ("db_id", "sql") if truth.get(name)})
    extra = record.get("extra_info")
    if isinstance(extra, Mapping):
        renamed.update(
            {name: extra[name] for name in ("db_id", "question") if extra.get(name) and not renamed.get(name)}
        )
    if not renamed.get("question") and truth:
        renamed["question"] = _question_in(record.get("prompt") or ())
    return renamed


def _ground_truth(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object {db_id, sql} under reward_model or reward_spec. It may also be text: that object as JSON, or SQL."""
    holders = [record[name] for name in _TRUTHS if isinstance(record.get(name), Mapping)]
    truth: Any = next((holder["ground_truth"] for holder in holders if holder.get("ground_truth")), {})
    if isinstance(truth, str):
        try:
            value = parse_json(truth)
        except ValueError:
            value = None
        truth = value if isinstance(value, Mapping) else {"sql": truth}
    return truth if isinstance(truth, Mapping) else {}


def _question_in(prompt: Any) -> str:
    """The question in a prompt's last message: the text from `Question:` to the next heading or the end of the turn.

    prompt: a text, a message or a list of messages. In anything else there is no question.
    """
    is_list = isinstance(prompt, Iterable) and not isinstance(prompt, str | Mapping)
    messages = list(prompt)[-1:] if is_list else [prompt]
    text = "".join(str(m.get("content", "")) if isinstance(m, Mapping) else str(m) for m in messages)
    matches = re.findall(r"Question:\s*(.*?)\s*(?:\n\n?[A-Z][A-Za-z ]*:\s*\n|<\|im_end\|>|\Z)", text, re.S)
    return matches[-1] if matches else ""


def _renamed(record: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The record under this project's names; fields of other names are kept."""
    known = {name for aliases in names.values() for name in aliases}
    renamed = {name: value for name, value in record.items() if name not in known}
    for field, aliases in names.items():
        present = [record[name] for name in aliases if name in record]
        if present:
            renamed[field] = next((value for value in present if _has_content(value)), present[0])
    return renamed


def _has_content(value: Any) -> bool:
    return value not in (None, "") and not isinstance(value, Mapping | list)


_from_spider = functools.partial(_renamed, names=_SPIDER_NAMES)
_from_bird = functools.partial(_renamed, names=_BIRD_NAMES)


class _FileFormat(NamedTuple):
    files: tuple[str, ...]  # names to look for in a folder
    database_folders: tuple[str, ...]  # names to look for next to the file
    rename: Rename


_SYNSQL_FORMAT = _FileFormat(("data.json", "data.jsonl"), ("databases",), _from_any)
_FORMATS: Mapping[str, _FileFormat] = {
    "synsql": _SYNSQL_FORMAT,
    "synsql-200k": _SYNSQL_FORMAT,
    "complex-5k": _SYNSQL_FORMAT,
    "spider": _FileFormat(("train_spider.json", "dev.json"), ("database", "databases"), _from_spider),
    "bird": _FileFormat(
        ("train.json", "dev.json", "train-00000-of-00001.jsonl"),
        ("dev_databases", "train_databases", "databases"),
        _from_bird,
    ),
    "parquet": _FileFormat(("train.parquet",), ("databases",), _from_any),
    "jsonl": _FileFormat(("data.jsonl", "train.jsonl"), ("databases",), _from_any),
}
PREFIXES = (*_FORMATS, "hub")  # all that `open_source` accepts
