"""The connection that the official evaluators would have, but for writing: what `score --compat` runs on.

They open a file with sqlite3's defaults. So here a text without a statement has no rows, EXPLAIN, BEGIN and harmless
pragmas run, the clock goes, and a database that is missing has no tables. What could write, or reach beyond the
connection, is denied as ever.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from typing import Any

from sqlr1_jax.sql import backends, clock, official
from sqlr1_jax.sql.sandbox import Limits, Manner, Row, Session

_FUNCTIONS = """
random randomblob last_insert_rowid changes total_changes sqlite_version sqlite_source_id
"""
_PRAGMAS = """
foreign_keys database_list table_list table_info table_xinfo index_list index_info index_xinfo foreign_key_list
"""
FUNCTIONS = clock.FUNCTIONS | frozenset(_FUNCTIONS.split())
PRAGMAS = frozenset(_PRAGMAS.split())


class OfficialSession(Session):
    """For one statement; `drops_bytes` says what becomes of text that is not UTF-8: cut, or an error."""

    needs_statement = False

    def __init__(self, path: str, backend: str, drops_bytes: bool):
        """Raises DatabaseError when the file is there and cannot be read."""
        super().__init__(path, clocked=False, backend=backend)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)
        if drops_bytes:
            self.connection.text_factory = _decode

    def execute(self, sql: str, max_steps: int, limits: Limits) -> tuple[list[Row], tuple[str, ...]]:
        """All rows and the columns' names; none of either for a comment."""
        return self._execute(sql, max_steps, limits)

    def _open(self, path: str) -> Any:
        if os.path.exists(path) and os.path.getsize(path):
            return super()._open(path)
        return backends.connect(self._backend, ":memory:")

    def _authorize(self, action: int, first: str | None, second: str | None, *rest: str | None) -> int:
        harmless = (
            (action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in PRAGMAS)
            or (action == sqlite3.SQLITE_ATTACH and first == ":memory:")
            or action == sqlite3.SQLITE_TRANSACTION
        )
        return sqlite3.SQLITE_OK if harmless else super()._authorize(action, first, second, *rest)

    def _authorize_function(self, name: str) -> int:
        return sqlite3.SQLITE_OK if name in FUNCTIONS else super()._authorize_function(name)


def _decode(text: bytes) -> str:
    return text.decode(errors="ignore")


_MANNERS: dict[bool, Manner] = {
    drops_bytes: functools.partial(OfficialSession, drops_bytes=drops_bytes) for drops_bytes in (True, False)
}
MANNERS = {name: _MANNERS[rule.drops_bytes] for name, rule in official.RULES.items()}
