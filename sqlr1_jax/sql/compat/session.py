"""The connection of the official evaluators, except that nothing can be written. `score --compat` runs on it.

The official evaluators open a file with sqlite3's defaults. Therefore these sessions differ from the sandbox's own: a
text without a statement has an empty result; EXPLAIN, BEGIN and harmless pragmas run; the clock is the real one; and a
missing database has no tables. Everything that could write or reach beyond the connection is denied.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from typing import Any

from sqlr1_jax.sql import backends, clock
from sqlr1_jax.sql.compare import Row
from sqlr1_jax.sql.compat import official
from sqlr1_jax.sql.database import open_readonly
from sqlr1_jax.sql.sandbox import Limits, Session, SessionFactory

_FUNCTIONS = """
random randomblob last_insert_rowid changes total_changes sqlite_version sqlite_source_id
"""
_PRAGMAS = """
foreign_keys database_list table_list table_info table_xinfo index_list index_info index_xinfo foreign_key_list
"""
FUNCTIONS = clock.FUNCTIONS | frozenset(_FUNCTIONS.split())
PRAGMAS = frozenset(_PRAGMAS.split())


class OfficialSession(Session):
    """A session for one statement."""

    needs_statement = False

    def __init__(self, path: str, backend: str, ignore_bad_bytes: bool):
        """ignore_bad_bytes: drop the bytes of text that are not UTF-8; otherwise such text is an error.

        Raises DatabaseError if the file exists but cannot be read.
        """
        super().__init__(path, clocked=False, backend=backend)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)
        if ignore_bad_bytes:
            self.connection.text_factory = lambda text: text.decode(errors="ignore")

    def execute(self, sql: str, max_steps: int, limits: Limits) -> tuple[list[Row], tuple[str, ...]]:
        """All rows and the names of the columns; both are empty for a text without a statement."""
        return self._execute(sql, max_steps, limits)

    def authorize(self, action: int, first: str | None, second: str | None, *rest: str | None) -> int:
        """Also allows a list of pragmas, in-memory databases and transactions."""
        harmless = (
            (action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in PRAGMAS)
            or (action == sqlite3.SQLITE_ATTACH and first == ":memory:")
            or action == sqlite3.SQLITE_TRANSACTION
        )
        return sqlite3.SQLITE_OK if harmless else super().authorize(action, first, second, *rest)

    def _authorize_function(self, name: str) -> int:
        return sqlite3.SQLITE_OK if name in FUNCTIONS else super()._authorize_function(name)

    def _open(self, path: str) -> Any:
        if os.path.exists(path) and os.path.getsize(path):
            return open_readonly(path, self._backend, whole=True)
        return backends.connect(self._backend, ":memory:")


# The worker caches gold results by factory, so rules that treat invalid UTF-8 the same way share a factory.
_FACTORIES: dict[bool, SessionFactory] = {
    ignore: functools.partial(OfficialSession, ignore_bad_bytes=ignore) for ignore in (True, False)
}
SESSION_FACTORIES = {name: _FACTORIES[rule.ignores_bad_bytes] for name, rule in official.RULES.items()}
