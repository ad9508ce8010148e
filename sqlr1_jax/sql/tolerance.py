"""Which rows of two results match within a tolerance for numbers: the rule `strict`.

Closeness is not transitive: 1 may be close to 1.0000008 and that to 1.0000016. So rows match as in a bipartite graph,
where a search for augmenting paths takes time quadratic in the rows. It is the last resort:

1. Rows in sorted order nearly always match one by one.
2. The values of a column fall into clusters: values of different clusters are not close. So only rows with the same
   clusters can match, and they all do if the values of each of these clusters are close to each other.
3. What is left is searched, within a budget.
"""

from __future__ import annotations

import functools
import itertools
import marshal
import math
from collections.abc import Iterator, Sequence
from typing import Any

from sqlr1_jax.sql.cells import Row

RELATIVE_TOLERANCE = 1e-6
SEARCH_BUDGET = (
    1_000_000  # pairs of rows tested by the searches of one comparison; beyond it, results count as different
)

Numbers = tuple[int | float, ...]

close_numbers = functools.partial(math.isclose, rel_tol=RELATIVE_TOLERANCE)


def is_close(row: Row, other: Row) -> bool:
    """Whether two rows are equal but for numbers within the tolerance."""
    return len(row) == len(other) and all(map(_close_cells, row, other))


def match_within_tolerance(gold: Sequence[Row], rows: Sequence[Row]) -> bool:
    """Whether the rows pair one to one within the tolerance, in any order."""
    groups: dict[bytes, tuple[list[Numbers], list[Numbers]]] = {}
    for side, result in enumerate((gold, rows)):
        for row in result:
            others = marshal.dumps([_is_number(cell) or (cell,) for cell in row], 2)
            groups.setdefault(others, ([], []))[side].append(tuple([cell for cell in row if _is_number(cell)]))
    budget = itertools.repeat(None, SEARCH_BUDGET)
    return all(_match_numbers(sorted(a), sorted(b), budget) for a, b in groups.values())


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float))


def _close_cells(cell: Any, other: Any) -> bool:
    if _is_number(cell) and _is_number(other):
        return close_numbers(cell, other)
    return bool(cell == other)


def _close_rows(row: Numbers, other: Numbers) -> bool:
    return all(map(close_numbers, row, other))


def _match_numbers(gold: list[Numbers], rows: list[Numbers], budget: Iterator[None]) -> bool:
    """Whether sorted rows of numbers pair one to one within the tolerance.

    budget: has an item for each pair of rows that may be tested.
    """
    if len(gold) != len(rows):
        return False
    if all(map(_close_rows, gold, rows)):
        return True
    columns = list(zip(zip(*gold, strict=True), zip(*rows, strict=True), strict=True))
    if not all(all(map(close_numbers, sorted(a), sorted(b))) for a, b in columns):
        return False
    clusters = [_Clusters({*a, *b}) for a, b in columns]
    groups: dict[Row, tuple[list[Numbers], list[Numbers]]] = {}
    for side, result in enumerate((gold, rows)):
        for row in result:
            key = tuple([column.ids[number] for column, number in zip(clusters, row, strict=True)])
            groups.setdefault(key, ([], []))[side].append(row)
    loose = [key for key in groups if any(map(_Clusters.is_loose, clusters, key))]
    return all(len(a) == len(b) for a, b in groups.values()) and all(_match_group(*groups[k], budget) for k in loose)


def _match_group(gold: list[Numbers], rows: list[Numbers], budget: Iterator[None]) -> bool:
    """Whether as many rows of the same clusters, some of which are not close, pair one to one."""
    return all(map(_close_rows, gold, rows)) or _Matching(gold, rows, budget).is_perfect()


class _Clusters:
    """The values of a column, split wherever neighbors in sorted order are not close."""

    def __init__(self, values: set[int | float]) -> None:
        ordered = sorted(values)
        # Twice the tolerance, so that rounding in isclose never splits what is close.
        splits = (not math.isclose(a, b, rel_tol=2 * RELATIVE_TOLERANCE) for a, b in itertools.pairwise(ordered))
        self.ids = dict(zip(ordered, itertools.accumulate(splits, initial=0), strict=True))
        first: dict[int, int | float] = {}
        for value, cluster in self.ids.items():
            first.setdefault(cluster, value)
        last = {cluster: value for value, cluster in self.ids.items()}
        self._loose = {cluster for cluster in last if not close_numbers(first[cluster], last[cluster])}

    def is_loose(self, cluster: int) -> bool:
        """Whether some values of a cluster are not close to each other."""
        return cluster in self._loose


class _Matching:
    """Pairs close rows by augmenting paths."""

    def __init__(self, gold: list[Numbers], rows: list[Numbers], budget: Iterator[None]) -> None:
        """budget: as in _match_numbers."""
        self._gold, self._rows, self._budget = gold, rows, budget
        self._partner: dict[int, int] = {}  # of a row of `rows`, by index
        self._previous: dict[int, int] = {}  # of a row of `gold`

    def is_perfect(self) -> bool:
        """Whether all rows can be paired; False too if the search exceeds its budget."""
        return all(map(self._augment, range(len(self._gold))))

    def _augment(self, start: int) -> bool:
        """Searches breadth-first for an augmenting path from gold row `start`, and applies it."""
        came_from: dict[int, int] = {}
        queue = [start]
        for i in queue:
            for j in self._close_to(i):
                if j in came_from:
                    continue
                came_from[j] = i
                if j not in self._partner:
                    self._apply(start, j, came_from)
                    return True
                queue.append(self._partner[j])
        return False

    def _close_to(self, i: int) -> Iterator[int]:
        """Indices of the rows that are close to gold row `i`; none once the budget is spent."""
        pairs = zip(enumerate(self._rows), self._budget, strict=False)
        return (j for (j, row), _ in pairs if _close_rows(self._gold[i], row))

    def _apply(self, start: int, end: int, came_from: dict[int, int]) -> None:
        """Each gold row on the path, from its end, gets its next partner."""
        j = end
        while True:
            i = came_from[j]
            self._partner[j] = i
            j, self._previous[i] = self._previous.get(i, -1), j
            if i == start:
                return
