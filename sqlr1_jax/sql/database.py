"""SQLite files that are opened for reading only."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sqlite3
from typing import Any

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql import backends
from sqlr1_jax.sql.committed import LogError, committed_file

log = logging.getLogger(__name__)

SUFFIXES = (".sqlite", ".db", ".sqlite3")  # of database files, the usual one first
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


def open_readonly(path: str | os.PathLike[str], backend: str = "sqlite3") -> Any:
    """Opens a database file read-only and immutable: no SQL can write to it, and SQLite uses no locks or journal.

    If a log stands beside the file, opens a copy to which the log was applied (sql/committed.py).

    backend: a name in `backends.NAMES`. Raises DatabaseError if the file is missing, empty or not a SQLite database.
    """
    name = os.path.abspath(os.fspath(path))
    escaped = readable_file(name).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    uri = f"file://{escaped}?mode=ro&immutable=1"
    connection = None
    try:
        connection = backends.connect(backend, uri)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise DatabaseError(_why_unreadable(name, error)) from error
    return connection


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


def _why_unreadable(name: str, error: sqlite3.Error) -> str:
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
