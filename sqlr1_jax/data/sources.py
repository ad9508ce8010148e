"""The file forms of text-to-SQL data (sql-r1.md §5), each read as a stream of records in our own names.

A source yields (position, record) with a record's names being `Example`'s; what a form lacks, its records
lack. Nothing is checked here but that the file is what it claims to be: `example.read` judges the records.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.io import read_jsonl

_LONGEST_TOKEN = 16  # characters, of what JSON has beside strings and numbers: how far behind a cut its error may be
_DECODER = json.JSONDecoder()

Records = Iterator[tuple[int, dict[str, Any]]]


class ExampleError(Sqlr1Error):
    """Data that cannot be read or trained on; the message names the file, the record and the fix."""


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened data set: where it is, where its databases are by default, and its records."""

    file: str
    databases: Path | None
    records: Callable[[], Records]


def open_source(prefix: str, path: str) -> Source:
    """The source that a `prefix:path` names. Raises `ExampleError` when there is no such file."""
    if prefix == "hub":
        return Source(path, None, lambda: _numbered(_hub(path), _from_synsql))
    names, folders, rename = _FORMS[prefix]
    file = _find(prefix, Path(path), names)
    return Source(str(file), databases_beside(file, folders), lambda: _numbered(_raw(file), rename))


def databases_beside(file: Path, folders: Sequence[str]) -> Path:
    """The first of these folders that lies beside a file, else where the first would."""
    return next((file.parent / f for f in folders if (file.parent / f).is_dir()), file.parent / folders[0])


def json_list(file: Path, chunk: int = 1 << 22) -> Iterator[Any]:
    """The elements of a JSON list, one by one: SynSQL's is several gigabytes. Raises `ExampleError`.

    The file is read `chunk` characters at a time.
    """
    with file.open(encoding="utf-8") as text:
        buffer = text.read(chunk).lstrip()
        if not buffer.startswith("["):
            raise ExampleError(f"{file}: not a JSON list of records.")
        place, count = 1, 0
        while True:
            place = _skip(buffer, place)
            if buffer[place : place + 1] == "]":
                return
            found, broken = _next_value(buffer, place)
            if found is not None:
                yield found[0]
                place, count = found[1], count + 1
                continue
            more = "" if broken else text.read(chunk)
            if not more:
                raise ExampleError(f"{file}: broken JSON at record {count} ({broken or 'the file ends in it'}).")
            buffer, place = buffer[place:] + more, 0


def _next_value(buffer: str, place: int) -> tuple[tuple[Any, int] | None, str]:
    """The value at a place and where it ends, or None with what is broken; "" where more text may complete it."""
    try:
        value, end = _DECODER.raw_decode(buffer, place)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos > len(buffer) - _LONGEST_TOKEN
        return None, "" if cut else error.msg
    if end == len(buffer):  # a number may go on
        return None, ""
    return (value, end), ""


def _skip(buffer: str, place: int) -> int:
    while place < len(buffer) and buffer[place] in " \t\r\n,":
        place += 1
    return place


def _raw(file: Path) -> Iterator[Any]:
    if file.suffix == ".jsonl":
        return read_jsonl(file, on_bad_lines="keep")  # text is no record: `example.read` sets it aside
    if file.suffix == ".parquet" or file.is_dir():
        return _parquet(file)
    return json_list(file)


def _numbered(values: Iterable[Any], rename: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Records:
    for position, value in enumerate(values):
        yield position, rename(value) if isinstance(value, Mapping) else {}


def _find(prefix: str, path: Path, names: tuple[str, ...]) -> Path:
    """The path itself, or in a folder the first of the names that is there."""
    if path.is_file():
        return path
    found = [path / name for name in names if (path / name).is_file()]
    if found:
        return found[0]
    if prefix == "parquet" and any(path.glob("**/*.parquet")):
        return path
    looked = f" (a folder without {' or '.join(names)})" if path.is_dir() else ""
    raise ExampleError(f"{path}: no such data{looked}. Give {prefix}: a folder or a file that is there.")


def _parquet(path: Path) -> Iterator[Any]:
    import datasets

    files = [str(path)] if path.is_file() else sorted(map(str, path.glob("**/*.parquet")))
    return iter(datasets.load_dataset("parquet", data_files=files, split="train", streaming=True))


def _hub(name: str) -> Iterator[Any]:
    """A data set of the Hugging Face Hub: `owner/name`, or `owner/name/split` for one that is not train."""
    import datasets

    owner, _, rest = name.partition("/")
    repository, _, split = rest.partition("/")
    return iter(datasets.load_dataset(f"{owner}/{repository}", split=split or "train", streaming=True))


_SYNSQL = {
    "external_knowledge": "knowledge",
    "cot": "reasoning",
    "sql_complexity": "complexity",
    "question_style": "style",
}
_BIRD = {"question_id": "id", "SQL": "sql", "evidence": "knowledge", "difficulty": "complexity"}


def _from_synsql(record: Mapping[str, Any]) -> dict[str, Any]:
    if "reward_model" in record:
        return _from_parquet(record)
    return _renamed(record, _SYNSQL)


def _from_spider(record: Mapping[str, Any]) -> dict[str, Any]:
    return _renamed(record, {"query": "sql"})


def _from_bird(record: Mapping[str, Any]) -> dict[str, Any]:
    return _renamed(record, _BIRD)


def _from_parquet(record: Mapping[str, Any]) -> dict[str, Any]:
    """SQL-R1's: gold under reward_model; the question in a column of its own, or else within the prompt."""
    made = _renamed(record, _SYNSQL)
    truth = (record.get("reward_model") or {}).get("ground_truth") or {}
    made.update({name: truth[name] for name in ("db_id", "sql") if truth.get(name)})
    if not made.get("question"):
        made["question"] = _question_in(record.get("prompt") or ())
    return made


def _question_in(prompt: Iterable[Mapping[str, str]]) -> str:
    """What a prompt's last message asks: behind `Question:`, up to the next heading or the turn's end."""
    text = [message.get("content", "") for message in prompt][-1:]
    found = re.findall(r"Question:\s*(.*?)\s*(?:\n\n?[A-Z][A-Za-z ]*:\s*\n|<\|im_end\|>|\Z)", "".join(text), re.S)
    return found[-1] if found else ""


def _renamed(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A renamed field wins: Spider's own dev.json has beside `query` an `sql`, which is a parse tree."""
    kept = {name: value for name, value in record.items() if name not in names}
    return kept | {names[name]: value for name, value in record.items() if name in names}


# By prefix: file names to look for in a folder, folders of databases to look for beside the file, names.
_Form = tuple[tuple[str, ...], tuple[str, ...], Callable[[Mapping[str, Any]], dict[str, Any]]]
_SYNSQL_FORM: _Form = (("data.json", "data.jsonl"), ("databases",), _from_synsql)
_FORMS: Mapping[str, _Form] = {
    "synsql": _SYNSQL_FORM,
    "synsql-200k": _SYNSQL_FORM,
    "complex-5k": _SYNSQL_FORM,
    "spider": (("train_spider.json", "dev.json"), ("database", "databases"), _from_spider),
    "bird": (("train.json", "dev.json"), ("dev_databases", "train_databases", "databases"), _from_bird),
    "parquet": (("train.parquet",), ("databases",), _from_synsql),
    "jsonl": (("data.jsonl", "train.jsonl"), ("databases",), _from_synsql),
}
PREFIXES = (*_FORMS, "hub")  # all that `open_source` takes
