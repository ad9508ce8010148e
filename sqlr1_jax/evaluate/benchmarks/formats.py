"""The file forms of golds and predictions that `score` reads, and where each gold's databases are.

Gold: Spider's JSON, BIRD's, ours (a list or lines), or lines `SQL<tab>db_id`. Predictions: JSON lines {id, db_id, sql},
as evaluation/<stage>/greedy.jsonl has them; one SQL a line in gold's order; or BIRD's object {"0": "SQL<tab>-----
bird -----<tab>db_id"}. Nothing is set aside: a file with a record that cannot be scored is refused.
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
_JSON = (".json", ".jsonl")


@dataclasses.dataclass(frozen=True)
class Gold:
    """One question's answer."""

    id: str  # the record's id, BIRD's question_id, else its position in the file
    db_id: str
    sql: str
    difficulty: str  # BIRD's difficulty, our complexity; "" where the data has none


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was predicted for which gold."""

    sql: dict[str, str | None]  # by gold's id; None: the answer held no SQL
    ignored: int  # predictions for ids that gold lacks


def read_golds(path: Path) -> list[Gold]:
    """The golds of a file in its order. Raises `ExampleError`, which names the file, the record and the fix."""
    _check_file(path, "--gold")
    golds = _json_golds(path) if path.suffix in _JSON else _text_golds(path)
    if not golds:
        raise ExampleError(f"{path}: it holds no gold at all.")
    seen: set[str] = set()
    for gold in golds:
        if gold.id in seen:
            raise ExampleError(f"{path}: the id {gold.id} is there twice; ids must tell the golds apart.")
        seen.add(gold.id)
    return golds


def read_predictions(path: Path, golds: Sequence[Gold]) -> Predictions:
    """The predictions of a file for these golds. Raises `ExampleError` as `read_golds` does."""
    _check_file(path, "--predictions")
    lines = _lines(path)
    text = "\n".join(lines).strip()
    if not text.startswith("{"):
        return _in_order(golds, lines)
    whole = _decoded(text)
    if isinstance(whole, Mapping) and "sql" not in whole:
        return _bird_object(path, golds, whole)
    return _json_lines(path, golds)


def default_databases(path: Path) -> Path:
    """The folder of databases beside a gold file, under any of its usual names."""
    return sources.database_folder(path, ("databases", "database", "dev_databases", "train_databases"))


def find_databases(golds: Iterable[Gold], folder: Path, lenient: bool = False) -> dict[str, Path]:
    """The SQLite file of each db_id.

    lenient: as the official code, content with a folder <db_id> whatever is in it.

    Raises:
      ExampleError: some are missing or, unless lenient, cannot be read.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    for db_id in dict.fromkeys(gold.db_id for gold in golds):
        here = [place for place in database_candidates(folder, db_id) if place.is_file()]
        if not here and lenient and (folder / db_id).is_dir():
            here = database_candidates(folder, db_id)[:1]
        if here:
            found[db_id] = here[0] if lenient else _readable(here[0])
        else:
            missing.append(db_id)
    if missing:
        looked = database_candidates(folder, missing[0])[0]
        raise ExampleError(
            f"{len(missing)} of {len(missing) + len(found)} databases are missing, first {missing[0]}: there is no "
            f"{looked}. --databases= names the folder that holds <db_id>/<db_id>.sqlite."
        )
    return found


def suite(database: Path, db_id: str, lenient: bool = False) -> list[Path]:
    """All files on which the spider metric wants agreement: those in the database's own folder, sorted.

    lenient: as the official code, every file with .sqlite anywhere in its name.
    """
    if database.parent.name != db_id:
        return [database]
    pattern = "*.sqlite*" if lenient else "*.sqlite"
    return sorted(path for path in database.parent.glob(pattern) if path.is_file())


def _json_golds(path: Path) -> list[Gold]:
    first = next(sources.open_source("jsonl", str(path)).records(), (0, {}))[1]
    prefix = "spider" if "query" in first else "bird" if "SQL" in first else "jsonl"
    return [_gold(path, position, record) for position, record in sources.open_source(prefix, str(path)).records()]


def _gold(path: Path, position: int, record: Mapping[str, Any]) -> Gold:
    name = str(record.get("id", record.get("question_id", position)))
    for key in ("db_id", "sql"):
        if not isinstance(record.get(key), str):
            raise ExampleError(
                f"{path}: record {name} has no {key}. A gold is Spider's {{db_id, query}}, BIRD's {{db_id, SQL}} or "
                "our {db_id, sql}."
            )
    difficulty = str(record.get("complexity") or record.get("difficulty") or "")
    return Gold(name, _checked(path, name, record["db_id"]), record["sql"], difficulty)


def _text_golds(path: Path) -> list[Gold]:
    golds: list[Gold] = []
    for line in _lines(path):
        sql, tab, db_id = line.rpartition("\t")
        if not tab:
            raise ExampleError(f"{path}: line {len(golds) + 1} is no `SQL<tab>db_id`: there is no tab in it.")
        name = str(len(golds))
        golds.append(Gold(name, _checked(path, name, db_id.strip()), sql, ""))
    return golds


def _checked(path: Path, name: str, db_id: str) -> str:
    if not db_id or "/" in db_id or "\\" in db_id or db_id in (".", ".."):
        raise ExampleError(f"{path}: record {name} has {db_id!r} for its db_id, which names no database.")
    return db_id


def _in_order(golds: Sequence[Gold], lines: Sequence[str]) -> Predictions:
    """One SQL a line, perhaps with its db_id behind a tab; an empty line predicts nothing."""
    sql: dict[str, str | None] = {}
    for gold, line in zip(golds, lines, strict=False):
        said, tab, db_id = line.rpartition("\t")
        sql[gold.id] = said if tab and db_id.strip() == gold.db_id else line
    return Predictions(sql, max(0, len(lines) - len(golds)))


def _bird_object(path: Path, golds: Sequence[Gold], whole: Mapping[str, Any]) -> Predictions:
    """Keys are gold's ids where all of them are, else positions where all of them are, as in BIRD's own files."""
    ids = {gold.id for gold in golds}
    places = {str(i) for i in range(len(golds))}
    positional = not whole.keys() <= ids and whole.keys() <= places
    collector = _Collector(path, golds)
    for key, value in whole.items():
        if not isinstance(value, str | None):
            raise ExampleError(f"{path}: prediction {key} is no text; BIRD has `SQL{BIRD_SEPARATOR}db_id` there.")
        sql, _, db_id = (value or "").partition(BIRD_SEPARATOR)
        name = golds[int(key)].id if positional else key
        collector.add(name, None if value is None else sql, db_id.strip(), f"prediction {key}")
    return collector.done()


def _json_lines(path: Path, golds: Sequence[Gold]) -> Predictions:
    collector = _Collector(path, golds)
    for position, (number, record) in enumerate(read_numbered_jsonl(path, on_bad_lines="keep")):
        if not isinstance(record, Mapping) or not isinstance(record.get("sql", 0), str | None):
            raise ExampleError(f"{path}: line {number} is no prediction: write a JSON object {{id, db_id, sql}}.")
        place = golds[position].id if position < len(golds) else None
        name = record.get("id", record.get("question_id", place))
        name = None if name is None else str(name)
        collector.add(name, record["sql"], str(record.get("db_id") or ""), f"line {number}")
    return collector.done()


class _Collector:
    """Gathers predictions by gold's id, and refuses what cannot be meant."""

    def __init__(self, path: Path, golds: Sequence[Gold]):
        self._path = path
        self._db_ids = {gold.id: gold.db_id for gold in golds}
        self._sql: dict[str, str | None] = {}
        self._ignored = 0

    def add(self, name: str | None, sql: str | None, db_id: str, where: str) -> None:
        """Takes one prediction; `where` names it in an error."""
        if name is None or name not in self._db_ids:
            self._ignored += 1
            return
        if name in self._sql:
            raise ExampleError(f"{self._path}: {where} is a second prediction for {name}; leave one of them.")
        if db_id and db_id != self._db_ids[name]:
            raise ExampleError(
                f"{self._path}: {where} is for {name} on {db_id}, but gold has {name} on {self._db_ids[name]}. "
                "Give the gold that these predictions were made for."
            )
        self._sql[name] = sql

    def done(self) -> Predictions:
        """All that was added. Raises `ExampleError` when gold knows none of them."""
        if self._ignored and not self._sql:
            raise ExampleError(
                f"{self._path}: none of its {self._ignored} predictions has an id that gold has, such as "
                f"{next(iter(self._db_ids))}. Give the gold that they were made for."
            )
        return Predictions(self._sql, self._ignored)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return [line.removesuffix("\n") for line in file]
    except UnicodeDecodeError as error:
        raise ExampleError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from error


def _readable(path: Path) -> Path:
    try:
        sqlite.open_readonly(path).close()
    except sqlite.DatabaseError as error:
        raise ExampleError(str(error)) from error
    return path


def _check_file(path: Path, option: str) -> None:
    if not path.is_file():
        raise ExampleError(f"{path}: no such file; {option}= names one.")
