"""Questions with their databases and golds, from any of the sources that a `prefix:path` can name."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlr1_jax.data import select, sources
from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.io import read_jsonl
from sqlr1_jax.sql import database as sqlite

log = logging.getLogger(__name__)

_TEXTS = ("knowledge", "reasoning", "complexity", "style", "family", "habit")  # optional


@dataclasses.dataclass(frozen=True)
class Example:
    """One question on one database."""

    id: str  # the record's id, BIRD's question_id, else its position in the file
    db_id: str
    database: Path  # the SQLite file
    question: str
    sql: str  # gold
    knowledge: str = ""  # what must be known beside the schema
    reasoning: str = ""  # from question to SQL; "" where the source has none (Spider, BIRD)
    source: str = ""  # prefix:path
    complexity: str = ""
    style: str = ""
    family: str = ""  # of the embedded data, as are the next two
    habit: str = ""  # the teacher's habit that would change this gold's result
    spoiled: bool = False  # whether it did


def read_examples(spec: str, databases: str = "", exclude: str = "", limit: int = 0, seed: int = 0) -> list[Example]:
    """The examples of `prefix:path`, in the file's order or in that of a named selection.

    databases: folder of <db_id>/<db_id>.sqlite or <db_id>.sqlite, or one file; empty: beside the data.
    exclude: a JSONL of {id, …} to leave out, as `check` writes it. limit: the first N; 0 for all.
    seed: of the selections synsql-200k and complex-5k.
    Records that lack something are set aside and counted in the log. Raises `ExampleError` when none is left.
    """
    prefix = _parsed(spec)[0]
    reader = _reader(spec, databases, exclude)
    examples: Iterable[Example] = reader.examples()
    if prefix in select.SELECTIONS:
        examples = select.select(select.SELECTIONS[prefix], examples, seed)
    kept = _first(examples, limit)
    reader.report()
    if not kept:
        raise ExampleError(reader.nothing_left())
    return kept


@dataclasses.dataclass(frozen=True)
class SetAside:
    """A record that is no example, and why."""

    id: str
    db_id: str  # "" where it names none
    reason: str


def read_all_records(spec: str, databases: str = "", limit: int = 0) -> tuple[list[Example], list[SetAside]]:
    """Every example of `prefix:path`, and every record that was set aside; see `read`."""
    reader = _reader(spec, databases)
    return _first(reader.examples(), limit), reader.set_aside


class _BadRecordError(Exception):
    """A record to set aside, and why."""


class _Databases:
    """Finds a db_id's file, looking at each once."""

    def __init__(self, given: str, source: sources.Source) -> None:
        self.folder = Path(given) if given else source.databases
        self._found: dict[str, Path | None] = {}

    def find(self, db_id: str) -> Path | None:
        if db_id not in self._found:
            self._found[db_id] = next((p for p in self.places(db_id) if _opens(p)), None)
        return self._found[db_id]

    def places(self, db_id: str) -> list[Path]:
        """Where the file may be, the usual place first."""
        return [] if self.folder is None else database_candidates(self.folder, db_id)


def database_candidates(folder: Path, db_id: str) -> list[Path]:
    """Where a database may be in a folder of databases, the usual place first."""
    folder, file = folder.absolute(), f"{db_id}.sqlite"
    return [folder / db_id / file, folder / file, *([folder] if folder.is_file() else [])]


class _Reader:
    """Turns a source's records into examples, and remembers what it set aside."""

    def __init__(self, spec: str, source: sources.Source, databases: _Databases, excluded: frozenset[str]) -> None:
        self._spec = spec
        self._source = source
        self._databases = databases
        self._excluded = excluded
        self._seen: set[str] = set()
        self.set_aside: list[SetAside] = []
        self._count = 0

    def examples(self) -> Iterator[Example]:
        for position, record in self._source.records():
            self._count += 1
            name = str(record.get("id", position))
            try:
                example = self._example(name, record)
            except _BadRecordError as reason:
                self.set_aside.append(SetAside(name, str(record.get("db_id") or ""), str(reason)))
                continue
            if name not in self._excluded:
                yield example

    def report(self) -> None:
        """One warning for each reason to set records aside."""
        for reason, ids in self._bad().items():
            log.warning(
                "%s: %d of %d records set aside: %s (first: record %s)",
                self._source.file, len(ids), self._count, reason, ids[0],
            )  # fmt: skip

    def nothing_left(self) -> str:
        """Why there is no example at all, with the fix where the databases are what is missing."""
        file, bad = self._source.file, self._bad()
        reasons = "; ".join(f"{reason}, first in record {ids[0]}" for reason, ids in bad.items())
        text = f"{file}: none of its {self._count} records can be used ({reasons or 'all excluded'})."
        if NO_DATABASE in bad:
            folder = self._databases.folder
            text += f" Databases were looked for in {folder}; --config.data.databases= names another."
        return text

    def _bad(self) -> dict[str, list[str]]:
        """Ids by reason."""
        bad: dict[str, list[str]] = {}
        for one in self.set_aside:
            bad.setdefault(one.reason, []).append(one.id)
        return bad

    def _example(self, name: str, record: Mapping[str, Any]) -> Example:
        if not record:
            raise _BadRecordError("not a JSON object")
        db_id, question, sql = (_required(record, key) for key in ("db_id", "question", "sql"))
        if name in self._seen:
            raise _BadRecordError("id seen before")
        self._seen.add(name)
        if "/" in db_id or "\\" in db_id or db_id in (".", ".."):
            raise _BadRecordError("db_id is a path")
        database = self._databases.find(db_id)
        if database is None:
            raise _BadRecordError(NO_DATABASE)
        texts = {key: str(record.get(key) or "") for key in _TEXTS}
        spoiled = bool(record.get("spoiled", False))
        return Example(name, db_id, database, question, sql, source=self._spec, spoiled=spoiled, **texts)


NO_DATABASE = "no readable SQLite file for its db_id"


def _reader(spec: str, databases: str, exclude: str = "") -> _Reader:
    source = sources.open_source(*_parsed(spec))
    return _Reader(spec, source, _Databases(databases, source), _excluded(exclude))


def _parsed(spec: str) -> tuple[str, str]:
    prefix, _, path = spec.partition(":")
    if prefix not in sources.PREFIXES or not path:
        prefixes = ", ".join(sources.PREFIXES)
        raise ExampleError(f"{spec!r} names no data: write PREFIX:PATH, the prefix one of {prefixes}.")
    return prefix, path


def _required(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _BadRecordError(f"no {key}")
    return value


def _first(examples: Iterable[Example], limit: int) -> list[Example]:
    kept = []
    for example in examples:
        kept.append(example)
        if len(kept) == limit:
            break
    return kept


def _excluded(path: str) -> frozenset[str]:
    if not path:
        return frozenset()
    if not Path(path).is_file():
        raise ExampleError(f"{path}: no such file to exclude ids by: check --output= writes one.")
    lines = list(read_jsonl(Path(path), on_bad_lines="keep"))
    if not all(isinstance(line, Mapping) and "id" in line for line in lines):
        raise ExampleError(f"{path}: each line must be a JSON object with an id.")
    return frozenset(str(line["id"]) for line in lines)


def _opens(path: Path) -> bool:
    try:
        sqlite.open_readonly(path).close()
    except sqlite.DatabaseError:
        return False
    return True
