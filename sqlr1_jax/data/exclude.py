"""Lists of what to leave out of a data set: the JSONL files of config.data.exclude.

A record {"id": …, "db_id": …, "source": …, "rule": …} leaves out one question of the file `source`; all but the id may
be absent. `check --output` writes such records. A record without an id leaves out all questions on its db_id.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.data.sources import PREFIXES, ExampleError, open_source
from sqlr1_jax.io import read_numbered_jsonl


@dataclasses.dataclass(frozen=True)
class ExcludeRecord:
    """One record of a list."""

    path: str  # the list
    line: int  # counted from 1
    id: str  # "": every question on the database
    db_id: str  # "": the database is not checked
    source: str  # PREFIX:PATH or a path; "": every training source
    rule: str  # why


def read_list(path: str) -> list[ExcludeRecord]:
    """The records of a list.

    Raises:
      ExampleError: there is no such list, or a record has neither an id nor a db_id.
    """
    if not Path(path).is_file():
        raise ExampleError(
            f"{path}: no such list of what to leave out; `check --output=` writes one. Several are given as "
            "--config.data.exclude=\"('one.jsonl','other.jsonl')\"."
        )
    return [_record(path, line, value) for line, value in read_numbered_jsonl(Path(path), on_bad_lines="keep")]


def _record(path: str, line: int, value: Any) -> ExcludeRecord:
    fields = value if isinstance(value, Mapping) else {}
    texts = {name: "" if fields.get(name) is None else str(fields[name]) for name in ("id", "db_id", "source", "rule")}
    texts["db_id"] = texts["db_id"].strip()  # as examples have it
    if not texts["id"] and not texts["db_id"]:
        raise ExampleError(f"{path}, line {line}: each line must be a JSON object with an id or a db_id.")
    texts["rule"] = texts["rule"] or ("listed" if texts["id"] else "database")
    return ExcludeRecord(path, line, **texts)


class Exclusion:
    """What some lists leave out of one source. It counts what it leaves out."""

    def __init__(self, paths: Sequence[str], spec: str, file: str, training: bool) -> None:
        """Reads the lists and keeps the records that are about the source.

        Args:
          paths: the lists.
          spec: the source, PREFIX:PATH.
          file: the file that it reads.
          training: whether a stage trains on it. Records without a source are about training sources only.

        Raises:
          ExampleError: a list cannot be read.
        """
        self._paths, self._spec, self._file, self._training = paths, spec, file, training
        records = [record for path in paths for record in read_list(path)]
        named = {source: self._is_named(source) for source in {record.source for record in records} - {""}}
        self._elsewhere = [record for record in records if not named.get(record.source, True)]
        self._by_id: dict[str, list[ExcludeRecord]] = {}
        self._by_database: dict[str, ExcludeRecord] = {}
        for record in records:
            if not named.get(record.source, training):
                continue
            if record.id:
                self._by_id.setdefault(record.id, []).append(record)
            else:
                self._by_database.setdefault(record.db_id, record)
        self._counts: Counter[str] = Counter()

    def _is_named(self, source: str) -> bool:
        """Whether a record's source is this one: the same PREFIX:PATH or the same file."""
        if source == self._spec:
            return True
        prefix, _, path = source.partition(":")
        if prefix not in PREFIXES:
            path = source
        elif prefix != "hub":
            try:
                path = open_source(prefix, path).file
            except ExampleError:  # no such file here
                return False
        return Path(path).resolve() == Path(self._file).resolve()

    def leaves_out(self, example_id: str, db_id: str) -> bool:
        """Whether the lists leave out an example. Of several rules that apply to it, the first is counted.

        Raises:
          ExampleError: a record has the example's id and another db_id.
        """
        records = self._by_id.get(example_id, [])
        for record in records:
            if record.db_id not in ("", db_id):
                raise ExampleError(
                    f"{record.path}, line {record.line}: record {record.id} is on database {record.db_id!r}, but in "
                    f"{self._file} it is on {db_id!r}, so the list belongs to other data. Make a list for this file "
                    f"with `python -m sqlr1_jax.check --data={self._spec} --output=FILE`, or take this one out of "
                    "config.data.exclude."
                )
        applied = records[0] if records else self._by_database.get(db_id)
        if applied:
            self._counts[applied.rule] += 1
        return applied is not None

    def key(self) -> list[list[str]]:
        """What decides which examples are left out: the records that are about the source."""
        by_id = [record for records in self._by_id.values() for record in records]
        return sorted([record.id, record.db_id, record.rule] for record in (*by_id, *self._by_database.values()))

    def messages(self, count: int) -> list[tuple[int, str]]:
        """What to log, as (level, text): how many of `count` examples the lists left out, by rule.

        It is a warning if a stage trains on the source and every record is about another file: perhaps the data moved.
        """
        if not self._paths:
            return []
        rules = ", ".join(f"{rule} {n}" for rule, n in self._counts.most_common())
        text = f"{self._counts.total()} of {count} examples left out by {', '.join(self._paths)}"
        text += f" ({rules})" if rules else ""
        if self._elsewhere:
            text += f"; {len(self._elsewhere)} records are about other files (first: {self._elsewhere[0].source})"
        none_applies = self._training and self._elsewhere and not (self._by_id or self._by_database)
        return [(logging.WARNING if none_applies else logging.INFO, f"{self._file}: {text}")]
