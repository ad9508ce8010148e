"""Two Python modules that provide SQLite, behind the interface of sqlite3.Connection.

`sqlite3` is the standard library's, in the version that the machine has. `apsw` contains its own SQLite, so results are
the same on every machine with the same version of APSW.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.sql.compare import OPAQUE

NAMES = ("sqlite3", "apsw")
# What a statement raises. UnicodeDecodeError: SQLite's message or a column's name has bytes that are not UTF-8.
ERRORS = (sqlite3.Error, UnicodeDecodeError)
# sqlite3 allows nothing but white space and comments after a statement, not even an empty statement.
_BLANK = re.compile(r"(?:\s|--[^\n]*|/\*.*?(?:\*/|\Z))*+", re.DOTALL)
_OPAQUE = re.compile(OPAQUE, re.DOTALL)
_LEADING = re.compile(r"(?:[\s;]|--[^\n]*|/\*.*?(?:\*/|\Z))*+(\w*)", re.DOTALL)


def find(name: str) -> str:
    """The file from which a worker, which has no site packages, loads a backend; "" for the standard library's.

    Raises ConfigError if the backend is not installed; the message says how to install it.
    """
    if name == "sqlite3":
        return ""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        fix = f"pip install 'sqlr1_jax[{name}]'"
        raise ConfigError(f"config.execute.backend is {name}, which is not installed: {fix}.")
    return spec.origin


def load(name: str, file: str) -> None:
    """Imports a backend from the file that `find` returned, without making its folder importable."""
    if not file:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def version(name: str) -> str:
    """The version of a backend's SQLite. Results are comparable within one version only."""
    if name == "sqlite3":
        return sqlite3.sqlite_version
    import apsw

    return str(apsw.sqlite_lib_version())


def connect(name: str, uri: str) -> Any:
    """A connection in autocommit mode. It caches no statements, so that a statement's steps are counted from 0."""
    if name == "sqlite3":
        return sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
    return ApswConnection(uri)


class ApswConnection:
    """The methods of sqlite3.Connection that this package calls, on top of APSW. Raises sqlite3's exceptions.

    Text that is not UTF-8 is always an error, because APSW cannot return its bytes; `text_factory` has no effect.
    """

    text_factory: Callable[[bytes], str] = str

    def __init__(self, uri: str):
        import apsw

        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI  # mode=ro in the URI makes it read-only
        with sqlite3_errors():
            self._inner = apsw.Connection(uri, flags=flags, statementcachesize=0)
        self.close = self._inner.close
        self.set_authorizer = self._inner.set_authorizer
        self.set_progress_handler = self._inner.set_progress_handler

    def execute(self, sql: str, values: tuple[Any, ...] | list[Any] = ()) -> ApswCursor:
        """Runs one statement. Raises sqlite3.ProgrammingError for several statements, before any of them runs."""
        return ApswCursor(self._inner.cursor(), sql, values)

    def getlimit(self, limit: int) -> int:
        """Like sqlite3.Connection.getlimit."""
        return int(self._inner.limit(limit))

    def setlimit(self, limit: int, value: int) -> None:
        """Like sqlite3.Connection.setlimit."""
        self._inner.limit(limit, value)

    def create_function(self, name: str, count: int, call: Callable[..., Any], deterministic: bool = False) -> None:
        """Like sqlite3.Connection.create_function."""
        self._inner.create_scalar_function(name, call, count, deterministic=deterministic)


class ApswCursor:
    """The rows of one statement.

    `description` is None if the text has no statement. It stays set after the last row is fetched.
    """

    def __init__(self, cursor: Any, sql: str, values: tuple[Any, ...] | list[Any]):
        self.description: tuple[tuple[Any, ...], ...] | None = None
        self._cursor, self._sql = cursor, sql
        cursor.exec_trace = self._check_statement
        try:
            with sqlite3_errors():
                cursor.execute(sql, values or None)
        finally:
            cursor.exec_trace = None  # breaks the reference cycle, so the cursor is freed with its last reference

    def fetchone(self) -> Any:
        """The next row, or None after the last."""
        return next(iter(self.fetchmany(1)), None)

    def fetchmany(self, count: int) -> list[tuple[Any, ...]]:
        """Up to `count` further rows; empty after the last."""
        with sqlite3_errors():
            return list(itertools.islice(self._cursor, count))

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All remaining rows."""
        with sqlite3_errors():
            return list(self._cursor)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())

    def close(self) -> None:
        """Like sqlite3.Cursor.close."""
        self._cursor.close(True)  # True: no error about rows that were not read

    def _check_statement(self, cursor: Any, statement: str, _values: Any) -> bool:
        """Refuses a second statement. APSW calls this before each statement, and before comments that follow one."""
        if self.description is None:
            self.description = cursor.description or None
            last = self._sql.startswith(statement) and _BLANK.fullmatch(self._sql, len(statement))
            # APSW reports `SELECT 1;;` as one statement, although its second `;` ends an empty one, which sqlite3
            # refuses. Leading `;` are ignored.
            _, *ends = _OPAQUE.sub(" ", statement).lstrip("; \t\n\v\f\r").rsplit(";", 2)
            if not last or (len(ends) == 2 and not "".join(ends).strip()):
                raise sqlite3.ProgrammingError("You can only execute one statement at a time.")
        return True


def message_of(error: Exception) -> str:
    """The message of one of ERRORS, with replacement characters for bytes that are not UTF-8."""
    return error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)


def first_word(sql: str) -> str:
    """The first word of a text in lower case, after white space, comments and empty statements."""
    return _LEADING.match(sql).group(1).lower()  # type: ignore[union-attr]  # the pattern matches every string


@contextmanager
def sqlite3_errors() -> Iterator[None]:
    """Turns an exception of APSW inside this context into the one that sqlite3 raises for the same error."""
    import apsw

    try:
        yield
    except apsw.NoMemError as error:
        raise MemoryError from error
    except (apsw.BindingsError, apsw.ExecutionCompleteError) as error:
        raise sqlite3.ProgrammingError(str(error)) from error
    except UnicodeDecodeError as error:
        raise sqlite3.OperationalError(f"Could not decode to UTF-8 column: {error}") from error
    except apsw.TooBigError as error:
        raise sqlite3.DataError(str(error)) from error
    except apsw.Error as error:
        raise sqlite3.OperationalError(str(error)) from error
