"""Readers of the files that `score` takes: gold queries, predictions and databases.

Gold files: Spider's JSON, BIRD's JSON, this project's JSON (a list or lines), or lines of `SQL<tab>db_id`.
Prediction files: JSON lines {id, db_id, sql}, as in evaluation/<name>/greedy.jsonl, or a list of such objects; one SQL
per line, or a JSON list of SQL, in the order of the gold file; or BIRD's object
{"0": "SQL<tab>----- bird -----<tab>db_id"}. All are UTF-8, with or without a byte order mark.
A file with a record that cannot be scored is refused as a whole.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.data import sources
from sqlr1_jax.data.example import database_candidates
from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.io import EncodingError, open_text, parse_json, read_numbered_jsonl
from sqlr1_jax.sql import database as sqlite

BIRD_SEPARATOR = "\t----- bird -----\t"
_JSON_SUFFIXES = (".json", ".jsonl")
_LOG_SUFFIXES = ("-wal", "-shm", "-journal")


@dataclasses.dataclass(frozen=True)
class Gold:
    """The gold query of one question."""

    id: str  # the record's id or BIRD's question_id, else its position in the file
    db_id: str
    sql: str
    difficulty: str  # BIRD's difficulty or this project's complexity; "" if the record has none
    record_id: str = ""  # the record's own id, if `id` is its position because ids occur twice


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predicted queries by the id of their gold query."""

    sql: dict[str, str | None]  # None: the model's answer has no SQL
    ignored: int  # number of predictions whose id is not in the gold file


def read_golds(path: Path, lenient: bool = False) -> list[Gold]:
    """The gold queries of a file, in its order.

    lenient: ids may occur twice. The id of every query is then its position, as in the official code.

    Raises:
      ExampleError: the file cannot be used; the message names the file, the record and the fix.
    """
    _check_file(path, "--gold")
    if path.suffix in _JSON_SUFFIXES:
        first = next(sources.open_source("jsonl", str(path)).records(), None)
        fields = first.fields if first else {}
        prefix = "spider" if "query" in fields else "bird" if "SQL" in fields else "jsonl"
        records = sources.open_source(prefix, str(path)).records()
        golds = [_gold(path, record.position, record.fields) for record in records]
    else:
        golds = _read_text_golds(path)
    if not golds:
        raise ExampleError(f"{path}: the file has no gold query.")
    [(twice, count)] = Counter(gold.id for gold in golds).most_common(1)
    if count == 1:
        return golds
    if not lenient:
        raise ExampleError(
            f"{path}: two records have the id {twice}; ids must be unique. Remove one of them, or use --compat, which "
            "goes by position."
        )
    return [dataclasses.replace(gold, id=str(i), record_id=gold.id) for i, gold in enumerate(golds)]


def read_predictions(path: Path, golds: Sequence[Gold]) -> Predictions:
    """The predictions of a file for these gold queries.

    Raises:
      ExampleError: as `read_golds`.
    """
    _check_file(path, "--predictions")
    lines = _lines(path)
    text = "\n".join(lines).strip()
    if text.startswith("["):
        return _read_list(path, golds, text)
    if not text.startswith("{"):
        if path.suffix in _JSON_SUFFIXES and text:
            raise ExampleError(f"{path} is named as JSON and begins with {text[:20]!r}; rename a file of SQL to .sql.")
        return _read_sql_lines(path, golds, lines)
    content = None
    try:
        content = parse_json(text)
    except ValueError as error:
        if not _is_json(text.partition("\n")[0]):  # else there are several objects, one per line
            raise ExampleError(f"{path} begins as JSON but is not JSON ({error}): write the file again.") from error
    if isinstance(content, Mapping) and "sql" not in content:
        return _read_bird_object(path, golds, content)
    return _read_records(path, golds, ((f"line {n}", value) for n, value in read_numbered_jsonl(path, "keep")))


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
        files = [path for path in database_candidates(folder, db_id) if os.path.isfile(path)]
        if not files and lenient and os.path.isdir(folder / db_id):
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
    file with .sqlite anywhere in its name, except macOS's `._` files and SQLite's logs, on which the official code ends
    with an error.
    """
    if database.parent.name != db_id:
        return [database]
    pattern = "*.sqlite*" if lenient else f"*{database.suffix}"
    files = (path for path in database.parent.glob(pattern) if path.is_file())
    return sorted(path for path in files if not path.name.startswith("._") and not path.name.endswith(_LOG_SUFFIXES))


def _gold(path: Path, position: int, record: Mapping[str, Any]) -> Gold:
    name = str(next((record[key] for key in ("id", "question_id") if record.get(key) not in (None, "")), position))
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


def _read_sql_lines(path: Path, golds: Sequence[Gold], lines: Sequence[str]) -> Predictions:
    """One SQL per line, in the order of the gold file; a tab and the db_id may follow. An empty line is empty SQL."""
    if any(map(str.strip, lines[len(golds) :])):
        raise ExampleError(
            f"{path} has {len(lines)} lines for {len(golds)} gold queries. Write each SQL on one line, in the order of "
            "the gold file, or write JSON lines {id, sql}."
        )
    sql: dict[str, str | None] = {}
    for gold, line in zip(golds, lines, strict=False):
        text, tab, db_id = line.rpartition("\t")
        sql[gold.id] = text if tab and db_id.strip() == gold.db_id else line
    return Predictions(sql, 0)


def _read_bird_object(path: Path, golds: Sequence[Gold], content: Mapping[str, Any]) -> Predictions:
    """BIRD's object. Its keys are ids if all of them are ids of the gold file, else positions if all of them are."""
    ids = {gold.id for gold in golds}
    positions = {str(i) for i in range(len(golds))}
    if golds[0].record_id and not content.keys() <= positions:
        raise ExampleError(f"{path}: ids occur twice in the gold file; write positions from 0 as keys.")
    positional = not content.keys() <= ids and content.keys() <= positions
    collector = _Collector(path, golds)
    for key, value in content.items():
        if not isinstance(value, str | None):
            raise ExampleError(f"{path}: prediction {key} is not text; write `SQL{BIRD_SEPARATOR}db_id`.")
        sql, _, db_id = (value or "").partition(BIRD_SEPARATOR)
        name = golds[int(key)].id if positional else key
        collector.add(name, None if value is None else sql, db_id.strip(), f"prediction {key}")
    return collector.predictions()


def _read_list(path: Path, golds: Sequence[Gold], text: str) -> Predictions:
    """A JSON list of SQL, in the order of the gold file, or of objects."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ExampleError(f"{path} begins as a JSON list but is not JSON ({error}): write the file again.") from error
    if all(isinstance(value, str | None) for value in values):
        sql = {gold.id: value for gold, value in zip(golds, values, strict=False)}
        return Predictions(sql, max(0, len(values) - len(golds)))
    return _read_records(path, golds, ((f"prediction {i}", value) for i, value in enumerate(values)))


def _read_records(path: Path, golds: Sequence[Gold], records: Iterable[tuple[str, Any]]) -> Predictions:
    """records: (how errors call it, a JSON value) of each prediction."""
    collector = _Collector(path, golds)
    for position, (where, record) in enumerate(records):
        if not isinstance(record, Mapping) or not isinstance(record.get("sql", 0), str | None):
            raise ExampleError(f"{path}: {where} is not a prediction; write a JSON object {{id, db_id, sql}}.")
        gold = golds[position] if position < len(golds) else None
        ids = [str(record[key]) for key in ("id", "question_id") if record.get(key) is not None]
        name = ids[0] if ids else gold.id if gold else None
        if golds[0].record_id and ids and gold:
            if ids[0] not in (gold.id, gold.record_id):
                raise ExampleError(
                    f"{path}: {where} has the id {ids[0]}, but the gold file has {gold.record_id} there. "
                    "Ids occur twice in the gold file: write the predictions in its order."
                )
            name = gold.id
        collector.add(name, record["sql"], str(record.get("db_id") or ""), where)
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


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _lines(path: Path) -> list[str]:
    try:
        with open_text(path) as file:
            return [line.removesuffix("\n") for line in file]
    except EncodingError as error:
        raise ExampleError(str(error)) from error


def _check_file(path: Path, option: str) -> None:
    if not path.is_file():
        raise ExampleError(f"{path}: no such file; check {option}=.")
    sources.check_content(path)
