"""Is this result the gold's? The named rules of comparison, and nothing else decides.

Cells compare as Python values do: 1 equals 1.0, 1 differs from '1', NULL equals NULL. Nothing is stripped
from either query, DISTINCT least of all. Pure functions of rows; sql-r1.md §3 and §7 say what each rule is
and what it must not be.
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

RELATIVE_TOLERANCE = 1e-6  # of rule strict
SEARCH_BUDGET = 50_000_000  # cells visited in search of a column order, after which results count as different

# A comment, or what is quoted: of SQL's text the parts in which no other token begins.
OPAQUE = r"""--[^\n]*|/\*.*?(?:\*/|\Z)|'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]"""
_TOKEN = re.compile(rf"{OPAQUE}|[\w$]+|[()]", re.DOTALL)


def compare(rule: str, gold_rows: Rows, rows: Rows, ordered: bool) -> bool | float:
    """Compares a result with gold's by a named rule.

    Args:
        rule: spider, bird, strict (each a bool) or soft_f1 (0 to 1).
        gold_rows, rows: all rows of each result, as tuples.
        ordered: whether gold orders its rows at top level; spider and strict heed it.

    Raises:
        ValueError: the rule is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"There is no rule of comparison {rule!r}; it is one of {', '.join(RULES)}.")
    return RULES[rule](list(gold_rows), list(rows), ordered)


def spider(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """Test-suite accuracy: equal as multisets (as lists where gold orders) under some order of the columns.

    Both empty is equal. Unlike the official code, column order is found by refinement, not among n^n.
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
    """BIRD's execution accuracy: equal as sets of rows; column order counts, row order and duplicates do not."""
    del ordered
    return gold == rows or set(gold) == set(rows)


def strict(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """Column order and duplicates count, row order where gold orders; numbers within 1e-6 relative."""
    if len(gold) != len(rows):
        return False
    if gold == rows:
        return True
    if ordered:
        return all(map(_close, gold, rows))
    return _match_close(gold, rows)


def soft_f1(gold: list[Row], rows: list[Row], ordered: bool) -> float:
    """BIRD mini-dev's Soft-F1: distinct row i against distinct row i, cells shared, extra and missing (0 to 1)."""
    del ordered
    gold, rows = list(dict.fromkeys(gold)), list(dict.fromkeys(rows))
    if not gold and not rows:
        return 1.0
    shared = extra = missing = 0.0
    for expected, got in zip(gold, rows, strict=False):
        hits = sum(cell in expected for cell in got)
        shared += hits / len(expected)
        extra += (len(got) - hits) / len(expected)
        missing += sum(cell not in got for cell in expected) / len(expected)
    missing += max(0, len(gold) - len(rows))
    extra += max(0, len(rows) - len(gold))
    return 2 * shared / (2 * shared + extra + missing) if shared else 0.0


def cell_overlap(gold: Rows, rows: Rows) -> float:
    """F1 of the two results' cells as multisets, wherever they stand (0 to 1): partial credit for what differs."""
    if gold == rows:
        return 1.0
    expected, got = (Counter(cell for row in some for cell in row) for some in (gold, rows))
    total = expected.total() + got.total()
    return 2 * (expected & got).total() / total if total else 1.0


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
    """Pairs columns class by class; labels say which rows the pairs made so far cannot tell apart.

    A class is the columns with one multiset of (row label, value). A class of equal columns leaves no
    choice; in the others each distinct candidate is tried, which splits the labels and so the classes:
    refinement does the pruning.
    """
    while gold:
        budget[0] -= 2 * len(gold) * len(labels)
        gold_classes, classes = _classes(gold, gold_labels), _classes(columns, labels)
        if budget[0] < 0 or _sizes(gold_classes) != _sizes(classes):
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
    """Tries each distinct partner of one gold column of the smallest class."""
    key = min(classes, key=lambda k: len(classes[k]))
    first, *others = gold_classes[key]
    gold = others + _flatten({k: v for k, v in gold_classes.items() if k != key})
    rest = _flatten({k: v for k, v in classes.items() if k != key})
    for candidate in dict.fromkeys(classes[key]):
        left = list(classes[key])
        left.remove(candidate)
        split = _split(gold_labels, first, labels, candidate)
        if _assign(gold, left + rest, *split, budget):
            return True
    return False


def _bag(cells: Sequence[Hashable]) -> Hashable:
    return frozenset(Counter(cells).items())


def _label(values: Any, names: dict[Hashable, int]) -> Labels:
    return [names.setdefault(value, len(names)) for value in values]


def _split(gold_labels: Labels, gold_column: Row, labels: Labels, column: Row) -> tuple[Labels, Labels]:
    names: dict[Hashable, int] = {}
    split = _label(zip(gold_labels, gold_column, strict=True), names)
    return split, _label(zip(labels, column, strict=True), names)


def _classes(columns: list[Row], labels: Labels) -> dict[Hashable, list[Row]]:
    classes: dict[Hashable, list[Row]] = {}
    for column in columns:
        classes.setdefault(_bag(list(zip(labels, column, strict=True))), []).append(column)
    return classes


def _sizes(classes: dict[Hashable, list[Row]]) -> dict[Hashable, int]:
    return {key: len(members) for key, members in classes.items()}


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
    """Whether rows pair one to one within the tolerance, whatever their order."""
    groups: dict[Row, tuple[list[Row], list[Row]]] = {}
    for side, some in enumerate((gold, rows)):
        for row in some:
            key = tuple(_is_number(cell) or (cell,) for cell in row)
            groups.setdefault(key, ([], []))[side].append(tuple(cell for cell in row if _is_number(cell)))
    return all(_pair(sorted(a), sorted(b)) for a, b in groups.values())


def _pair(gold: list[Row], rows: list[Row]) -> bool:
    """A perfect matching of close rows of numbers: in sorted order nearly always, else by augmenting paths."""
    if len(gold) != len(rows):
        return False
    if all(map(_close, gold, rows)):
        return True
    columns = zip(map(sorted, zip(*gold, strict=True)), map(sorted, zip(*rows, strict=True)), strict=True)
    if not all(_close(tuple(a), tuple(b)) for a, b in columns):
        return False
    edges = [_close_rows(expected, rows) for expected in gold]
    partner: dict[int, int] = {}
    return all(_augment(i, edges, partner) for i in range(len(gold)))


def _close_rows(row: Row, rows: list[Row]) -> list[int]:
    """Positions in the sorted `rows` of those close to `row`: near it in the first number, then in all of them."""
    reach = 2 * RELATIVE_TOLERANCE * abs(row[0])
    first = bisect.bisect_left(rows, row[0] - reach, key=lambda other: other[0])
    last = bisect.bisect_right(rows, row[0] + reach, key=lambda other: other[0])
    return [j for j in range(first, last) if _close(row, rows[j])]


def _augment(start: int, edges: list[list[int]], partner: dict[int, int]) -> bool:
    """Finds a free row for gold row `start` breadth first, moving earlier pairs along the way."""
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
            _shift(j, start, came_from, partner)
            return True
    return False


def _shift(free: int, start: int, came_from: dict[int, int], partner: dict[int, int]) -> None:
    previous = {i: j for j, i in partner.items()}
    while True:
        i = came_from[free]
        partner[free] = i
        if i == start:
            return
        free = previous[i]


@functools.lru_cache(maxsize=16_384)
def orders_at_top_level(sql: str) -> bool:
    """Whether the statement itself, no window, subquery or string in it, has ORDER BY.

    In SQLite's grammar every other ORDER BY stands in parentheses and ORDER cannot be a bare name, so the
    tokens decide.
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
    """32 hexadecimal digits, equal for results that are equal as multisets of rows: the groups of a vote."""
    columns = map(_canonical, zip(*rows, strict=True))
    # marshal's version 2 writes a row by its values alone, and a third as long as repr takes.
    lines = sorted(map(marshal.dumps, zip(*columns, strict=True), itertools.repeat(2)))
    return hashlib.blake2b(b"".join(lines), digest_size=16).hexdigest()


def _canonical(column: Row) -> Sequence[Any]:
    """A column in which whole numbers are integers; by rows it takes half as long again."""
    if float not in map(type, column):
        return column
    return [int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in column]
