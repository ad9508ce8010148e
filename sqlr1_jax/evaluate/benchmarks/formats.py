"""Readers of the files that `score` takes: gold queries, predictions and databases.

Gold files: Spider's JSON, BIRD's JSON, this project's JSON (a list or lines), or lines of `SQL<tab>db_id`.
Prediction files: JSON lines {id, db_id, sql}, as in evaluation/<name>/greedy.jsonl; one SQL per line in the order of
the gold file; or BIRD's object {"0": "SQL<tab>----- bird -----<tab>db_id"}.
A file with a record that cannot be scored is refused as a whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.data import sources
from sqlr1_jax.data.example import database_candidates
from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.io import read_numbered_jsonl
from sqlr1_jax.sql import database as sqlite

BIRD_SEPARATOR = "\t----- bird -----\t"
_JSON_SUFFIXES = (".json", ".jsonl")


@dataclasses.dataclass(frozen=True)
class Gold:
    """The gold query of one question."""

    id: str  # the record's id or BIRD's question_id, else its position in the file
    db_id: str
    sql: str
    difficulty: str  # BIRD's difficulty or this project's complexity; "" if the record has none


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predicted queries by the id of their gold query."""

    sql: dict[str, str | None]  # None: the model's answer has no SQL
    ignored: int  # number of predictions whose id is not in the gold file


def read_golds(path: Path) -> list[Gold]:
    """The gold queries of a file, in its order.

    Raises:
      ExampleError: the file cannot be used; the message names the file, the record and the fix.
    """
    _check_file(path, "--gold")
    if path.suffix in _JSON_SUFFIXES:
        first = next(sources.open_source("jsonl", str(path)).records(), (0, {}))[1]
        prefix = "spider" if "query" in first else "bird" if "SQL" in first else "jsonl"
        golds = [_gold(path, position, record) for position, record in sources.open_source(prefix, str(path)).records()]
    else:
        golds = _read_text_golds(path)
    if not golds:
        raise ExampleError(f"{path}: the file has no gold query.")
    seen: set[str] = set()
    for gold in golds:
        if gold.id in seen:
            raise ExampleError(f"{path}: two records have the id {gold.id}; ids must be unique.")
        seen.add(gold.id)
    return golds


def read_predictions(path: Path, golds: Sequence[Gold]) -> Predictions:
    """The predictions of a file for these gold queries.

    Raises:
      ExampleError: as `read_golds`.
    """
    _check_file(path, "--predictions")
    lines = _lines(path)
    text = "\n".join(lines).strip()
    if not text.startswith("{"):
        return _read_sql_lines(golds, lines)
    try:
        content = json.loads(text)
    except json.JSONDecodeError:  # several objects, one per line
        content = None
    if isinstance(content, Mapping) and "sql" not in content:
        return _read_bird_object(path, golds, content)
    return _read_json_lines(path, golds)


def default_databases(path: Path) -> Path:
    """The folder of databases next to a gold file, under one of its usual names."""
    return sources.database_folder(path, ("databases", "database", "dev_databases", "train_databases"))


def find_databases(golds: Iterable[Gold], folder: Path, lenient: bool = False) -> dict[str, Path]:
    """The SQLite file of each db_id that the gold queries name.

    Args:
      golds: the gold queries.
      folder: holds <db_id>/<db_id>.sqlite, or is one file for all.
      lenient: accepts, as the official code does, a folder <db_id> without a readable database in it.

    Raises:
      ExampleError: databases are missing or, unless lenient, cannot be read.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    for db_id in dict.fromkeys(gold.db_id for gold in golds):
        files = [path for path in database_candidates(folder, db_id) if path.is_file()]
        if not files and lenient and (folder / db_id).is_dir():
            files = database_candidates(folder, db_id)[:1]
        if not files:
            missing.append(db_id)
            continue
        found[db_id] = files[0]
        if not lenient:
            try:
                sqlite.open_readonly(files[0]).close()
            except sqlite.DatabaseError as error:
                raise ExampleError(str(error)) from error
    if missing:
        expected = database_candidates(folder, missing[0])[0]
        raise ExampleError(
            f"{len(missing)} of {len(missing) + len(found)} databases are missing, first {missing[0]}: there is no "
            f"{expected}. --databases= names the folder that holds <db_id>/<db_id>.sqlite."
        )
    return found


def suite_files(database: Path, db_id: str, lenient: bool = False) -> list[Path]:
    """The test suite of a database: all SQLite files in its folder, sorted; the spider metric runs on each of them.

    A file that is not in a folder named `db_id` is a suite of one. lenient=True takes, as the official code does, every
    file with .sqlite anywhere in its name.
    """
    if database.parent.name != db_id:
        return [database]
    pattern = "*.sqlite*" if lenient else "*.sqlite"
    return sorted(path for path in database.parent.glob(pattern) if path.is_file())


def _gold(path: Path, position: int, record: Mapping[str, Any]) -> Gold:
    name = str(record.get("id", record.get("question_id", position)))
    for key in ("db_id", "sql"):
        if not isinstance(record.get(key), str):
            raise ExampleError(
                f"{path}: record {name} has no {key}. A gold record is Spider's {{db_id, query}}, "
                "BIRD's {db_id, SQL} or this project's {db_id, sql}."
            )
    difficulty = str(record.get("complexity") or record.get("difficulty") or "")
    return Gold(name, _check_db_id(path, name, record["db_id"]), record["sql"], difficulty)


def _read_text_golds(path: Path) -> list[Gold]:
    golds: list[Gold] = []
    for line in _lines(path):
        sql, tab, db_id = line.rpartition("\t")
        if not tab:
            raise ExampleError(f"{path}: line {len(golds) + 1} has no tab; write `SQL<tab>db_id`.")
        name = str(len(golds))
        golds.append(Gold(name, _check_db_id(path, name, db_id.strip()), sql, ""))
    return golds


def _check_db_id(path: Path, name: str, db_id: str) -> str:
    if not db_id or "/" in db_id or "\\" in db_id or db_id in (".", ".."):
        raise ExampleError(f"{path}: record {name} has the db_id {db_id!r}, which is not a valid name of a database.")
    return db_id


def _read_sql_lines(golds: Sequence[Gold], lines: Sequence[str]) -> Predictions:
    """One SQL per line, in the order of the gold file; a tab and the db_id may follow. An empty line is empty SQL."""
    sql: dict[str, str | None] = {}
    for gold, line in zip(golds, lines, strict=False):
        text, tab, db_id = line.rpartition("\t")
        sql[gold.id] = text if tab and db_id.strip() == gold.db_id else line
    return Predictions(sql, max(0, len(lines) - len(golds)))


def _read_bird_object(path: Path, golds: Sequence[Gold], content: Mapping[str, Any]) -> Predictions:
    """BIRD's object. Its keys are ids if all of them are ids of the gold file, else positions if all of them are."""
    ids = {gold.id for gold in golds}
    positions = {str(i) for i in range(len(golds))}
    positional = not content.keys() <= ids and content.keys() <= positions
    collector = _Collector(path, golds)
    for key, value in content.items():
        if not isinstance(value, str | None):
            raise ExampleError(f"{path}: prediction {key} is not text; write `SQL{BIRD_SEPARATOR}db_id`.")
        sql, _, db_id = (value or "").partition(BIRD_SEPARATOR)
        name = golds[int(key)].id if positional else key
        collector.add(name, None if value is None else sql, db_id.strip(), f"prediction {key}")
    return collector.predictions()


def _read_json_lines(path: Path, golds: Sequence[Gold]) -> Predictions:
    collector = _Collector(path, golds)
    for position, (number, record) in enumerate(read_numbered_jsonl(path, on_bad_lines="keep")):
        if not isinstance(record, Mapping) or not isinstance(record.get("sql", 0), str | None):
            raise ExampleError(f"{path}: line {number} is not a prediction; write a JSON object {{id, db_id, sql}}.")
        default = golds[position].id if position < len(golds) else None
        name = record.get("id", record.get("question_id", default))
        name = None if name is None else str(name)
        collector.add(name, record["sql"], str(record.get("db_id") or ""), f"line {number}")
    return collector.predictions()


class _Collector:
    """Collects predictions by the id of their gold query, and refuses contradictory ones."""

    def __init__(self, path: Path, golds: Sequence[Gold]):
        self._path = path
        self._db_ids = {gold.id: gold.db_id for gold in golds}
        self._sql: dict[str, str | None] = {}
        self._ignored = 0

    def add(self, name: str | None, sql: str | None, db_id: str, where: str) -> None:
        """Adds one prediction; `where` describes it in error messages."""
        if name is None or name not in self._db_ids:
            self._ignored += 1
            return
        if name in self._sql:
            raise ExampleError(f"{self._path}: {where} is a second prediction for {name}; remove one of them.")
        if db_id and db_id != self._db_ids[name]:
            raise ExampleError(
                f"{self._path}: {where} is for {name} on {db_id}, but the gold file has {name} on "
                f"{self._db_ids[name]}. Pass the gold file that these predictions were made for."
            )
        self._sql[name] = sql

    def predictions(self) -> Predictions:
        """All added predictions. Raises `ExampleError` if none has an id of the gold file."""
        if self._ignored and not self._sql:
            raise ExampleError(
                f"{self._path}: none of its {self._ignored} predictions has an id of the gold file, such as "
                f"{next(iter(self._db_ids))}. Pass the gold file that they were made for."
            )
        return Predictions(self._sql, self._ignored)


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return [line.removesuffix("\n") for line in file]
    except UnicodeDecodeError as error:
        raise ExampleError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from error


def _check_file(path: Path, option: str) -> None:
    if not path.is_file():
        raise ExampleError(f"{path}: no such file; check {option}=.")
