"""The file formats of text-to-SQL data (docs/method.md, section 10).

Each format is read as a stream of records with `Example`'s field names. A source yields (position, record). A record
lacks the fields that its format lacks. This module checks only that the file can be parsed; `example.read_examples`
checks the records.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.io import EncodingError, open_text, read_jsonl

# An upper bound on the length of a JSON token that is not a string or number. If the buffer's end cuts a token off, the
# parser's error lies within this many characters of the end.
_MAX_TOKEN_LENGTH = 16
_DECODER = json.JSONDecoder()

Records = Iterator[tuple[int, dict[str, Any]]]


class ExampleError(Sqlr1Error):
    """Data that cannot be read or used; the message names the file, the record and the fix."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: its file, the usual folder of its databases, and a function that reads its records."""

    file: str
    databases: Path | None
    records: Callable[[], Records]


def open_source(prefix: str, path: str) -> Source:
    """Opens the source that `PREFIX:PATH` names, one of `PREFIXES`.

    Raises:
      ExampleError: there is no such file.
    """
    if prefix == "hub":
        return Source(path, None, lambda: _numbered(_hub(path), _from_any))
    file_format = _FORMATS[prefix]
    file = _find_file(prefix, Path(path), file_format.files)
    databases = database_folder(file, file_format.database_folders)
    return Source(str(file), databases, lambda: _numbered(_read_values(file), file_format.rename))


def database_folder(file: Path, names: Sequence[str]) -> Path:
    """The first of these folders that exists in the file's folder; if none does, the path of the first name there."""
    return next((file.parent / name for name in names if (file.parent / name).is_dir()), file.parent / names[0])


def json_list(file: Path, chunk: int = 1 << 22) -> Iterator[Any]:
    """Yields the elements of a JSON list and keeps only one in memory, because SynSQL's list has several gigabytes.

    chunk: characters to read from the file at a time.

    Raises:
      ExampleError: the file is not a JSON list, or is broken; the message names the record.
    """
    with open_text(file) as text:
        buffer = text.read(chunk).lstrip()
        if not buffer.startswith("["):
            raise ExampleError(f"{file}: not a JSON list of records.")
        position, count = 1, 0
        while True:
            while position < len(buffer) and buffer[position] in " \t\r\n,":
                position += 1
            if buffer[position : position + 1] == "]":
                return
            parsed, error = _parse_value(buffer, position)
            if parsed is not None:
                yield parsed[0]
                position, count = parsed[1], count + 1
                continue
            more = "" if error else text.read(chunk)
            if not more:
                raise ExampleError(f"{file}: broken JSON at record {count} ({error or 'the file ends in it'}).")
            buffer, position = buffer[position:] + more, 0


def _parse_value(buffer: str, position: int) -> tuple[tuple[Any, int] | None, str]:
    """The JSON value at a position and its end; or None and the error, which is "" if more text may complete the value.

    Broken JSON is an error at once, so that a broken record does not make the reader load the rest of the file.
    """
    try:
        value, end = _DECODER.raw_decode(buffer, position)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos > len(buffer) - _MAX_TOKEN_LENGTH
        return None, "" if cut else error.msg
    if end == len(buffer):  # more digits of a number may follow
        return None, ""
    return (value, end), ""


def _read_values(file: Path) -> Iterator[Any]:
    if file.suffix == ".jsonl":
        return read_jsonl(file, on_bad_lines="keep")  # a bad line becomes an empty record, which is set aside
    if file.suffix == ".parquet" or file.is_dir():
        import datasets

        files = [str(file)] if file.is_file() else sorted(map(str, file.glob("**/*.parquet")))
        return iter(datasets.load_dataset("parquet", data_files=files, split="train", streaming=True))
    return json_list(file)


def _numbered(values: Iterable[Any], rename: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Records:
    try:
        for position, value in enumerate(values):
            yield position, rename(value) if isinstance(value, Mapping) else {}
    except EncodingError as error:
        raise ExampleError(str(error)) from error


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
            value = json.loads(truth)
        except ValueError:
            value = None
        truth = value if isinstance(value, Mapping) else {"sql": truth}
    return truth if isinstance(truth, Mapping) else {}


def _question_in(prompt: str | Iterable[Any]) -> str:
    """The question in a prompt's last message: the text from `Question:` to the next heading or the end of the turn."""
    messages = [prompt] if isinstance(prompt, str) else list(prompt)[-1:]
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
    rename: Callable[[Mapping[str, Any]], dict[str, Any]]


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
