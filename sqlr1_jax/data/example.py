"""Reads questions with their databases and gold SQL from a source, `PREFIX:PATH`."""

from __future__ import annotations

import array
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sqlr1_jax.data import record_index, select, sources
from sqlr1_jax.data.exclude import Exclusion
from sqlr1_jax.data.record_index import Index, Row
from sqlr1_jax.data.select import C
from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.progress import Progress
from sqlr1_jax.sql import database as sqlite

log = logging.getLogger(__name__)

# Reasons to set a record aside.
NO_DATABASE = "no readable SQLite file for its db_id"
UNREADABLE_DATABASE = "its database cannot be read"  # followed by why

_OPTIONAL_TEXTS = ("knowledge", "reasoning", "complexity", "style", "family", "habit")


@dataclasses.dataclass(frozen=True)
class Example:
    """One question on one database."""

    id: str  # the record's id, BIRD's question_id, or else its position in the file
    db_id: str
    database: Path  # the SQLite file
    question: str
    sql: str  # the gold SQL
    knowledge: str = ""  # facts that the question needs and the schema does not contain
    reasoning: str = ""  # steps from the question to the SQL; "" if the source has none (Spider, BIRD)
    source: str = ""  # PREFIX:PATH
    complexity: str = ""
    style: str = ""
    # Only the embedded data (synth/) have these.
    family: str = ""  # the query's family (synth/families.py)
    habit: str = ""  # the teacher's systematic error that could make this gold SQL wrong (synth/teacher.py)
    spoiled: bool = False  # whether the teacher made that error, so that this gold SQL is wrong


def read_examples(
    spec: str,
    databases: str = "",
    exclude: Sequence[str] = (),
    limit: int = 0,
    seed: int = 0,
    training: bool = True,
    index_from: int = 0,
) -> Sequence[Example]:
    """Reads the examples of `PREFIX:PATH`, in the order of the file or of its named selection.

    Records that cannot be used are set aside; the log says how many and why, and how many examples the lists leave out.

    Args:
      spec: `PREFIX:PATH`; data/sources.py has the prefixes.
      databases: folder of <db_id>/<db_id>.sqlite or <db_id>.sqlite, or one file; empty: the source's usual folder.
      exclude: lists of what to leave out (data/exclude.py).
      limit: number of first examples to read; 0: all.
      seed: seed of the selections synsql-200k and complex-5k.
      training: whether a stage trains on the examples; if not, records of lists that name no source do not apply.
      index_from: a JSON file of at least so many bytes is indexed once (data/record_index.py) and not read whole; 0:
        no file is.

    Raises:
      ExampleError: the data or a list cannot be read, a list belongs to other data, or no example is left.
    """
    reader = _open(spec, databases, exclude, training)
    if reader.is_large(index_from):
        index = record_index.open_or_make(record_index.default_folder(), reader.key(seed), lambda: reader.index(seed))
        indexed = record_index.IndexedExamples(index, reader.read_at)
        return indexed[:limit] if limit > 0 else indexed
    selected = _take(reader.selected(reader.examples(), seed), limit)
    for level, message in reader.messages():
        log.log(level, "%s", message)
    if not selected:
        raise ExampleError(reader.why_nothing_is_left())
    return selected


@dataclasses.dataclass(frozen=True)
class SetAside:
    """A record that cannot become an example, and why."""

    id: str
    db_id: str  # "" if it names none
    reason: str


def read_all_records(spec: str, databases: str = "", limit: int = 0) -> tuple[list[Example], list[SetAside]]:
    """Reads every example of `PREFIX:PATH`, and every record that was set aside; parameters as in `read_examples`.

    Raises:
      ExampleError: the data cannot be read.
    """
    reader = _open(spec, databases)
    return _take(reader.examples(), limit), reader.set_aside


def database_candidates(folder: Path, db_id: str) -> list[Path]:
    """The paths at which a database may be in a folder of databases, the usual one first."""
    folder = folder.absolute()
    nested = [folder / db_id / f"{db_id}{suffix}" for suffix in sqlite.SUFFIXES]
    return [*nested, *(folder / path.name for path in nested), *([folder] if folder.is_file() else [])]


class _BadRecordError(Exception):
    """A record must be set aside; the message says why."""


class _Stub(NamedTuple):
    """What a selection looks at, so that its candidates need not be kept in memory whole."""

    id: str
    complexity: str
    database: Path
    sql: str
    row: int  # of the index


class _Reader:
    """Turns the records of a source into examples, and collects those that it sets aside."""

    def __init__(self, spec: str, source: sources.Source, folder: Path | None, exclusion: Exclusion) -> None:
        self._spec = spec
        self._source = source
        self._selection = select.SELECTIONS.get(_parse(spec)[0])
        self._shortages: list[str] = []
        self._folder = folder  # of the databases
        self._databases: dict[str, Path | str] = {}  # by db_id; a text: why there is none
        self._exclusion = exclusion
        self._seen: set[str] = set()
        self.set_aside: list[SetAside] = []
        self._count = 0

    def examples(self) -> Iterator[Example]:
        """Yields the examples, and records those that are set aside."""
        return (example for example, _ in self._located())

    def _located(self) -> Iterator[tuple[Example, sources.Record]]:
        for record in self._source.records():
            self._count += 1
            record_id = _record_id(record.position, record.fields)
            try:
                example = self._example(record_id, record.fields)
            except _BadRecordError as reason:
                self.set_aside.append(SetAside(record_id, str(record.fields.get("db_id") or ""), str(reason)))
                continue
            if not self._exclusion.leaves_out(example.id, example.db_id):
                yield example, record

    def selected(self, examples: Iterable[C], seed: int) -> Iterable[C]:
        """The examples that the source's name selects; all, if it names no selection."""
        if self._selection is None:
            return examples
        chosen = select.select(self._selection, examples, seed)
        self._shortages = select.shortages(self._selection, chosen)
        return chosen

    def is_large(self, size: int) -> bool:
        """Whether the source is a JSON file of at least `size` bytes; 0: no file is."""
        file = Path(self._source.file)
        return size > 0 and file.suffix in (".json", ".jsonl") and file.is_file() and file.stat().st_size >= size

    def key(self, seed: int) -> list[Any]:
        """What decides the source's index: the data, the databases, the lists, and the selection's seed."""
        files = [(str(path.resolve()), *_state(path)) for path in (Path(self._source.file), self._folder) if path]
        return [self._spec, files, seed if self._selection else 0, self._exclusion.key()]

    def index(self, seed: int) -> Index:
        """Reads the file once and makes its index.

        Raises:
          ExampleError: the file cannot be read, or no example is left.
        """
        numbers: dict[str, int] = {}  # of the databases
        rows = array.array("q")  # of all usable records, one after the other
        chosen = [stub.row for stub in self.selected(self._add_rows(rows, numbers), seed)]
        if not chosen:
            raise ExampleError(self.why_nothing_is_left())
        rows_NR = np.frombuffer(rows, np.int64).reshape(-1, len(Row._fields))[chosen]
        return Index(rows_NR, [(db_id, str(self._databases[db_id])) for db_id in numbers], self.messages())

    def _add_rows(self, rows: array.array, numbers: dict[str, int]) -> Iterator[_Stub]:
        """Adds a row for each example, numbers its database, and yields what selections look at."""
        done = 0
        with Progress(f"indexing {self._source.file}", Path(self._source.file).stat().st_size, "byte") as progress:
            for number, (example, (position, _, span)) in enumerate(self._located()):
                assert span is not None
                rows.extend(Row(*span, position, numbers.setdefault(example.db_id, len(numbers))))
                progress.update(span.start - done)
                done = span.start
                yield _Stub(example.id, example.complexity, example.database, example.sql, number)

    def read_at(self, row: Row, db_id: str, database: str) -> Example:
        """The example of a row of the source's index; any thread may call it.

        Raises:
          ExampleError: the file has changed since this reader was made.
        """
        fields = self._source.read(self._descriptor, sources.Span(row.start, row.length))
        return self._make(_record_id(row.position, fields), db_id, Path(database), fields)

    @functools.cached_property
    def _descriptor(self) -> int:
        """Of the source's file, which stays open until the process ends."""
        return os.open(self._source.file, os.O_RDONLY)

    def messages(self) -> list[tuple[int, str]]:
        """(level, text) to log: why records were set aside, what a selection lacks, and what the lists left out."""
        warnings = [
            f"{self._source.file}: {len(ids)} of {self._count} records set aside: {reason} (first: record {ids[0]})"
            for reason, ids in self._ids_by_reason().items()
        ]
        return [
            *((logging.WARNING, warning) for warning in (*warnings, *self._shortages)),
            *self._exclusion.messages(self._count - len(self.set_aside)),
        ]

    def why_nothing_is_left(self) -> str:
        """The error message when there is no example; it names the fix if the databases are missing."""
        ids_by_reason = self._ids_by_reason()
        reasons = "; ".join(f"{reason}, first in record {ids[0]}" for reason, ids in ids_by_reason.items())
        text = f"{self._source.file}: none of its {self._count} records can be used ({reasons or 'all excluded'})."
        if NO_DATABASE in ids_by_reason:
            text += f" Databases were looked for in {self._folder}; --config.data.databases= names another folder."
        return text

    def _ids_by_reason(self) -> dict[str, list[str]]:
        ids: dict[str, list[str]] = {}
        for record in self.set_aside:
            ids.setdefault(record.reason, []).append(record.id)
        return ids

    def _example(self, record_id: str, record: Mapping[str, Any]) -> Example:
        if not record:
            raise _BadRecordError("not a JSON object")
        for key in ("db_id", "question", "sql"):
            value = record.get(key)
            is_number = key == "db_id" and type(value) is int
            if not is_number and not (isinstance(value, str) and value.strip()):
                raise _BadRecordError(_no_field(key))
        db_id = str(record["db_id"]).strip()
        if record_id in self._seen:
            raise _BadRecordError("id seen before")
        self._seen.add(record_id)
        if "/" in db_id or "\\" in db_id or db_id in (".", ".."):
            raise _BadRecordError("db_id is a path")
        if db_id not in self._databases:
            self._databases[db_id] = _find_database(self._folder, db_id)
        database = self._databases[db_id]
        if isinstance(database, str):
            raise _BadRecordError(database)
        example = self._make(record_id, db_id, database, record)
        if any(isinstance(text, str) and not _is_unicode(text) for text in vars(example).values()):
            raise _BadRecordError("its text has half of a surrogate pair (\\ud800 to \\udfff), which is no character")
        return example

    def _make(self, record_id: str, db_id: str, database: Path, record: Mapping[str, Any]) -> Example:
        texts = {key: str(record.get(key) or "") for key in _OPTIONAL_TEXTS}
        texts |= {"question": record["question"], "sql": record["sql"], "source": self._spec}
        return Example(record_id, db_id, database, spoiled=bool(record.get("spoiled", False)), **texts)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _record_id(position: int, record: Mapping[str, Any]) -> str:
    return str(position if record.get("id") in (None, "") else record["id"])


def _state(path: Path) -> tuple[int, int]:
    """The size and the time of change of a file or folder; zeros if there is none."""
    if not path.exists():
        return 0, 0
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def source_name(spec: str) -> str:
    """How a list of what to leave out names the data of `PREFIX:PATH`: the absolute path of its file; of hub:, `spec`.

    Raises:
      ExampleError: there is no such file.
    """
    prefix, path = _parse(spec)
    return spec if prefix == "hub" else str(Path(sources.open_source(prefix, path).file).resolve())


def _open(spec: str, databases: str, exclude: Sequence[str] = (), training: bool = True) -> _Reader:
    source = sources.open_source(*_parse(spec))
    folder = Path(databases) if databases else source.databases
    return _Reader(spec, source, folder, Exclusion(exclude, spec, source.file, training))


def _parse(spec: str) -> tuple[str, str]:
    prefix, _, path = spec.partition(":")
    if prefix not in sources.PREFIXES or not path:
        prefixes = ", ".join(sources.PREFIXES)
        raise ExampleError(f"{spec!r} is not a data source: write PREFIX:PATH with one of the prefixes {prefixes}.")
    return prefix, path


def _take(examples: Iterable[Example], limit: int) -> list[Example]:
    """The first `limit` examples; 0: all."""
    return list(itertools.islice(examples, limit if limit > 0 else None))


def _no_field(field: str) -> str:
    """The reason to set aside a record without this field: the names under which it was looked for."""
    *names, last = sources.FIELD_NAMES[field]
    truth = ", or under reward_model" if field == "sql" else ""
    return f"no {', '.join(names)} or {last}{truth}" if names else f"no {last}"


def _find_database(folder: Path | None, db_id: str) -> Path | str:
    """The first file of a database that can be opened, or why there is none."""
    why = NO_DATABASE
    for path in database_candidates(folder, db_id) if folder is not None else ():
        try:
            sqlite.open_readonly(path).close()
        except sqlite.DatabaseError as error:
            if os.path.exists(path) and why == NO_DATABASE:
                why = f"{UNREADABLE_DATABASE}: {error}"
            continue
        return path
    return why
