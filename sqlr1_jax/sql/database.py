"""SQLite files that are opened for reading only."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from typing import Any

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql import backends


class DatabaseError(Sqlr1Error):
    """A database file cannot be read; the message names the file and the fix."""


def open_readonly(path: str | os.PathLike[str], backend: str = "sqlite3") -> Any:
    """Opens a database file read-only and immutable: no SQL can write to it, and SQLite uses no locks or journal.

    backend: a name in `backends.NAMES`. Raises DatabaseError if the file is missing, empty or not a SQLite database.
    """
    name = os.path.abspath(os.fspath(path))
    _check_file(name)
    escaped = name.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    uri = f"file://{escaped}?mode=ro&immutable=1"
    connection = None
    try:
        connection = backends.connect(backend, uri)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise DatabaseError(f"{name} cannot be read as a SQLite database ({error}): restore the file.") from error
    return connection


def _check_file(name: str) -> None:
    if "\0" in name:
        raise DatabaseError(f"{name!r} is not a path: it contains a NUL character.")
    if not os.path.isfile(name):
        raise DatabaseError(f"{name} does not exist: check the folder of databases and the record's db_id.")
    if os.path.getsize(name) == 0:
        raise DatabaseError(f"{name} is empty (0 bytes), so it has no tables: restore the file.")


def content_hash(path: str | os.PathLike[str]) -> str:
    """A hash of the file's bytes, 32 hexadecimal digits. Raises DatabaseError if the file is missing or empty."""
    name = os.path.abspath(os.fspath(path))
    _check_file(name)
    with open(name, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
