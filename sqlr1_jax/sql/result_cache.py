"""Query results on disk, so that no gold query runs twice on the same data. There is one file for each database.

A result is a function of the database's bytes, the SQL, the SQLite version and the sandbox's limits (sql/sandbox.py).
These form the key: the SQL is in the file's lines, the others are in the file's name. The path of the database is not
part of the key, so copies of a database share one file. Results that the wall clock decided are not cached. A file that
cannot be read or written costs time but never changes an answer.
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
from sqlr1_jax.sql.result import decode
from sqlr1_jax.sql.sandbox import Limits

if TYPE_CHECKING:
    from sqlr1_jax.config import ExecuteConfig

log = logging.getLogger(__name__)
FORMAT_VERSION = 3  # of the lines; files of another version are ignored


def default_folder() -> str:
    """The user's cache folder: $XDG_CACHE_HOME/sqlr1_jax/golds, or ~/.cache/sqlr1_jax/golds."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sqlr1_jax", "golds")


class ResultCache:
    """Results by database and SQL, as the text that `result.encode` writes.

    Safe to use from several threads, and from several processes on a local file system.
    """

    def __init__(self, folder: str, config: ExecuteConfig) -> None:
        """config: the backend and the limits, which are part of the key. Files are read when first needed."""
        limits = [getattr(config, name) for name in Limits._fields]
        key = json.dumps([FORMAT_VERSION, config.backend, backends.version(config.backend), NOW, limits])
        self._settings_hash = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
        self._folder = Path(os.path.expanduser(folder))
        self._lock = threading.Lock()
        self._files: dict[str, _CacheFile] = {}

    def get(self, database: str, sql: str) -> str | None:
        """The cached result, or None."""
        return self._file(database).get(sql)

    def put(self, database: str, sql: str, result: str) -> None:
        """Writes a result."""
        self._file(database).put(sql, result)

    def path(self, database: str) -> Path:
        """The file of a database's results.

        Raises:
          DatabaseError: the database does not exist.
          OSError: the cache's folder is in a home folder, and there is none.
        """
        if str(self._folder).startswith("~"):
            raise OSError(f"{self._folder}: there is no home folder")
        return self._folder / f"{content_hash(database)}-{self._settings_hash}.jsonl"

    def _file(self, database: str) -> _CacheFile:
        with self._lock:
            if database not in self._files:
                self._files[database] = _CacheFile(self, database)
            return self._files[database]


class _CacheFile:
    """The lines of one database. Memory holds their byte ranges only; a damaged line is treated as absent."""

    def __init__(self, cache: ResultCache, database: str) -> None:
        self._cache, self._database = cache, database
        self._lock = threading.Lock()
        self._path: Path | None = None  # None before the file is opened, and after it failed
        self._opened = False
        self._unterminated = False  # the last line has no line end: a process died while writing it
        self._ranges: dict[str, tuple[int, int]] = {}  # by SQL: first byte and length of its line

    def get(self, sql: str) -> str | None:
        """The cached result of a query, or None. An unreadable file disables the cache."""
        with self._lock:
            try:
                return self._get(sql)
            except (OSError, DatabaseError) as error:
                self._disable(error)
                return None

    def put(self, sql: str, result: str) -> None:
        """Appends a result. An error of the disk disables the cache."""
        with self._lock:
            try:
                self._put(sql, result)
            except (OSError, DatabaseError) as error:
                self._disable(error)

    def _disable(self, error: Exception) -> None:
        """Stops reading and writing this file, so the warning appears once."""
        log.warning("no query results are cached for %s: %s", self._database, error)
        self._path, self._ranges, self._opened = None, {}, True

    def _open(self) -> Path | None:
        if not self._opened:
            path = self._cache.path(self._database)
            self._path, self._opened = path, True
            self._ranges, self._unterminated = _index_lines(path)
        return self._path

    def _get(self, sql: str) -> str | None:
        path = self._open()
        if path is None or sql not in self._ranges:
            return None
        start, length = self._ranges[sql]
        with path.open("rb") as file:
            file.seek(start)
            pair = _parse_line(file.read(length))
        if pair and pair[0] == sql and _is_result(pair[1]):
            return pair[1]
        del self._ranges[sql]
        return None

    def _put(self, sql: str, result: str) -> None:
        path = self._open()
        if path is None or sql in self._ranges:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps([sql, result]).encode() + b"\n"
        with path.open("ab") as file:
            file.write(b"\n" * self._unterminated + line)
            file.flush()
            self._ranges[sql] = file.tell() - len(line), len(line)
        self._unterminated = False


def _index_lines(path: Path) -> tuple[dict[str, tuple[int, int]], bool]:
    """The first byte and length of each query's line, and whether the last line lacks its line end."""
    ranges: dict[str, tuple[int, int]] = {}
    start, line = 0, b"\n"
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                if pair := _parse_line(line):
                    ranges[pair[0]] = start, len(line)
                start += len(line)
    return ranges, not line.endswith(b"\n")


def _parse_line(line: bytes) -> tuple[str, str] | None:
    """A query and its result, or None for a damaged line."""
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
