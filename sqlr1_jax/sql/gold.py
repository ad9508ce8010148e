"""Results of gold queries, kept so that a gold runs once for all the predictions it judges."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlr1_jax.sql.sandbox import Result


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


def _cells(result: Result) -> int:
    return 1 + len(result.rows) * len(result.columns)
