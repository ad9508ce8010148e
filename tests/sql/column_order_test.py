from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sqlr1_jax.sql import column_order
from sqlr1_jax.sql.column_order import equal_under_column_order

Table = list[tuple]
# 0 and '', -1 and -2, 'a' and b'a' have the same hash in Python.
CELLS = st.sampled_from([None, 0, "", 1, 1.0, -1, -2, "a", b"a"])


@st.composite
def table_pairs(draw: Any) -> tuple[Table, Table]:
    """Two tables of one shape whose columns hold the same cells, in other rows for some of them."""
    width = draw(st.integers(1, 4))
    table = draw(st.lists(st.tuples(*[CELLS] * width), min_size=1, max_size=6))
    shuffles = draw(st.booleans())
    columns = draw(st.permutations(list(zip(*table, strict=True))))
    rows = zip(*[draw(st.permutations(column)) if shuffles else column for column in columns], strict=True)
    return table, draw(st.permutations(list(rows)))


def is_equal(gold: Table, rows: Table) -> bool:
    return equal_under_column_order(Counter(gold), Counter(rows))


def is_equal_naively(gold: Table, rows: Table) -> bool:
    orders = itertools.permutations(range(len(gold[0])))
    return any(Counter(tuple(row[i] for i in order) for row in rows) == Counter(gold) for order in orders)


@given(table_pairs())
def test_the_verdict_is_that_of_trying_every_order(pair: tuple[Table, Table]) -> None:
    assert is_equal(*pair) == is_equal_naively(*pair)


@given(table_pairs(), st.integers(1, 4))
def test_samples_do_not_change_the_verdict(pair: tuple[Table, Table], sample: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_order, "SAMPLE_CELLS", 0)
        patch.setattr(column_order, "MIN_SAMPLE_ROWS", sample)
        assert is_equal(*pair) == is_equal_naively(*pair)


@given(table_pairs(), st.data())
def test_one_other_cell_is_another_result(pair: tuple[Table, Table], data: st.DataObject) -> None:
    gold, rows = pair
    i, j = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, len(rows[0]) - 1))
    assume(rows[i][j] != "other")
    changed = [*rows[:i], (*rows[i][:j], "other", *rows[i][j + 1 :]), *rows[i + 1 :]]
    assert not is_equal(gold, changed)


def make_table(kind: str, rows: int, columns: int) -> Table:
    rng = random.Random(0)
    if kind == "permutations":  # every column has the same cells, every row others
        return list(zip(*(rng.sample(range(rows), rows) for _ in range(columns)), strict=True))
    if kind == "latin":  # every row has the same cells
        return [tuple(rng.sample(range(columns), columns)) for _ in range(rows)]
    if kind == "sparse":  # nearly every row is NULL throughout
        return [tuple(1 if rng.random() < 0.001 else None for _ in range(columns)) for _ in range(rows)]
    if kind == "equal":  # all columns are equal
        return [(i % 7,) * columns for i in range(rows)]
    return [tuple(rng.randrange(2) for _ in range(columns)) for _ in range(rows)]


@pytest.mark.parametrize("kind", ["bits", "permutations", "latin", "sparse", "equal"])
def test_large_results_are_compared(kind: str) -> None:
    gold, rng = make_table(kind, 3000, 20), random.Random(1)
    order = rng.sample(range(20), 20)
    rows = [tuple(row[i] for i in order) for row in rng.sample(gold, len(gold))]
    assert is_equal(gold, rows)
    # Two cells of a row change places, which only the comparison of all rows shows. If that is no change, one is new.
    changed = next((i for i, row in enumerate(rows) if row[0] != row[1] and kind != "sparse"), 0)
    first, second, *rest = rows[changed]
    rows[changed] = (second, first, *rest) if kind not in ("sparse", "equal") else (first, "new", *rest)
    assert not is_equal(gold, rows)


def test_a_wrong_row_outside_the_sample_takes_no_search_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the sample the columns have one order, which is wrong for a row in which two cells change places."""
    monkeypatch.setattr(column_order, "SAMPLE_CELLS", 0)
    sizes = set()
    number_cells = column_order.number_cells

    def recording(column: tuple, numbers: dict) -> tuple:
        sizes.add(len(column))
        return number_cells(column, numbers)

    monkeypatch.setattr(column_order, "number_cells", recording)
    gold = make_table("permutations", 3000, 20)
    for i in (i for i in range(0, 3000, 300) if gold[i][0] != gold[i][1]):
        first, second, *rest = gold[i]
        assert not is_equal(gold, [row[::-1] for row in (*gold[:i], (second, first, *rest), *gold[i + 1 :])])
    assert sizes == {100}


def test_a_search_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Incidence matrices of a ring and of two rings: all rows look alike, and so do all columns."""

    def rings(count: int, size: int) -> Table:
        edges = [(i, (i + 1) % size) for i in range(size)]
        return [
            tuple(int(ring == r and vertex in edge) for r in range(count) for vertex in range(size))
            for ring in range(count)
            for edge in edges
        ]

    assert is_equal(rings(1, 24), [row[::-1] for row in rings(1, 24)])
    assert not is_equal(rings(1, 24), rings(2, 12))
    monkeypatch.setattr(column_order, "SEARCH_BUDGET", 10)
    start = time.process_time()
    assert not is_equal(rings(1, 24), [row[::-1] for row in rings(1, 24)])
    assert time.process_time() - start < 1
