from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from sqlr1_jax.data import select
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.select import Selection


def examples(count: int = 400) -> list[Example]:
    return [
        Example(str(i), "pets", Path("pets"), "q", "s", complexity=select.COMPLEXITIES[i % 4]) for i in range(count)
    ]


def even(asked: Sequence[Example]) -> list[bool]:
    return [int(one.id) // 4 % 2 == 0 for one in asked]


BALANCED = Selection(dict.fromkeys(select.COMPLEXITIES, 20), with_rows=True)


def test_a_balanced_selection_has_equal_counts_of_golds_with_rows() -> None:
    made = select.select(BALANCED, examples(), 0, even)
    assert Counter(one.complexity for one in made) == dict.fromkeys(select.COMPLEXITIES, 20)
    assert all(even(made))
    assert len({one.id for one in made}) == 80


def test_a_selection_depends_on_the_seed_alone() -> None:
    made = [one.id for one in select.select(BALANCED, examples(), 0, even)]
    shuffled = examples()
    random.Random(1).shuffle(shuffled)
    assert [one.id for one in select.select(BALANCED, shuffled, 0, even)] == made
    other = [one.id for one in select.select(BALANCED, examples(), 1, even)]
    assert len(set(made) & set(other)) < 60
    assert made != sorted(made, key=int)


def test_a_smaller_selection_is_the_beginning_of_a_larger_one() -> None:
    few = Selection({"Complex": 5}, with_rows=False)
    more = Selection({"Complex": 50}, with_rows=False)
    assert select.select(few, examples(), 3) == select.select(more, examples(), 3)[:5]


def test_a_selection_is_spread_over_the_data() -> None:
    made = select.select(Selection({"Complex": 50}, with_rows=False), examples(8_000), 0)
    places = sorted(int(one.id) / 8_000 for one in made)
    assert 0.3 < sum(places) / 50 < 0.7
    assert places[0] < 0.2 and places[-1] > 0.8


def test_golds_are_run_only_until_the_selection_is_full() -> None:
    asked: list[str] = []

    def counted(batch: Sequence[Example]) -> list[bool]:
        asked.extend(one.id for one in batch)
        return [True] * len(batch)

    select.select(BALANCED, examples(), 0, counted)
    assert len(asked) == 80
    select.select(Selection({"Complex": 50}, with_rows=False), examples(), 0, counted)
    assert len(asked) == 80


def test_a_selection_that_falls_short_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = select.select(BALANCED, examples(8), 0, even)
    assert len(made) == 4
    assert "Highly Complex: 1 examples where 20" in caplog.text


def test_selections_are_the_papers() -> None:
    assert select.SELECTIONS["synsql-200k"] == Selection(
        {"Simple": 50_000, "Moderate": 50_000, "Complex": 50_000, "Highly Complex": 50_000}, with_rows=True
    )
    assert select.SELECTIONS["complex-5k"] == Selection({"Complex": 5_000}, with_rows=False)


def test_golds_without_rows_or_with_errors_are_not_selected(pets: Path) -> None:
    queries = ["SELECT * FROM dogs", "SELECT * FROM dogs WHERE age > 99", "SELECT * FROM cats", "DROP TABLE dogs"]
    made = [Example(str(i), "pets", pets, "q", sql) for i, sql in enumerate(queries)]
    assert select.execute_golds(made) == [True, False, False, False]
