"""Results of golds on disk, so that no gold runs twice on the same data: a file a database.

A result is a function of the database's bytes, the SQL, SQLite's version and the limits under which it ran
(sql/sandbox.py), and these are the key: the first, third and fourth name the file, the SQL stands in its lines.
Paths are no part of it, so copies and renamed folders share their files. What the worker process did not
survive is not kept, since the wall clock decided it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlr1_jax.sql import backends
from sqlr1_jax.sql.clock import NOW
from sqlr1_jax.sql.database import DatabaseError, content_hash
from sqlr1_jax.sql.sandbox import Limits

if TYPE_CHECKING:
    from sqlr1_jax.config import Execute

FORM = 2  # of the lines; a change makes other files


class GoldFiles:
    """Results as `gold.encode` writes them, by database and SQL. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, cfg: Execute) -> None:
        """Reads a database's file when it is first asked for; writes a result when it is put."""
        limits = [getattr(cfg, name) for name in Limits._fields]
        key = json.dumps([FORM, backends.version(cfg.backend), NOW, limits])
        self._rest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
        self._folder = folder.expanduser()
        self._lock = threading.Lock()
        self._files: dict[str, _File | None] = {}  # None: the database cannot be read

    def get(self, database: str, sql: str) -> str | None:
        """The result, None where it is not known."""
        with self._lock:
            file = self._file(database)
            return file.results.get(sql) if file else None

    def put(self, database: str, sql: str, result: str) -> None:
        """Keeps a result."""
        with self._lock:
            if file := self._file(database):
                file.add(sql, result)

    def path(self, database: str) -> Path:
        """Where a database's results are kept. Raises DatabaseError when there is no such database."""
        return self._folder / f"{content_hash(database)}-{self._rest}.jsonl"

    def _file(self, database: str) -> _File | None:
        if database not in self._files:
            try:
                self._files[database] = _File(self.path(database))
            except DatabaseError:  # the worker says so too, of each query
                self._files[database] = None
        return self._files[database]


class _File:
    """One database's lines; those that are damaged count as absent: what they said is run again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = path.read_bytes() if path.is_file() else b""
        self._broken_off = not data.endswith(b"\n") and bool(data)
        self.results = dict(pair for pair in map(_parsed, data.splitlines()) if pair)

    def add(self, sql: str, result: str) -> None:
        self.results[sql] = result
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._broken_off + json.dumps([sql, result]) + "\n")
        self._broken_off = False


def _parsed(line: bytes) -> tuple[str, str] | None:
    try:
        sql, result = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (sql, result) if isinstance(sql, str) and isinstance(result, str) else None
