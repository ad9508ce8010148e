"""One hostile statement against one database, within limits: the layer that touches SQLite.

Runs inside a worker process and nowhere else, since the heap limit holds for the process. Time is counted
in SQLite's virtual-machine steps, so that an answer is the same on every host and under any load. The clock
stands still and there is no random(): a query's result is a function of the file, the SQL and SQLite's
version.
"""

from __future__ import annotations

import resource
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, repeat
from operator import length_hint
from typing import Any, NamedTuple

from sqlr1_jax.sql import backends, clock
from sqlr1_jax.sql.database import DatabaseError, open_readonly
from sqlr1_jax.sql.outcome import OutcomeKind

STEPS_PER_TICK = 1000  # resolution of the step count: about 10 µs of SQLite at work
MAX_SESSIONS = 32  # connections kept open
ROWS_AT_A_TIME = 64  # fetched between two looks at the caps

_STOPS = 2**31  # ticks: more than SQLite asks for once it was told to stop, and than any statement may take
_SIZED = (str, bytes)
_WANTS_FILE = ("unable to open database file", "disk I/O error")  # what SQLite says where it may not open one

LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,  # bytes of a value or row: one step works on no more than that
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
FUNCTIONS = frozenset(_FUNCTIONS.split())
STATEMENTS_DENIED = frozenset(_STATEMENTS_DENIED.split())
HIDDEN_TABLES = frozenset(("sqlite_stmt", "dbstat", "sqlite_dbpage", "bytecode", "tables_used"))  # state, not data
# Declared before the authorizer is there, which refuses to declare any other.
TABLE_FUNCTIONS = ("json_each", "json_tree")
ACTIONS_ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE))


Row = tuple[Any, ...]


class Limits(NamedTuple):
    """What a statement may use; the fields of config.Execute that concern a worker."""

    max_steps: int
    max_rows: int
    max_bytes: int  # of text and blobs, and 8 a number, in a result
    heap_bytes: int  # of SQLite in this process


class Result(NamedTuple):
    """What became of one statement: kind ok with all rows, else why there are none."""

    kind: OutcomeKind
    rows: list[Row]
    columns: tuple[str, ...]
    steps: int  # virtual-machine steps, rounded down to STEPS_PER_TICK
    milliseconds: float
    message: str = ""


class _TooLarge(Exception):
    pass


class Session:
    """One hardened connection; `clocked` ones tell the (fixed) time, at the price of slower date functions.

    Where all temporary data stay in memory SQLite sorts with an allocation a row, which costs a third. `quick` ones
    sort in one buffer, past whose 2 MB they ask for a file, which they don't get: such a statement needs another.
    """

    needs_statement = True  # a text without any, a comment say, is an error

    def __init__(self, path: str, clocked: bool, backend: str = "sqlite3", quick: bool = False):
        """backend: of sql/backends.py. Raises DatabaseError when the file cannot be read."""
        self._clocked, self._backend, self._quick = clocked, backend, quick
        self.connection = self._open(path)
        self._harden()
        self._begin(0)

    @property
    def steps(self) -> int:
        """Steps of the last statement, rounded down to STEPS_PER_TICK."""
        return (self._ticks_allowed - length_hint(self._go)) * STEPS_PER_TICK

    @property
    def out_of_steps(self) -> bool:
        """Whether the last statement was stopped."""
        return length_hint(self._stop) < _STOPS

    def execute(self, sql: str, max_steps: int, limits: Limits) -> tuple[list[Row], tuple[str, ...]]:
        """All rows and the columns' names. Raises what SQLite raises, or _TooLarge past the caps."""
        try:
            return self._execute(sql, max_steps, limits)
        except sqlite3.OperationalError as error:
            if "Could not decode" not in str(error):
                raise
        self.connection.text_factory = _decode
        try:
            return self._execute(sql, max_steps, limits)
        finally:
            self.connection.text_factory = str

    def compiles(self, sql: str) -> bool:
        """Whether SQLite understands the statement, tables, columns and all."""
        self._begin(STEPS_PER_TICK)
        try:
            self.connection.execute(f"EXPLAIN {sql}").close()
        except (sqlite3.Error, sqlite3.Warning):
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
        self.wants_clock = False  # it was refused for a date function
        self._ticks_allowed = min(int(max_steps) // STEPS_PER_TICK, _STOPS)
        self._go, self._stop = repeat(False, self._ticks_allowed), repeat(True, _STOPS)
        # Whether to stop, at each tick. A function of Python's own would cost SQLite 3 % of its time, this nothing.
        self.connection.set_progress_handler(chain(self._go, self._stop).__next__, STEPS_PER_TICK)

    def _harden(self) -> None:
        connection = self.connection
        temporary = "FILE" if self._quick else "MEMORY"
        for pragma in ("query_only=ON", f"temp_store={temporary}", "cell_size_check=ON", "mmap_size=0"):
            connection.execute(f"PRAGMA {pragma}").close()
        for name in TABLE_FUNCTIONS:
            connection.execute(f"SELECT 1 FROM {name}('[]')").close()
        for limit, value in LIMITS.items():
            connection.setlimit(limit, min(value, connection.getlimit(limit)))
        if self._clocked:
            clock.stop_clock(connection, self._backend)
        connection.set_authorizer(self._authorize)

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            return self._authorize_function((second or "").lower())
        if action in ACTIONS_ALLOWED and not (action == sqlite3.SQLITE_READ and first in HIDDEN_TABLES):
            return sqlite3.SQLITE_OK
        self.denied = f"only reading is allowed here, not action {action} on {first or second}"
        return sqlite3.SQLITE_DENY

    def _authorize_function(self, name: str) -> int:
        if name in FUNCTIONS or (self._clocked and name in clock.FUNCTIONS):
            return sqlite3.SQLITE_OK
        self.wants_clock |= name in clock.FUNCTIONS
        self.denied = f"the function {name} is not allowed here"
        return sqlite3.SQLITE_DENY


Manner = Callable[[str, str], Session]  # of a database and a backend


class Sandbox:
    """Runs statements one after another; none of them changes what a later one answers."""

    def __init__(self, limits: Limits, backend: str = "sqlite3"):
        self.limits, self._backend = limits, backend
        self.exhausted = False  # memory ran out once: the process should be replaced
        self._sessions: OrderedDict[tuple[str, bool, bool], Session] = OrderedDict()
        with closing(backends.connect(backend, ":memory:")) as connection:
            connection.execute(f"PRAGMA hard_heap_limit={limits.heap_bytes}")

    def query(self, database: str, sql: str, max_steps: int, manner: Manner | None = None) -> Result:
        """Runs one statement. Never raises for what SQL or a database file can do.

        manner: opens a connection of another kind, for this statement alone.
        When memory runs out, the statement runs again with all else closed, so that what ran before does
        not decide.
        """
        for _ in range(2):
            try:
                return self._query(database, sql, max_steps, manner)
            except MemoryError:
                self.exhausted = True
                self.close()
        return _failed(OutcomeKind.RUNTIME_ERROR, f"out of memory: SQLite may take {self.limits.heap_bytes} bytes")

    def close(self) -> None:
        """Closes every connection."""
        while self._sessions:
            self._sessions.popitem()[1].connection.close()

    def _query(self, database: str, sql: str, max_steps: int, manner: Manner | None) -> Result:
        word = backends.first_word(sql)
        if word in STATEMENTS_DENIED and manner is None:
            return _failed(OutcomeKind.DENIED, f"{word.upper()} is not allowed here; only SELECT, WITH and VALUES are")
        try:
            if manner is not None:
                return self._run_alone(manner(database, self._backend), sql, max_steps)
            return self._run_kept(database, sql, max_steps)
        except DatabaseError as error:
            return _failed(OutcomeKind.RUNTIME_ERROR, str(error))

    def _run_kept(self, database: str, sql: str, max_steps: int) -> Result:
        """Runs it on the cheapest connection that can, each kind of which is kept open."""
        clocked, quick = False, True
        while True:
            session = self._session(database, clocked, quick)
            result = self._run(session, sql, max_steps)
            wants_memory = quick and result.message in _WANTS_FILE
            if not wants_memory and not (session.wants_clock and not clocked):
                return result
            clocked, quick = clocked or session.wants_clock, quick and not wants_memory

    def _run_alone(self, session: Session, sql: str, max_steps: int) -> Result:
        try:
            return self._run(session, sql, max_steps)
        finally:
            session.connection.close()

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
    """The process can open none meanwhile, whatever SQLite wants it for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _fetch(cursor: Any, limits: Limits) -> list[Row]:
    rows: list[Row] = []
    size = 0
    while chunk := cursor.fetchmany(ROWS_AT_A_TIME):
        rows += chunk
        size += sum(len(cell) if cell.__class__ in _SIZED else 8 for cell in chain.from_iterable(chunk))
        if len(rows) > limits.max_rows:
            raise _TooLarge(f"more than {limits.max_rows} rows")
        if size > limits.max_bytes:
            raise _TooLarge(f"more than {limits.max_bytes} bytes")
    return rows


def _classify(error: Exception, session: Session, sql: str) -> tuple[OutcomeKind, str]:
    """The kind of outcome that an exception of sqlite3 stands for, and what to say of it."""
    message = str(error)
    if isinstance(error, _TooLarge):
        return OutcomeKind.TOO_LARGE, message
    if session.denied:
        return OutcomeKind.DENIED, session.denied
    if session.out_of_steps:
        return OutcomeKind.TIMEOUT, f"stopped after {session.steps} steps"
    if "one statement at a time" in message:
        return OutcomeKind.DENIED, "only one statement is allowed"
    if isinstance(error, (ValueError, sqlite3.ProgrammingError)) or "query string is too large" in message:
        return OutcomeKind.SYNTAX_ERROR, message
    return (OutcomeKind.RUNTIME_ERROR if session.compiles(sql) else OutcomeKind.SYNTAX_ERROR), message


def _failed(kind: OutcomeKind, message: str) -> Result:
    return Result(kind, [], (), 0, 0.0, message)


def _decode(text: bytes) -> str:
    """Keeps bytes that are not UTF-8 apart from each other, as lone surrogates."""
    return text.decode(errors="surrogateescape")
