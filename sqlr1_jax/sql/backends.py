"""SQLite as the standard library has it, or as APSW brings it along: one interface, that of sqlite3.Connection.

`sqlite3` needs nothing and is whatever version the machine has; `apsw` holds a SQLite of its own, so that results are
the same on every machine with the same APSW.
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
# What sqlite3 allows behind a statement: not even an empty one.
_BLANK = re.compile(r"(?:\s|--[^\n]*|/\*.*?(?:\*/|\Z))*+", re.DOTALL)
_OPAQUE = re.compile(OPAQUE, re.DOTALL)
_LEADING = re.compile(r"(?:[\s;]|--[^\n]*|/\*.*?(?:\*/|\Z))*+(\w*)", re.DOTALL)


def find(name: str) -> str:
    """The file that a worker loads for a backend, which has no site packages: empty for the standard library's.

    Raises ConfigError, which says how to install it, when it is not there.
    """
    if name == "sqlite3":
        return ""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        fix = f"pip install 'sqlr1_jax[{name}]'"
        raise ConfigError(f"config.execute.backend is {name}, which is not installed: {fix}.")
    return spec.origin


def load(name: str, file: str) -> None:
    """Imports a backend from the file that `find` told: it alone, and not what lies beside it."""
    if not file:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def version(name: str) -> str:
    """The version of a backend's SQLite; results are comparable within one version."""
    if name == "sqlite3":
        return sqlite3.sqlite_version
    import apsw

    return str(apsw.sqlite_lib_version())


def connect(name: str, uri: str) -> Any:
    """A connection in autocommit mode that caches no statement, so that a statement's steps are counted from 0."""
    if name == "sqlite3":
        return sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
    return ApswConnection(uri)


class ApswConnection:
    """APSW behind the methods of sqlite3.Connection that this package calls; raises sqlite3's exceptions.

    Text that is not UTF-8 is an error here, whatever `text_factory`: APSW has no way to hand out its bytes.
    """

    text_factory: Callable[[bytes], str] = str

    def __init__(self, uri: str):
        import apsw

        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI  # a URI's mode=ro takes the right to write away
        with _as_sqlite3():
            self._inner = apsw.Connection(uri, flags=flags, statementcachesize=0)
        self.close = self._inner.close
        self.set_authorizer = self._inner.set_authorizer
        self.set_progress_handler = self._inner.set_progress_handler

    def execute(self, sql: str, values: tuple[Any, ...] | list[Any] = ()) -> ApswCursor:
        """The cursor of one statement. Raises sqlite3.ProgrammingError for several, before any of them runs."""
        return ApswCursor(self._inner.cursor(), sql, values)

    def getlimit(self, limit: int) -> int:
        """As sqlite3's."""
        return int(self._inner.limit(limit))

    def setlimit(self, limit: int, value: int) -> None:
        """As sqlite3's."""
        self._inner.limit(limit, value)

    def create_function(self, name: str, count: int, call: Callable[..., Any], deterministic: bool = False) -> None:
        """As sqlite3's."""
        self._inner.create_scalar_function(name, call, count, deterministic=deterministic)


class ApswCursor:
    """Rows of one statement; `description` stays when they are read, and None says that there is no statement."""

    def __init__(self, cursor: Any, sql: str, values: tuple[Any, ...] | list[Any]):
        self.description: tuple[tuple[Any, ...], ...] | None = None
        self._cursor, self._sql = cursor, sql
        cursor.exec_trace = self._begins
        try:
            with _as_sqlite3():
                cursor.execute(sql, values or None)
        finally:
            cursor.exec_trace = None  # no cycle, so that a cursor ends with its last reference

    def fetchone(self) -> Any:
        """The next row, None behind the last."""
        return next(iter(self.fetchmany(1)), None)

    def fetchmany(self, count: int) -> list[tuple[Any, ...]]:
        """The next rows, none behind the last."""
        with _as_sqlite3():
            return list(itertools.islice(self._cursor, count))

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        with _as_sqlite3():
            return list(self._cursor)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())

    def close(self) -> None:
        """As sqlite3's."""
        self._cursor.close(True)  # without what would be raised for the rows that nobody read

    def _begins(self, cursor: Any, statement: str, _values: Any) -> bool:
        """Called before each statement of the text, comments behind the first too."""
        if self.description is None:
            self.description = cursor.description or None
            last = self._sql.startswith(statement) and _BLANK.fullmatch(self._sql, len(statement))
            # A second `;` at its end ends another statement, an empty one; those before it count for nothing.
            _, *ends = _OPAQUE.sub(" ", statement).lstrip("; \t\n\v\f\r").rsplit(";", 2)
            if not last or (len(ends) == 2 and not "".join(ends).strip()):
                raise sqlite3.ProgrammingError("You can only execute one statement at a time.")
        return True


def first_word(sql: str) -> str:
    """The first word in lower case, after white space, comments and empty statements."""
    return _LEADING.match(sql).group(1).lower()  # type: ignore[union-attr]  # matches the empty string too


@contextmanager
def _as_sqlite3() -> Iterator[None]:
    """Raises what sqlite3 would for what APSW raises."""
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
