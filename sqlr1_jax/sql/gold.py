"""Results of gold queries, kept so that a gold runs once for all the predictions it judges."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.sql.sandbox import Result

KEPT_CHARACTERS = 2**18  # of a result's text; a longer one costs more to read back than most golds to run


class GoldStore:
    """The most recently used results by (database, SQL), within a number of cells; failures are results too."""

    def __init__(self, max_cells: int = 2_000_000):
        """max_cells: cells held in all; a result counts one more for itself."""
        self._max_cells = max_cells
        self._cells = 0
        self._results: OrderedDict[tuple[str, str], Result] = OrderedDict()

    def get(self, database: str, sql: str, execute: Callable[[], Result]) -> Result:
        """The stored result, else what `execute` returns, which is then stored."""
        key = database, sql
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key]
        result = self._results[key] = execute()
        self._cells += _cells(result)
        while self._cells > self._max_cells:
            _, dropped = self._results.popitem(last=False)
            self._cells -= _cells(dropped)
        return result


def encode(result: Result) -> str | None:
    """A result as text, exact to the last bit; None where it is too long, or may not be the data's doing."""
    if not result.milliseconds or result.kind == OutcomeKind.RUNTIME_ERROR or _length(result) > KEPT_CHARACTERS:
        return None
    text = json.dumps(result, separators=(",", ":"), default=lambda blob: {"blob": blob.hex()})
    return text if len(text) <= KEPT_CHARACTERS else None


def decode(text: str) -> Result:
    """The inverse of `encode`. Raises ValueError, KeyError or TypeError for a text that is none of its."""
    kind, rows, columns, *rest = json.loads(text, object_hook=_blob)
    return Result(OutcomeKind(kind), [tuple(row) for row in rows], tuple(columns), *rest)


def _length(result: Result) -> int:
    """A lower bound of its text's, without making it."""
    cells = 2 * len(result.rows) * len(result.columns)
    sized = (len(cell) for row in result.rows for cell in row if isinstance(cell, (str, bytes)))
    return cells if cells > KEPT_CHARACTERS else cells + sum(sized)


def _blob(said: dict[str, Any]) -> bytes:
    return bytes.fromhex(said["blob"])


def _cells(result: Result) -> int:
    return 1 + len(result.rows) * len(result.columns)
