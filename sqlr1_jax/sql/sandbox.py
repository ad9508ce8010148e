"""Runs one untrusted SQL statement against one database, within limits. All access to SQLite goes through here.

Used only inside a worker process, because the heap limit applies to the whole process. Time is counted in SQLite's
virtual-machine steps, so a result is the same on every host and under any load. The clock is fixed and random() is
denied, so a result depends only on the file, the SQL and SQLite's version.
"""

from __future__ import annotations

import resource
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain, repeat
from operator import length_hint
from typing import Any, NamedTuple

from sqlr1_jax.sql import backends, clock, modules
from sqlr1_jax.sql.compare import Row
from sqlr1_jax.sql.database import DatabaseError, open_readonly
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.sql.result import Result

STEPS_PER_TICK = 1000  # resolution of the step count: about 10 µs of SQLite's time
MAX_SESSIONS = 32  # connections kept open
FETCH_ROWS = 64  # rows fetched between two checks of the result's size

# More than the progress handler's calls in any statement, so that the handler (`_begin`) always has a value to return.
# SQLite stops the statement at the first True. The other values are a reserve, in case SQLite calls the handler again.
_MAX_TICKS = 2**31
_SIZED = (str, bytes)
_FILE_ERRORS = ("unable to open database file", "disk I/O error")  # SQLite's messages when it cannot open a file

LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,  # bytes of a value or row, which bounds the work of one step
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 500,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 250_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

_FUNCTIONS = """
abs char coalesce concat concat_ws format glob hex ifnull iif if instr length like likelihood likely lower
ltrim max min nullif octet_length printf quote replace round rtrim sign soundex substr substring trim typeof
unhex unicode unistr unlikely upper zeroblob match avg count group_concat string_agg sum total median
percentile percentile_cont percentile_disc row_number rank dense_rank percent_rank cume_dist ntile lag lead
first_value last_value nth_value acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp
floor ln log log10 log2 mod pi pow power radians sin sinh sqrt tan tanh trunc json json_array
json_array_length json_error_position json_extract json_group_array json_group_object json_insert
json_object json_patch json_pretty json_quote json_remove json_replace json_set json_type json_valid -> ->>
"""
_STATEMENTS_DENIED = """
alter analyze attach begin commit create delete detach drop end explain insert pragma reindex release
replace rollback savepoint update vacuum
"""
FUNCTIONS = frozenset(_FUNCTIONS.split()) | modules.FUNCTIONS
STATEMENTS_DENIED = frozenset(_STATEMENTS_DENIED.split())
HIDDEN_TABLES = frozenset(("sqlite_stmt", "dbstat", "sqlite_dbpage", "bytecode", "tables_used"))  # SQLite's own state
# Table-valued functions. The first use declares a virtual table, which the authorizer denies, so each is used once
# before the authorizer is installed.
TABLE_FUNCTIONS = ("json_each", "json_tree")
ACTIONS_ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE))


class Limits(NamedTuple):
    """The limits of a statement: those fields of config.ExecuteConfig that decide a result."""

    max_steps: int
    max_rows: int
    max_bytes: int  # size of a result: the bytes of text and blobs and 8 for each other cell, at least 8 for each cell
    heap_bytes: int  # size of SQLite's heap in this process


class _TooLarge(Exception):
    pass


class Session:
    """One hardened connection, in one of the four modes that two flags give.

    clocked: date functions are allowed, and their current time is fixed. They are Python functions
    (`clock.stop_clock`), which are slower than SQLite's own. Without `clocked`, date functions are denied.
    quick: temp_store=FILE, so SQLite sorts in a buffer of 2 MB, which takes a third less time. Opening a file is
    blocked, so a larger sort fails and runs again with quick=False.
    """

    needs_statement = True  # a text without a statement, such as a comment, is an error

    def __init__(self, path: str, clocked: bool, backend: str = "sqlite3", quick: bool = False):
        """backend: a name in `backends.NAMES`. Raises DatabaseError if the file cannot be read."""
        self._clocked, self._backend, self.quick = clocked, backend, quick
        self.used_module = False  # a statement read a virtual table, whose module keeps state that later ones would see
        self.connection = self._open(path)
        self._modules = modules.virtual_tables(self.connection)
        try:
            self._harden()
        except backends.ERRORS as error:  # the file is more damaged than opening it shows
            self.connection.close()
            raise DatabaseError(f"{path} cannot be read ({backends.message_of(error)}): restore the file.") from error
        self._begin(0)

    @property
    def steps(self) -> int:
        """Steps of the last statement, rounded down to STEPS_PER_TICK."""
        return (self._ticks_allowed - length_hint(self._ticks_left)) * STEPS_PER_TICK

    @property
    def out_of_steps(self) -> bool:
        """Whether the last statement was stopped."""
        return length_hint(self._stops_left) < _MAX_TICKS

    def execute(self, sql: str, max_steps: int, limits: Limits) -> tuple[list[Row], tuple[str, ...]]:
        """All rows and the names of the columns. Raises sqlite3's exceptions, or _TooLarge beyond the limits."""
        try:
            return self._execute(sql, max_steps, limits)
        except sqlite3.OperationalError as error:
            if "Could not decode" not in str(error):
                raise
        # Bytes that are not UTF-8 become lone surrogates, so that different texts stay different.
        self.connection.text_factory = lambda text: text.decode(errors="surrogateescape")
        try:
            return self._execute(sql, max_steps, limits)
        finally:
            self.connection.text_factory = str

    def compiles(self, sql: str) -> bool:
        """Whether SQLite can compile the statement: its grammar, tables and columns are valid."""
        self._begin(STEPS_PER_TICK)
        try:
            self.connection.execute(f"EXPLAIN {sql}").close()
        except (*backends.ERRORS, sqlite3.Warning):
            return False
        return True

    def _open(self, path: str) -> Any:
        return open_readonly(path, self._backend)

    def _execute(self, sql: str, max_steps: int, limits: Limits) -> tuple[list[Row], tuple[str, ...]]:
        self._begin(max_steps)
        cursor = self.connection.execute(sql)
        try:
            if cursor.description is None and self.needs_statement:
                raise ValueError("there is no statement")
            return _fetch(cursor, limits), tuple(column[0] for column in cursor.description or ())
        finally:
            cursor.close()

    def _begin(self, max_steps: int) -> None:
        self.denied = ""  # why the authorizer refused the statement
        self.wants_clock = False  # True once the statement is refused because it calls a date function
        self._ticks_allowed = min(int(max_steps) // STEPS_PER_TICK, _MAX_TICKS)
        self._ticks_left, self._stops_left = repeat(False, self._ticks_allowed), repeat(True, _MAX_TICKS)
        # SQLite calls the handler at each tick and stops when it gets True. These iterators are written in C and cost
        # nothing that can be measured; a Python function would cost 3 % of the time.
        self.connection.set_progress_handler(chain(self._ticks_left, self._stops_left).__next__, STEPS_PER_TICK)

    def _harden(self) -> None:
        connection = self.connection
        temporary = "FILE" if self.quick else "MEMORY"
        for pragma in ("query_only=ON", f"temp_store={temporary}", "cell_size_check=ON", "mmap_size=0"):
            connection.execute(f"PRAGMA {pragma}").close()
        for name in TABLE_FUNCTIONS:
            connection.execute(f"SELECT 1 FROM {name}('[]')").close()
        self._connect_modules()
        for limit, value in LIMITS.items():
            connection.setlimit(limit, min(value, connection.getlimit(limit)))
        if self._clocked:
            clock.stop_clock(connection, self._backend)
        connection.set_authorizer(self.authorize)

    def _connect_modules(self) -> None:
        """Connects the virtual tables of SQLite's own modules: to connect one prepares writes, which are denied later.

        A table that cannot be connected is an error of the statements that read it.
        """
        for name, module in self._modules.items():
            if module in modules.SHADOW_SUFFIXES:
                quoted = name.replace('"', '""')
                with suppress(*backends.ERRORS):
                    self.connection.execute(f'SELECT 1 FROM "{quoted}" LIMIT 0').close()

    def authorize(self, action: int, first: str | None, second: str | None, *rest: str | None) -> int:
        """SQLITE_OK or SQLITE_DENY for one action of a statement. SQLite calls this while it compiles."""
        if action == sqlite3.SQLITE_FUNCTION:
            return self._authorize_function((second or "").lower())
        if action in ACTIONS_ALLOWED and not (action == sqlite3.SQLITE_READ and self._is_hidden(first)):
            return sqlite3.SQLITE_OK
        # fts5 looks for changes of the file. Only SQLite itself names the schema here: the pragma_ table does not.
        if action == sqlite3.SQLITE_PRAGMA and first == "data_version" and rest[:1] == ("main",) and self.used_module:
            return sqlite3.SQLITE_OK
        self.denied = f"only reading is allowed here, not action {action} on {first or second}"
        return sqlite3.SQLITE_DENY

    def _is_hidden(self, table: str | None) -> bool:
        if self._modules and table in self._modules:
            self.used_module = True
            return self._modules[table] not in modules.SHADOW_SUFFIXES
        return table in HIDDEN_TABLES

    def _authorize_function(self, name: str) -> int:
        if name in FUNCTIONS or (self._clocked and name in clock.FUNCTIONS):
            return sqlite3.SQLITE_OK
        self.wants_clock |= name in clock.FUNCTIONS
        self.denied = f"the function {name} is not allowed here"
        return sqlite3.SQLITE_DENY


SessionFactory = Callable[[str, str], Session]  # (database, backend) → a session for one statement


class Sandbox:
    """Runs statements one after another. No statement changes the result of a later one."""

    def __init__(self, limits: Limits, backend: str = "sqlite3"):
        self.limits, self._backend = limits, backend
        self.exhausted = False  # memory ran out once, so the process should be replaced
        self._sessions: OrderedDict[tuple[str, bool, bool], Session] = OrderedDict()
        with closing(backends.connect(backend, ":memory:")) as connection:
            connection.execute(f"PRAGMA hard_heap_limit={limits.heap_bytes}")

    @property
    def sessions(self) -> list[Session]:
        """The sessions that are open, the least recently used first."""
        return list(self._sessions.values())

    def query(self, database: str, sql: str, max_steps: int, session_factory: SessionFactory | None = None) -> Result:
        """Runs one statement. Errors of the SQL and of the database file are results; they are never raised.

        session_factory: opens a special session for this statement only.

        If memory runs out, the statement runs again after all connections are closed, so that its result does not
        depend on earlier statements.
        """
        for _ in range(2):
            try:
                return self._query(database, sql, max_steps, session_factory)
            except MemoryError:
                self.exhausted = True
                self.close()
        return _failed(OutcomeKind.RUNTIME_ERROR, f"out of memory: SQLite may take {self.limits.heap_bytes} bytes")

    def close(self) -> None:
        """Closes every connection."""
        while self._sessions:
            self._sessions.popitem()[1].connection.close()

    def _query(self, database: str, sql: str, max_steps: int, session_factory: SessionFactory | None) -> Result:
        word = backends.first_word(sql)
        if word in STATEMENTS_DENIED and session_factory is None:
            return _failed(OutcomeKind.DENIED, f"{word.upper()} is not allowed here; only SELECT, WITH and VALUES are")
        try:
            if session_factory is None:
                return self._run_pooled(database, sql, max_steps)
            session = session_factory(database, self._backend)
            with closing(session.connection):
                return self._run(session, sql, max_steps)
        except DatabaseError as error:
            return _failed(OutcomeKind.RUNTIME_ERROR, str(error))

    def _run_pooled(self, database: str, sql: str, max_steps: int) -> Result:
        """Tries the fastest session first; retries on a slower one if the statement needs a clock or more memory."""
        clocked, quick = False, True
        while True:
            session = self._session(database, clocked, quick)
            result = self._run(session, sql, max_steps)
            if session.used_module:  # so that the steps of a statement do not depend on earlier ones
                self._sessions.pop((database, clocked, quick)).connection.close()
            needs_memory = quick and result.message in _FILE_ERRORS
            needs_clock = session.wants_clock and not clocked
            if not needs_memory and not needs_clock:
                return result
            clocked, quick = clocked or session.wants_clock, quick and not needs_memory

    def _run(self, session: Session, sql: str, max_steps: int) -> Result:
        start = time.perf_counter()
        rows: list[Row] = []
        columns: tuple[str, ...] = ()
        failure: Exception | None = None
        try:
            with _no_new_files():
                rows, columns = session.execute(sql, max_steps, self.limits)
        except (sqlite3.Error, sqlite3.Warning, ValueError, _TooLarge) as error:
            failure = error
        milliseconds = (time.perf_counter() - start) * 1000
        steps = session.steps
        kind, message = _classify(failure, session, sql) if failure else (OutcomeKind.OK, "")
        return Result(kind, rows, columns, steps, milliseconds, message)

    def _session(self, database: str, clocked: bool, quick: bool) -> Session:
        key = database, clocked, quick
        session = self._sessions.pop(key, None) or Session(database, clocked, self._backend, quick)
        self._sessions[key] = session
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)[1].connection.close()
        return session


@contextmanager
def _no_new_files() -> Iterator[None]:
    """Inside this context the process cannot open any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _fetch(cursor: Any, limits: Limits) -> list[Row]:
    rows: list[Row] = []
    size = 0
    while chunk := cursor.fetchmany(FETCH_ROWS):
        rows += chunk
        size += sum(len(cell) if cell.__class__ in _SIZED else 8 for cell in chain.from_iterable(chunk))
        if len(rows) > limits.max_rows:
            raise _TooLarge(f"more than {limits.max_rows} rows")
        if max(size, 8 * len(rows) * len(rows[0])) > limits.max_bytes:  # empty texts take memory too
            raise _TooLarge(f"more than {limits.max_bytes} bytes")
    return rows


def _classify(error: Exception, session: Session, sql: str) -> tuple[OutcomeKind, str]:
    """The kind of outcome for an exception, and its message."""
    message = backends.message_of(error)
    if isinstance(error, _TooLarge):
        return OutcomeKind.TOO_LARGE, message
    if session.denied:
        return OutcomeKind.DENIED, session.denied
    if session.out_of_steps:
        return OutcomeKind.TIMEOUT, f"stopped after {session.steps} steps"
    if "one statement at a time" in message:
        return OutcomeKind.DENIED, "only one statement is allowed"
    if isinstance(error, UnicodeDecodeError):
        return OutcomeKind.RUNTIME_ERROR, f"a name in the database, or a message about it, is not UTF-8: {message}"
    if "Could not decode" in message:  # APSW's text or name that is not UTF-8
        return OutcomeKind.RUNTIME_ERROR, message
    if isinstance(error, (ValueError, sqlite3.ProgrammingError)) or "query string is too large" in message:
        return OutcomeKind.SYNTAX_ERROR, message
    return (OutcomeKind.RUNTIME_ERROR if session.compiles(sql) else OutcomeKind.SYNTAX_ERROR), message


def _failed(kind: OutcomeKind, message: str) -> Result:
    return Result(kind, [], (), 0, 0.0, message)
