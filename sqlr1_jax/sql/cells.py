"""Cells as keys of dicts: numbers stand for cells where Python's hashes cannot tell results' rows apart."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

Row = tuple[Any, ...]

SMALL_WORK = 10_000_000  # cells compared by a dict of rows that all have one hash, up to which that does not matter


def with_distinct_hashes(gold: Sequence[Row], rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
    """The two results, with numbers instead of cells if Python gives different rows the same hash.

    It gives -1 the hash of -2, '' that of 0 and 2.0**61 that of 1, so rows of such cells share a few hashes, and a dict
    of n such rows compares n² pairs. Equal cells get equal numbers, and numbers from 0 have distinct hashes.
    """
    if not _hashes_collide(gold) and not _hashes_collide(rows):
        return gold, rows
    numbers: dict[Hashable, int] = {}
    return [number_cells(row, numbers) for row in gold], [number_cells(row, numbers) for row in rows]


def number_cells(cells: Iterable[Hashable], numbers: dict[Hashable, int]) -> Row:
    """The number of each cell. Cells that have none get the next free numbers."""
    return tuple([numbers.setdefault(cell, len(numbers)) for cell in cells])


def _hashes_collide(rows: Sequence[Row]) -> bool:
    """Whether different rows have the same hash. False also if there are too few rows for that to matter."""
    if not rows or len(rows) ** 2 * len(rows[0]) <= SMALL_WORK:
        return False
    hashes = list(map(hash, rows))
    by_hash = dict(zip(hashes, rows, strict=True))
    return any(map(operator.ne, map(by_hash.__getitem__, hashes), rows))
