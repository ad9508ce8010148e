"""The rules that compare a predicted result with the gold result.

Cells compare as Python values: 1 equals 1.0, 1 differs from '1', NULL equals NULL. Neither query's text is changed; in
particular, DISTINCT is kept. Pure functions of rows. docs/method.md, section 11, defines the rules.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import marshal
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlr1_jax.sql.cells import Row, with_distinct_hashes
from sqlr1_jax.sql.column_order import equal_under_column_order
from sqlr1_jax.sql.tolerance import is_close, match_within_tolerance

Rows = Sequence[Row]

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
        gold_columns, columns = _count_columns(gold, rows)
        return gold_columns == columns
    gold_counts, counts = map(Counter, with_distinct_hashes(gold, rows))
    return gold_counts == counts or equal_under_column_order(gold_counts, counts)


def bird(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """BIRD's execution accuracy: the rows are equal as sets. Column order matters, row order and duplicates do not."""
    del ordered
    if gold == rows:
        return True
    gold_set, row_set = map(set, with_distinct_hashes(gold, rows))
    return gold_set == row_set


def strict(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """Column order and duplicates matter, and row order if `ordered`. Numbers match within sql/tolerance.py's."""
    if len(gold) != len(rows):
        return False
    return gold == rows or (all(map(is_close, gold, rows)) if ordered else match_within_tolerance(gold, rows))


def soft_f1(gold: list[Row], rows: list[Row], ordered: bool) -> float:
    """BIRD mini-dev's Soft-F1, 0 to 1: compares the cells of the i-th distinct rows of both results."""
    del ordered
    gold, rows = (list(dict.fromkeys(result)) for result in with_distinct_hashes(gold, rows))
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
        gold_columns, columns = _count_columns(gold, rows)
        shared = len(gold) * (gold_columns & columns).total()
        gold, rows = list((gold_columns - columns).elements()), list((columns - gold_columns).elements())
    num_parts = 1 + total // CELLS_PER_PART
    parts = zip(_split_cells(gold, num_parts), _split_cells(rows, num_parts), strict=True)
    shared += sum((Counter(gold_cells) & Counter(cells)).total() for gold_cells, cells in parts)
    return 2 * shared / total


def _count_columns(gold: Rows, rows: Rows) -> tuple[Counter[Row], Counter[Row]]:
    """How often each distinct column occurs in each of two results."""
    columns = (list(zip(*result, strict=True)) for result in (gold, rows))
    of_gold, of_rows = map(Counter, with_distinct_hashes(*columns))
    return of_gold, of_rows


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
