"""SQLite files that are opened for reading only."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql import backends
from sqlr1_jax.sql.committed import LogError, committed_file

log = logging.getLogger(__name__)

STEPS_PER_TICK = 1000
STEPS_PER_BYTE = 20  # a scan takes about 25 steps a row, and a row at least 6 bytes
SUFFIXES = (".sqlite", ".db", ".sqlite3")  # of database files, the usual one first
_MALFORMED = "malformed database schema"  # SQLite's message for an entry that it cannot parse
_MAX_ENTRIES = 10_000  # of a damaged schema, whose pages may refer to one another
_TABLES = """SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 AND typeof(name) = 'text'
    AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"""
_malformed: set[str] = set()  # absolute paths of the files whose malformed schema the log has named
# What else a file may be: (first bytes, what it is and the fix).
_KINDS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the database: run `git lfs pull`"),
    (b"version https://git-annex", "a git-annex pointer, not the database: run `git annex get`"),
    (b"\0\5\x16\7", "macOS's metadata of another file, not a database: delete it"),
    (b"** This file contains an SQLite 2", "a database of SQLite 2: convert it to SQLite 3"),
    (b"PK\3\4", "a zip archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"<", "a web page or XML, not a database: download the file again"),
)


class DatabaseError(Sqlr1Error):
    """A database file cannot be read; the message names the file and the fix."""


def open_readonly(path: str | os.PathLike[str], backend: str = "sqlite3", whole: bool = False) -> Any:
    """Opens a database file read-only and immutable: no SQL can write to it, and SQLite uses no locks or journal.

    If a log stands beside the file, opens a copy to which the log was applied (sql/committed.py). If entries of its
    schema are malformed, the tables, indices and views of the other entries can be read; the log says so once.

    Args:
      path: the file.
      backend: a name in `backends.NAMES`.
      whole: a malformed entry of the schema is an error.

    Raises:
      DatabaseError: the file is missing, empty or not a SQLite database, or its schema is malformed and no table of it
        can be read.
    """
    name = os.path.abspath(os.fspath(path))
    file = readable_file(name)
    escaped = file.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    uri = f"file://{escaped}?mode=ro&immutable=1"
    connection = None
    try:
        connection = backends.connect(backend, uri)
        limit_steps(connection, os.path.getsize(file))
        _load_schema(connection, name, whole)
        connection.set_progress_handler(None, STEPS_PER_TICK)
    except backends.ERRORS as error:
        if connection is not None:
            connection.close()
        raise DatabaseError(_why_unreadable(name, backends.message_of(error))) from error
    return connection


def limit_steps(connection: Any, size: int) -> None:
    """Interrupts the connection's statements once they have taken more steps than reading a file of `size` bytes takes.

    In a damaged file pages may refer to one another, so that a scan does not end. Call this before each long statement.
    """
    ticks = 1000 + size * STEPS_PER_BYTE // STEPS_PER_TICK
    connection.set_progress_handler(chain(repeat(False, ticks), repeat(True)).__next__, STEPS_PER_TICK)


def _load_schema(connection: Any, name: str, whole: bool) -> None:
    """Makes SQLite parse the schema, if not `whole` without its malformed entries. Raises one of backends.ERRORS."""
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return
    except backends.ERRORS as error:
        malformed = backends.message_of(error)
        if whole or not malformed.startswith(_MALFORMED):
            raise
        # With this pragma SQLite skips malformed entries. The file is still read-only.
        connection.execute("PRAGMA writable_schema=ON").close()
        is_parsed = _tables(connection)
        if not any(is_parsed.values()):
            raise
    connection.execute("PRAGMA writable_schema=OFF").close()
    lost = ", ".join(table for table in is_parsed if not is_parsed[table])
    _malformed.add(name)
    what = f"Tables that cannot be read: {lost}" if lost else "A part of it cannot be read"
    warn_once(f"{name}: {malformed}. {what}. Restore the file.")


def _tables(connection: Any) -> dict[str, bool]:
    """The names of the schema's tables, and whether SQLite has parsed their entries, so that they have columns."""
    is_parsed: dict[str, bool] = {}
    for (name,) in read_entries(connection, _TABLES):
        is_parsed[name] = False
        with suppress(*backends.ERRORS):  # of a view or a virtual table that has the name
            columns = connection.execute("SELECT 1 FROM pragma_table_xinfo(?)", (name,))
            is_parsed[name] = columns.fetchone() is not None
    return is_parsed


def read_entries(connection: Any, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query on sqlite_master, ordered by rowid, without those of damaged entries.

    Bytes that are not UTF-8 become replacement characters. query: ends in a condition.
    """
    before, connection.text_factory = connection.text_factory, lambda text: text.decode(errors="replace")
    try:
        return _read_entries(connection, query)
    finally:
        connection.text_factory = before


def _read_entries(connection: Any, query: str) -> list[tuple[Any, ...]]:
    with suppress(*backends.ERRORS):
        return list(connection.execute(f"{query} ORDER BY rowid").fetchall())
    rowids, rows = [], []
    with suppress(*backends.ERRORS):
        cursor = connection.execute(f"SELECT rowid FROM sqlite_master LIMIT {_MAX_ENTRIES}")
        while (row := cursor.fetchone()) is not None:
            rowids.append(row)
    for rowid in rowids:
        with suppress(*backends.ERRORS):
            rows += connection.execute(f"{query} AND rowid = ?", rowid).fetchall()
    return rows


def is_malformed(path: str | os.PathLike[str]) -> bool:
    """Whether this process has opened the file and its schema is malformed; the log names the tables that are lost."""
    return os.path.abspath(os.fspath(path)) in _malformed


def readable_file(path: str | os.PathLike[str]) -> str:
    """The absolute path of the file that holds a database's committed data: the file itself, or a copy.

    Raises DatabaseError if the file is missing or empty, or has a log that cannot be applied.
    """
    name = os.path.abspath(os.fspath(path))
    _check_file(name)
    try:
        return committed_file(name)
    except LogError as error:
        raise DatabaseError(str(error)) from error


def readable_size(path: str | os.PathLike[str]) -> int:
    """The bytes of `readable_file`. Raises DatabaseError as that does."""
    return os.path.getsize(readable_file(path))


@functools.cache
def warn_once(message: str) -> None:
    """Logs a part of a database that cannot be read, once per process."""
    log.warning("%s", message)


def content_hash(path: str | os.PathLike[str]) -> str:
    """A hash of the committed data's bytes, 32 hexadecimal digits. Raises DatabaseError as `readable_file`."""
    with open(readable_file(path), "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_file(name: str) -> None:
    if "\0" in name:
        raise DatabaseError(f"{name!r} is not a path: it contains a NUL character.")
    if not os.path.isfile(name):
        raise DatabaseError(f"{name} does not exist: check the folder of databases and the record's db_id.")
    if os.path.getsize(name) == 0:
        raise DatabaseError(f"{name} is empty (0 bytes), so it has no tables: restore the file.")


def _why_unreadable(name: str, error: str) -> str:
    """What the file is instead of a SQLite database, by its first bytes."""
    try:
        with open(name, "rb") as file:
            start = file.read(64)
    except OSError as problem:
        return f"{name} cannot be read ({problem}): check its permissions."
    for first_bytes, kind in _KINDS:
        if start.startswith(first_bytes):
            return f"{name} is {kind}."
    if start[8:12] == b"DUCK":
        return f"{name} is a database of DuckDB: convert it to SQLite."
    if start.startswith(b"SQLite format 3\0"):
        return f"{name} cannot be read as a SQLite database ({error}): restore the file."
    return f"{name} is no SQLite database, or it is encrypted ({error}): restore the file, or decrypt it."
