"""The rules that compare a predicted result with the gold result.

Cells compare as Python values: 1 equals 1.0, 1 differs from '1', NULL equals NULL. Neither query's text is changed; in
particular, DISTINCT is kept. Pure functions of rows. docs/method.md, section 11, defines the rules.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import marshal
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlr1_jax.sql.column_order import Row, equal_under_column_order

Rows = Sequence[Row]

RELATIVE_TOLERANCE = 1e-6  # tolerance for numbers in rule strict
WIDE_ROW = 16  # columns above which a set finds a cell faster than the row itself
CELLS_PER_PART = 1_000_000  # cells of two results that are counted at once; a count of a cell takes about 100 bytes

# Comments and quoted text: the parts of SQL text inside which no other token begins.
OPAQUE = r"""--[^\n]*|/\*.*?(?:\*/|\Z)|'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]"""
_TOKEN = re.compile(rf"{OPAQUE}|[\w$]+|[()]", re.DOTALL)


def compare(rule: str, gold_rows: Rows, rows: Rows, ordered: bool) -> bool | float:
    """Compares a predicted result with the gold result by a named rule.

    Args:
        rule: spider, bird or strict, which return a bool, or soft_f1, which returns 0 to 1.
        gold_rows: all rows of the gold result.
        rows: all rows of the predicted result.
        ordered: whether the gold query orders its rows at top level. spider and strict then compare row order.

    Raises:
        ValueError: the rule is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"There is no comparison rule {rule!r}; the rules are {', '.join(RULES)}.")
    return RULES[rule](list(gold_rows), list(rows), ordered)


def spider(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """Test-suite accuracy: the rows are equal as multisets, or as lists if `ordered`, under some order of the columns.

    Two empty results are equal. sql/column_order.py searches the column order; the official code tries all n^n.
    """
    if len(gold) != len(rows):
        return False
    if gold == rows:
        return True
    if len(gold[0]) != len(rows[0]):
        return False
    if ordered:
        return Counter(zip(*gold, strict=True)) == Counter(zip(*rows, strict=True))
    gold_counts, counts = Counter(gold), Counter(rows)
    return gold_counts == counts or equal_under_column_order(gold_counts, counts)


def bird(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """BIRD's execution accuracy: the rows are equal as sets. Column order matters, row order and duplicates do not."""
    del ordered
    return gold == rows or set(gold) == set(rows)


def strict(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """Column order and duplicates matter, and row order if `ordered`. Numbers match within RELATIVE_TOLERANCE."""
    if len(gold) != len(rows):
        return False
    return gold == rows or (all(map(_close, gold, rows)) if ordered else _match_close(gold, rows))


def soft_f1(gold: list[Row], rows: list[Row], ordered: bool) -> float:
    """BIRD mini-dev's Soft-F1, 0 to 1: compares the cells of the i-th distinct rows of both results."""
    del ordered
    gold, rows = list(dict.fromkeys(gold)), list(dict.fromkeys(rows))
    if not gold and not rows:
        return 1.0
    shared = extra = missing = 0.0
    for gold_row, row in zip(gold, rows, strict=False):
        hits, gold_hits = _count_hits(row, gold_row), _count_hits(gold_row, row)
        shared += hits / len(gold_row)
        extra += (len(row) - hits) / len(gold_row)
        missing += (len(gold_row) - gold_hits) / len(gold_row)
    missing += max(0, len(gold) - len(rows))
    extra += max(0, len(rows) - len(gold))
    return 2 * shared / (2 * shared + extra + missing) if shared else 0.0


def _count_hits(row: Row, other: Row) -> int:
    """How many cells of a row are in another one."""
    cells = set(other) if len(other) > WIDE_ROW else other
    return sum(cell in cells for cell in row)


def cell_overlap(gold: Rows, rows: Rows) -> float:
    """F1 of the two results' cells as multisets, 0 to 1, regardless of their rows and columns."""
    if gold == rows:
        return 1.0
    total = sum(len(result) * len(result[0]) for result in (gold, rows) if result)
    if not total:
        return 1.0
    shared = 0
    if total > CELLS_PER_PART and gold and rows:  # columns that occur in both need no counting
        gold_columns, columns = (Counter(zip(*result, strict=True)) for result in (gold, rows))
        shared = len(gold) * (gold_columns & columns).total()
        gold, rows = list((gold_columns - columns).elements()), list((columns - gold_columns).elements())
    num_parts = 1 + total // CELLS_PER_PART
    parts = zip(_split_cells(gold, num_parts), _split_cells(rows, num_parts), strict=True)
    shared += sum((Counter(gold_cells) & Counter(cells)).total() for gold_cells, cells in parts)
    return 2 * shared / total


def _split_cells(rows: Rows, num_parts: int) -> Sequence[Iterable[Any]]:
    """The cells of all rows, split by their hash, so that only one part of the distinct cells is counted at a time."""
    if num_parts == 1:
        return [itertools.chain.from_iterable(rows)]
    parts: list[list[Any]] = [[] for _ in range(num_parts)]
    for row in rows:
        for cell in row:
            parts[hash(cell) % num_parts].append(cell)
    return parts


RULES: dict[str, Callable[[list[Row], list[Row], bool], bool | float]] = {
    "spider": spider,
    "bird": bird,
    "strict": strict,
    "soft_f1": soft_f1,
}


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float))


def _close(row: Row, other: Row) -> bool:
    return len(row) == len(other) and all(map(_close_cells, row, other))


def _close_cells(cell: Any, other: Any) -> bool:
    if _is_number(cell) and _is_number(other):
        return cell == other or math.isclose(cell, other, rel_tol=RELATIVE_TOLERANCE)
    return bool(cell == other)


def _match_close(gold: list[Row], rows: list[Row]) -> bool:
    """Whether the rows pair one to one within the tolerance, in any order."""
    groups: dict[Row, tuple[list[Row], list[Row]]] = {}
    for side, result in enumerate((gold, rows)):
        for row in result:
            key = tuple(_is_number(cell) or (cell,) for cell in row)
            groups.setdefault(key, ([], []))[side].append(tuple(cell for cell in row if _is_number(cell)))
    return all(_pair(sorted(a), sorted(b)) for a, b in groups.values())


def _pair(gold: list[Row], rows: list[Row]) -> bool:
    """Whether rows of numbers have a perfect matching of close rows.

    Sorted order is nearly always one; otherwise augmenting paths decide.
    """
    if len(gold) != len(rows):
        return False
    if all(map(_close, gold, rows)):
        return True
    columns = zip(map(sorted, zip(*gold, strict=True)), map(sorted, zip(*rows, strict=True)), strict=True)
    if not all(_close(tuple(a), tuple(b)) for a, b in columns):
        return False
    edges = [_close_rows(gold_row, rows) for gold_row in gold]
    partner: dict[int, int] = {}
    return all(_augment(i, edges, partner) for i in range(len(gold)))


def _close_rows(row: Row, rows: list[Row]) -> list[int]:
    """Indices of those rows that are close to `row`; `rows` is sorted, so the first number narrows the search."""
    reach = 2 * RELATIVE_TOLERANCE * abs(row[0])
    first = bisect.bisect_left(rows, row[0] - reach, key=lambda other: other[0])
    last = bisect.bisect_right(rows, row[0] + reach, key=lambda other: other[0])
    return [j for j in range(first, last) if _close(row, rows[j])]


def _augment(start: int, edges: list[list[int]], partner: dict[int, int]) -> bool:
    """Searches breadth-first for an augmenting path from gold row `start`, and applies it."""
    came_from: dict[int, int] = {}
    queue = [start]
    for i in queue:
        for j in edges[i]:
            if j in came_from:
                continue
            came_from[j] = i
            if j in partner:
                queue.append(partner[j])
                continue
            previous = {i: j for j, i in partner.items()}
            while came_from[j] != start:  # each gold row on the path, from its end, gets its next partner
                partner[j] = came_from[j]
                j = previous[partner[j]]
            partner[j] = start
            return True
    return False


@functools.lru_cache(maxsize=16_384)
def orders_at_top_level(sql: str) -> bool:
    """Whether the statement has an ORDER BY of its own, outside windows, subqueries and strings.

    The tokens decide: in SQLite's grammar every other ORDER BY is in parentheses, and ORDER cannot be a bare name.
    """
    depth = 0
    previous = ""
    for match in _TOKEN.finditer(sql):
        token = match.group()
        if token.startswith(("--", "/*")):
            continue
        word = token.upper()
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth == 0 and word == "BY" and previous == "ORDER":
            return True
        previous = word
    return False


def canonical_hash(rows: Rows) -> str:
    """A hash of 32 hexadecimal digits, equal for results that are equal as multisets of rows."""
    columns = map(_integers_where_whole, zip(*rows, strict=True))
    # Version 2 of marshal depends on values alone, not on object identity, and takes a third of the time of repr.
    lines = sorted(map(marshal.dumps, zip(*columns, strict=True), itertools.repeat(2)))
    return hashlib.blake2b(b"".join(lines), digest_size=16).hexdigest()


def _integers_where_whole(column: Row) -> Sequence[Any]:
    """A column whose whole floats are integers. Working by columns is faster than by rows."""
    if float not in map(type, column):
        return column
    return [int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in column]
