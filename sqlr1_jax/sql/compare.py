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
from collections.abc import Callable, Hashable, Sequence
from typing import Any

Row = tuple[Any, ...]
Rows = Sequence[Row]
Labels = list[int]

RELATIVE_TOLERANCE = 1e-6  # tolerance for numbers in rule strict
SEARCH_BUDGET = 50_000_000  # cells visited in the search for a column order; beyond it, results count as different

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

    Two empty results are equal. The column order is found by refinement; the official code tries all n^n.
    """
    if len(gold) != len(rows):
        return False
    if gold == rows:
        return True
    if len(gold[0]) != len(rows[0]):
        return False
    if ordered:
        return Counter(zip(*gold, strict=True)) == Counter(zip(*rows, strict=True))
    return Counter(gold) == Counter(rows) or _equal_under_column_order(gold, rows)


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
        hits = sum(cell in gold_row for cell in row)
        shared += hits / len(gold_row)
        extra += (len(row) - hits) / len(gold_row)
        missing += sum(cell not in row for cell in gold_row) / len(gold_row)
    missing += max(0, len(gold) - len(rows))
    extra += max(0, len(rows) - len(gold))
    return 2 * shared / (2 * shared + extra + missing) if shared else 0.0


def cell_overlap(gold: Rows, rows: Rows) -> float:
    """F1 of the two results' cells as multisets, 0 to 1, regardless of their rows and columns."""
    if gold == rows:
        return 1.0
    gold_cells, cells = (Counter(cell for row in result for cell in row) for result in (gold, rows))
    total = gold_cells.total() + cells.total()
    return 2 * (gold_cells & cells).total() / total if total else 1.0


RULES: dict[str, Callable[[list[Row], list[Row], bool], bool | float]] = {
    "spider": spider,
    "bird": bird,
    "strict": strict,
    "soft_f1": soft_f1,
}


def _equal_under_column_order(gold: list[Row], rows: list[Row]) -> bool:
    """Whether some order of the columns of `rows` makes the two equal as multisets of rows."""
    names: dict[Hashable, int] = {}
    gold_labels = _label(map(_bag, gold), names)
    labels = _label(map(_bag, rows), names)
    columns = list(zip(*gold, strict=True)), list(zip(*rows, strict=True))
    return _assign(*columns, gold_labels, labels, [SEARCH_BUDGET])


def _assign(gold: list[Row], columns: list[Row], gold_labels: Labels, labels: Labels, budget: list[int]) -> bool:
    """Pairs the columns of the two results class by class, by partition refinement.

    Rows have the same label when the column pairs so far do not distinguish them. A class holds the columns with the
    same multiset of (row label, value). If all columns of a class are equal, the pairs are forced. Otherwise each
    distinct candidate is tried. Each pair refines the labels and thereby the classes, which prunes the search.
    """
    while gold:
        budget[0] -= 2 * len(gold) * len(labels)
        gold_classes, classes = _classes(gold, gold_labels), _classes(columns, labels)
        gold_sizes, sizes = ({key: len(side[key]) for key in side} for side in (gold_classes, classes))
        if budget[0] < 0 or gold_sizes != sizes:
            return False
        forced = [key for key in classes if len(set(gold_classes[key])) == 1 == len(set(classes[key]))]
        if not forced:
            return _branch(gold_classes, classes, gold_labels, labels, budget)
        for key in forced:
            gold_labels, labels = _split(gold_labels, gold_classes.pop(key)[0], labels, classes.pop(key)[0])
        gold, columns = _flatten(gold_classes), _flatten(classes)
    return Counter(gold_labels) == Counter(labels)


def _branch(
    gold_classes: dict[Hashable, list[Row]],
    classes: dict[Hashable, list[Row]],
    gold_labels: Labels,
    labels: Labels,
    budget: list[int],
) -> bool:
    """Takes a gold column of the smallest class and tries each distinct column as its partner."""
    key = min(classes, key=lambda k: len(classes[k]))
    first, *others = gold_classes[key]
    gold = others + _flatten({k: v for k, v in gold_classes.items() if k != key})
    rest = _flatten({k: v for k, v in classes.items() if k != key})
    for candidate in dict.fromkeys(classes[key]):
        remaining = list(classes[key])
        remaining.remove(candidate)
        refined = _split(gold_labels, first, labels, candidate)
        if _assign(gold, remaining + rest, *refined, budget):
            return True
    return False


def _bag(cells: Sequence[Hashable]) -> Hashable:
    return frozenset(Counter(cells).items())


def _label(values: Any, names: dict[Hashable, int]) -> Labels:
    return [names.setdefault(value, len(names)) for value in values]


def _split(gold_labels: Labels, gold_column: Row, labels: Labels, column: Row) -> tuple[Labels, Labels]:
    """Refines the labels of both results by the values of a pair of columns."""
    names: dict[Hashable, int] = {}
    refined = _label(zip(gold_labels, gold_column, strict=True), names)
    return refined, _label(zip(labels, column, strict=True), names)


def _classes(columns: list[Row], labels: Labels) -> dict[Hashable, list[Row]]:
    classes: dict[Hashable, list[Row]] = {}
    for column in columns:
        classes.setdefault(_bag(list(zip(labels, column, strict=True))), []).append(column)
    return classes


def _flatten(classes: dict[Hashable, list[Row]]) -> list[Row]:
    return [column for members in classes.values() for column in members]


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
