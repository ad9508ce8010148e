"""Results of golds on disk, so that no gold runs twice on the same data: a file a database.

A result is a function of the database's bytes, the SQL, SQLite and the limits under which it ran (sql/sandbox.py),
and these are the key: the first, third and fourth name the file, the SQL stands in its lines. Paths are no part of
it, so copies and renamed folders share their files. What the worker process did not survive is not kept, since the
wall clock decided it. A store that cannot be read or written holds nothing, which costs time and no answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlr1_jax.sql import backends
from sqlr1_jax.sql.clock import NOW
from sqlr1_jax.sql.database import DatabaseError, content_hash
from sqlr1_jax.sql.gold import decode
from sqlr1_jax.sql.sandbox import Limits

if TYPE_CHECKING:
    from sqlr1_jax.config import ExecuteConfig

log = logging.getLogger(__name__)
FORM = 3  # of the lines; a change makes other files


def default_folder() -> str:
    """The user's own, ~/.cache/sqlr1_jax/golds or below $XDG_CACHE_HOME."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sqlr1_jax", "golds")


class GoldFiles:
    """Results as `gold.encode` writes them, by database and SQL.

    Safe to use from several threads, and from several processes on a local file system.
    """

    def __init__(self, folder: str, cfg: ExecuteConfig) -> None:
        """Reads a database's file when it is first asked for; writes a result when it is put."""
        limits = [getattr(cfg, name) for name in Limits._fields]
        key = json.dumps([FORM, cfg.backend, backends.version(cfg.backend), NOW, limits])
        self._rest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
        self._folder = Path(os.path.expanduser(folder))
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}

    def get(self, database: str, sql: str) -> str | None:
        """The result, None where it is not known."""
        return self._file(database).get(sql)

    def put(self, database: str, sql: str, result: str) -> None:
        """Keeps a result."""
        self._file(database).put(sql, result)

    def path(self, database: str) -> Path:
        """Where a database's results are kept. Raises DatabaseError when there is no such database."""
        return self._folder / f"{content_hash(database)}-{self._rest}.jsonl"

    def _file(self, database: str) -> _File:
        with self._lock:
            if database not in self._files:
                self._files[database] = _File(self, database)
            return self._files[database]


class _File:
    """One database's lines, of which memory holds the places; those that are damaged are run again."""

    def __init__(self, store: GoldFiles, database: str) -> None:
        self._store, self._database = store, database
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._read = self._broken_off = False
        self._places: dict[str, tuple[int, int]] = {}  # of a query's line: its first byte and their number

    def get(self, sql: str) -> str | None:
        with self._lock:
            try:
                return self._get(sql)
            except (OSError, DatabaseError) as error:
                self._give_up(error)
                return None

    def put(self, sql: str, result: str) -> None:
        with self._lock:
            try:
                self._put(sql, result)
            except (OSError, DatabaseError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Nothing more is read or written, so this is said once."""
        log.warning("no results of golds are kept for %s: %s", self._database, error)
        self._path, self._places, self._read = None, {}, True

    def _open(self) -> Path | None:
        if not self._read:
            path = self._store.path(self._database)
            self._path, self._read = path, True
            self._places, self._broken_off = _places(path)
        return self._path

    def _get(self, sql: str) -> str | None:
        path = self._open()
        if path is None or sql not in self._places:
            return None
        start, length = self._places[sql]
        with path.open("rb") as file:
            file.seek(start)
            pair = _parsed(file.read(length))
        if pair and pair[0] == sql and _is_result(pair[1]):
            return pair[1]
        del self._places[sql]
        return None

    def _put(self, sql: str, result: str) -> None:
        path = self._open()
        if path is None or sql in self._places:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps([sql, result]).encode() + b"\n"
        with path.open("ab") as file:
            file.write(b"\n" * self._broken_off + line)
            file.flush()
            self._places[sql] = file.tell() - len(line), len(line)
        self._broken_off = False


def _places(path: Path) -> tuple[dict[str, tuple[int, int]], bool]:
    """Where each query's line is, and whether the last line was broken off."""
    places: dict[str, tuple[int, int]] = {}
    start, line = 0, b"\n"
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                if pair := _parsed(line):
                    places[pair[0]] = start, len(line)
                start += len(line)
    return places, not line.endswith(b"\n")


def _parsed(line: bytes) -> tuple[str, str] | None:
    """A query and its result."""
    try:
        sql, result = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (sql, result) if isinstance(sql, str) and isinstance(result, str) else None


def _is_result(text: str) -> bool:
    try:
        decode(text)
    except (ValueError, KeyError, TypeError):
        return False
    return True
