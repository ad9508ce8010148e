"""The result of one SQL statement: its text form, and the results that a worker keeps in memory."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from sqlr1_jax.sql.compare import Row
from sqlr1_jax.sql.outcome import OutcomeKind

MAX_ENCODED_CHARACTERS = 2**18  # reading a longer text costs more than running most queries again


class Result(NamedTuple):
    """What running one statement gave: all its rows if the kind is OK, else none."""

    kind: OutcomeKind
    rows: list[Row]
    columns: tuple[str, ...]
    steps: int  # SQLite virtual-machine steps, rounded down to sandbox.STEPS_PER_TICK
    milliseconds: float
    message: str = ""  # why there are no rows


class RecentResults:
    """The most recently used results by (database, SQL), up to a number of cells. Failed queries count as results."""

    def __init__(self, max_cells: int = 2_000_000):
        """max_cells: the largest number of cells of all stored results together.

        Each result counts one extra cell, because empty and failed results take memory too.
        """
        self._max_cells = max_cells
        self._cells = 0
        self._results: OrderedDict[tuple[str, str], Result] = OrderedDict()

    def get(self, database: str, sql: str, execute: Callable[[], Result]) -> Result:
        """The stored result; if there is none, calls `execute` and stores what it returns."""
        key = database, sql
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key]
        result = self._results[key] = execute()
        self._cells += _count_cells(result)
        while self._cells > self._max_cells:
            _, dropped = self._results.popitem(last=False)
            self._cells -= _count_cells(dropped)
        return result


def encode(result: Result) -> str | None:
    """A result as text that `decode` reads back exactly.

    None for a result that must not be cached: it is too long, or its failure may not be due to SQL and data alone
    (runtime errors, and statements that were refused before they ran).
    """
    if not result.milliseconds or result.kind == OutcomeKind.RUNTIME_ERROR:
        return None
    # A lower bound of the text's length, cheaper than the text itself.
    characters = 2 * len(result.rows) * len(result.columns)
    if characters <= MAX_ENCODED_CHARACTERS:
        characters += sum(len(cell) for row in result.rows for cell in row if isinstance(cell, (str, bytes)))
    if characters > MAX_ENCODED_CHARACTERS:
        return None
    text = json.dumps(result, separators=(",", ":"), default=lambda blob: {"blob": blob.hex()})
    return text if len(text) <= MAX_ENCODED_CHARACTERS else None


def decode(text: str) -> Result:
    """The result that `encode` wrote. Raises ValueError, KeyError or TypeError for any other text."""
    kind, rows, columns, *others = json.loads(text, object_hook=lambda fields: bytes.fromhex(fields["blob"]))
    return Result(OutcomeKind(kind), [tuple(row) for row in rows], tuple(columns), *others)


def _count_cells(result: Result) -> int:
    return 1 + len(result.rows) * len(result.columns)
