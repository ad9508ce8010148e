"""Whether two results are equal as multisets of rows under some order of the columns: the search of the rule `spider`.

A result may have 100,000 rows and as many columns as the byte limit allows, so the search proceeds from cheap to dear:

1. Each distinct row gets a label that no order of the columns changes. The two results must have the same labels.
2. A sample of the rows, those with the rarest labels, proposes an order: any order that is right for all rows is right
   for the sample, so if the sample has none, there is none.
3. All rows decide whether the proposed order is right. If it is not, and others are right for the sample too, all rows
   are searched.

The search pairs columns by the multiset of their (row label, cell). Its labels and multisets are hashes, so that memory
stays small; two that collide only make it try more orders, because every order is checked against the rows themselves.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from sqlr1_jax.sql.cells import Row, number_cells

Labels = list[int]
Classes = dict[int, list[int]]  # the indices of the columns that nothing distinguishes so far, by a hash

SAMPLE_CELLS = 100_000  # cells of each result's sample
MIN_SAMPLE_ROWS = 100
SEARCH_BUDGET = 50_000_000  # cells visited by one search; beyond it, results count as different


def equal_under_column_order(gold: Mapping[Row, int], rows: Mapping[Row, int]) -> bool:
    """Whether some order of the columns of `rows` makes the two equal.

    Args:
      gold: how often each distinct row of the gold result occurs.
      rows: the same of the predicted result, with as many columns.
    """
    gold_labels, labels = _label_rows(gold, rows)
    sizes = Counter(gold_labels)
    if sizes != Counter(labels):
        return False
    rarest = _rarest_labels(sizes, max(MIN_SAMPLE_ROWS, SAMPLE_CELLS // len(next(iter(gold)))))
    if len(rarest) < len(sizes):
        search = _Search(*_select(gold, gold_labels, rarest), *_select(rows, labels, rarest))
        order = search.find()
        if order is None:
            return False
        if _equal(gold, rows, order):
            return True
        if not search.has_choice:
            return False
    return _Search(gold, gold_labels, rows, labels).find() is not None


class _Search:
    """Searches an order of the columns of one result under which it equals another."""

    def __init__(self, gold: Mapping[Row, int], gold_labels: Labels, rows: Mapping[Row, int], labels: Labels) -> None:
        self._gold, self._rows = gold, rows
        self._gold_labels, self._labels = gold_labels, labels
        numbers: dict[Hashable, int] = {}  # cells such as -1 and -2 share a hash, and their numbers do not
        self._gold_columns = [number_cells(column, numbers) for column in zip(*gold, strict=True)]
        self._columns = [number_cells(column, numbers) for column in zip(*rows, strict=True)]
        self._budget = SEARCH_BUDGET
        self.has_choice = False  # whether the order found need not be the only one

    def find(self) -> list[int] | None:
        """The index of the column that goes with each gold column; None if there is no such order.

        None too if the search exceeds its budget.
        """
        every = list(range(len(self._columns)))
        return self._pair(every, every, self._gold_labels, self._labels, {})

    def _pair(
        self, gold_open: list[int], open_: list[int], gold_labels: Labels, labels: Labels, pairs: dict[int, int]
    ) -> list[int] | None:
        """Pairs the columns that are open, class by class, by partition refinement.

        Rows have the same label when the column pairs so far do not distinguish them. A class holds the columns with
        the same multiset of (row label, cell). If all columns of a class are equal, the pairs are forced. Otherwise
        each distinct candidate is tried. Each pair refines the labels and thereby the classes, which prunes the search.
        """
        pairs = dict(pairs)
        while open_:
            self._budget -= 2 * len(labels) * len(open_)
            if self._budget < 0:
                return None
            gold_classes = _classes(self._gold_columns, gold_open, gold_labels)
            classes = _classes(self._columns, open_, labels)
            if _sizes(gold_classes) != _sizes(classes):
                return None
            forced = [key for key in classes if self._is_forced(gold_classes[key], classes[key])]
            if not forced:
                return self._branch(gold_classes, classes, gold_labels, labels, pairs)
            decided = [(gold_classes.pop(key), classes.pop(key)) for key in forced]
            self.has_choice |= any(len(members) > 1 for _, members in decided)
            for gold_members, members in decided:
                pairs.update(zip(gold_members, members, strict=True))
                if classes:  # otherwise no column is left for the labels to distinguish
                    gold_labels = _split(gold_labels, self._gold_columns[gold_members[0]])
                    labels = _split(labels, self._columns[members[0]])
            gold_open, open_ = _flatten(gold_classes), _flatten(classes)
        order = [pairs[i] for i in range(len(pairs))]
        return order if _equal(self._gold, self._rows, order) else None

    def _branch(
        self, gold_classes: Classes, classes: Classes, gold_labels: Labels, labels: Labels, pairs: dict[int, int]
    ) -> list[int] | None:
        """Takes a gold column of the smallest class and tries each distinct column as its partner."""
        self.has_choice = True
        key = min(classes, key=lambda k: len(classes[k]))
        first = gold_classes[key][0]
        gold_rest = [i for i in _flatten(gold_classes) if i != first]
        gold_labels = _split(gold_labels, self._gold_columns[first])
        distinct = {self._columns[i]: i for i in reversed(classes[key])}
        for candidate in reversed(distinct.values()):
            if self._budget < 0:
                break
            rest = [i for i in _flatten(classes) if i != candidate]
            refined = _split(labels, self._columns[candidate])
            order = self._pair(gold_rest, rest, gold_labels, refined, pairs | {first: candidate})
            if order is not None:
                return order
        return None

    def _is_forced(self, gold_members: list[int], members: list[int]) -> bool:
        """Whether the columns of a class are all equal, so that any pairing of them is the same."""
        return _all_equal(self._gold_columns, gold_members) and _all_equal(self._columns, members)


def _label_rows(gold: Mapping[Row, int], rows: Mapping[Row, int]) -> tuple[Labels, Labels]:
    """A label of each distinct row, equal for rows of equal counts that have the same cells in another order."""
    try:
        sums = [list(map(_sum, result)) for result in (gold, rows)]
    except (OverflowError, ValueError):  # infinite, or so large that the order of the cells decides whether it fails
        sums = [[sum(map(hash, row)) for row in result] for result in (gold, rows)]
    gold_labels, labels = (
        list(map(hash, zip(s, r.values(), strict=True))) for s, r in zip(sums, (gold, rows), strict=True)
    )
    return gold_labels, labels


def _sum(row: Row) -> float:
    """A sum over a row's cells that does not depend on their order. fsum takes a quarter of the time of hashes."""
    try:
        return math.fsum(row)
    except TypeError:
        return sum(map(hash, row))


def _rarest_labels(sizes: Mapping[int, int], num_rows: int) -> set[int]:
    """The labels with the fewest rows, together at least `num_rows`; the choice depends on nothing but `sizes`."""
    chosen, total = set(), 0
    for size, label in sorted((size, label) for label, size in sizes.items()):
        if total >= num_rows:
            break
        chosen.add(label)
        total += size
    return chosen


def _select(rows: Mapping[Row, int], labels: Labels, chosen: set[int]) -> tuple[dict[Row, int], Labels]:
    """The rows whose label is one of those chosen, and their labels."""
    kept = [(row, count, label) for (row, count), label in zip(rows.items(), labels, strict=True) if label in chosen]
    return {row: count for row, count, _ in kept}, [label for _, _, label in kept]


def _equal(gold: Mapping[Row, int], rows: Mapping[Row, int], order: Sequence[int]) -> bool:
    """Whether the rows with their columns in this order are those of the gold result; both have as many rows."""
    reorder = operator.itemgetter(*order) if len(order) > 1 else tuple
    return all(map(operator.eq, map(gold.get, map(reorder, rows)), rows.values()))


def _split(labels: Labels, column: Row) -> Labels:
    """Refines the labels of rows by the cells of a column."""
    return list(map(hash, zip(labels, column, strict=True)))


def _classes(columns: Sequence[Row], open_: Iterable[int], labels: Labels) -> Classes:
    """The indices of the open columns by the sum of their (row label, cell) pairs' hashes, which ignores row order."""
    classes: Classes = {}
    for i in open_:
        classes.setdefault(sum(map(hash, zip(labels, columns[i], strict=True))), []).append(i)
    return classes


def _sizes(classes: Classes) -> dict[int, int]:
    return {key: len(members) for key, members in classes.items()}


def _all_equal(columns: Sequence[Row], members: Sequence[int]) -> bool:
    return all(map(operator.eq, (columns[i] for i in members[1:]), (columns[i] for i in members)))


def _flatten(classes: Classes) -> list[int]:
    return [i for members in classes.values() for i in members]
