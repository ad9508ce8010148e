from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.sql import cells, compare

Table = list[tuple]
P = 2**61 - 1  # Python's hash of a whole number is its remainder by this
# Different cells of one hash, of three kinds.
SAME_HASH = [[-1, -2], [0, "", b"", P, 2 * P, -P], [1.0, 2.0**61, 2.0**122, 2.0**-61]]


class CountedCell:
    """A cell whose hash says nothing, and which counts how often it is compared with another one."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedCell.comparisons += 1
        return self is other

    def __hash__(self) -> int:
        return 1


def make_rows(cells_: list[Any], rows: int, columns: int) -> Table:
    rng = random.Random(0)
    return [tuple(rng.choices(cells_, k=columns)) for _ in range(rows)]


def permuted(table: Table) -> Table:
    order = random.Random(1).sample(range(len(table[0])), len(table[0]))
    return [tuple([row[i] for i in order]) for row in reversed(table)]


@pytest.mark.parametrize("same_hash", SAME_HASH)
def test_the_cells_of_these_tests_have_one_hash(same_hash: list[Any]) -> None:
    assert len(set(same_hash)) == len(same_hash)
    assert len(set(map(hash, same_hash))) == 1


@pytest.mark.parametrize("rule", ["spider", "bird", "soft_f1"])
def test_work_grows_with_the_cells_where_all_hashes_are_alike(rule: str) -> None:
    gold = make_rows([CountedCell(), CountedCell()], rows=4000, columns=14)
    rows = permuted(gold) if rule == "spider" else [*gold, gold[0]]
    CountedCell.comparisons = 0
    assert compare.compare(rule, gold, rows, ordered=False) == 1
    assert CountedCell.comparisons < 10 * 4000 * 14  # a dict of the rows compares half of all 8,000,000 pairs of rows


@pytest.mark.parametrize("same_hash", SAME_HASH)
@pytest.mark.parametrize("first_column", ["id", "none"])
def test_permuted_columns_of_cells_with_one_hash_match(same_hash: list[Any], first_column: str) -> None:
    """With a column of ids the rows' hashes differ, and the other columns still look alike to Python's hashes."""
    gold = make_rows(same_hash, rows=3000, columns=12)
    if first_column == "id":
        gold = [(i, *row) for i, row in enumerate(gold, 10)]
    rows = permuted(gold)
    assert compare.compare("spider", gold, rows, ordered=False)
    last = rows[-1]
    rows[-1] = (*last[:-1], same_hash[0] if last[-1] != same_hash[0] else same_hash[1])
    assert not compare.compare("spider", gold, rows, ordered=False)


def test_permuted_columns_of_cells_with_one_hash_match_if_ordered() -> None:
    columns = [(*[-1] * i, -2, *[-1] * (2999 - i)) for i in range(2900, 3000)]
    gold = list(zip(*columns, strict=True))
    rows = list(zip(*columns[::-1], strict=True))
    assert compare.compare("spider", gold, rows, ordered=True)
    assert not compare.compare("spider", gold, rows[::-1], ordered=True)


@given(st.lists(st.tuples(*[st.sampled_from([None, 0, "", 1, 1.0, -1, -2, P])] * 2)), st.randoms())
def test_numbers_keep_rows_equal_and_different(table: Table, rng: Any) -> None:
    other = rng.sample(table, len(table))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "SMALL_WORK", 0)
        numbered, numbered_other = cells.with_distinct_hashes(table, other)
    assert [a == b for a in table for b in other] == [a == b for a in numbered for b in numbered_other]
    assert Counter(numbered) == Counter(numbered_other)


def test_rows_with_distinct_hashes_stay() -> None:
    table = [(i, None, "a") for i in range(5000)]
    gold, rows = cells.with_distinct_hashes(table, table[::-1])
    assert gold is table
    assert rows == table[::-1]
