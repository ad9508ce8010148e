from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sqlr1_jax.data import select
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.select import Selection


def examples(count: int = 400) -> list[Example]:
    return [
        Example(str(i), "pets", Path("pets"), "q", "s", complexity=select.COMPLEXITIES[i % 4]) for i in range(count)
    ]


def every_other_four(examples: Sequence[Example]) -> list[bool]:
    """A stand-in for running gold SQL: of each eight examples the first four return rows."""
    return [int(example.id) // 4 % 2 == 0 for example in examples]


BALANCED = Selection(dict.fromkeys(select.COMPLEXITIES, 20), with_rows=True)


def test_select_takes_equally_many_of_each_complexity_whose_gold_sql_returns_rows() -> None:
    selected = select.select(BALANCED, examples(), 0, every_other_four)
    assert Counter(example.complexity for example in selected) == dict.fromkeys(select.COMPLEXITIES, 20)
    assert all(every_other_four(selected))
    assert len({example.id for example in selected}) == 80


def test_a_selection_depends_on_the_seed_and_not_on_file_order() -> None:
    selected = [example.id for example in select.select(BALANCED, examples(), 0, every_other_four)]
    shuffled = examples()
    random.Random(1).shuffle(shuffled)
    assert [example.id for example in select.select(BALANCED, shuffled, 0, every_other_four)] == selected
    other = [example.id for example in select.select(BALANCED, examples(), 1, every_other_four)]
    assert len(set(selected) & set(other)) < 60
    assert selected != sorted(selected, key=int)


def test_a_smaller_selection_is_the_first_part_of_a_larger_one() -> None:
    few = Selection({"Complex": 5}, with_rows=False)
    more = Selection({"Complex": 50}, with_rows=False)
    assert select.select(few, examples(), 3) == select.select(more, examples(), 3)[:5]


def test_a_selection_comes_from_the_whole_file() -> None:
    selected = select.select(Selection({"Complex": 50}, with_rows=False), examples(8_000), 0)
    positions = sorted(int(example.id) / 8_000 for example in selected)
    assert 0.3 < sum(positions) / 50 < 0.7
    assert positions[0] < 0.2 and positions[-1] > 0.8


def test_select_runs_no_more_gold_sql_than_it_needs() -> None:
    ids: list[str] = []

    def record_ids(batch: Sequence[Example]) -> list[bool]:
        ids.extend(example.id for example in batch)
        return [True] * len(batch)

    select.select(BALANCED, examples(), 0, record_ids)
    assert len(ids) == 80
    select.select(Selection({"Complex": 50}, with_rows=False), examples(), 0, record_ids)
    assert len(ids) == 80


def test_a_complexity_with_too_few_examples_is_told() -> None:
    selected = select.select(BALANCED, examples(8), 0, every_other_four)
    assert len(selected) == 4
    assert select.shortages(BALANCED, selected) == [
        f"{complexity}: 1 examples instead of 20 were selected" for complexity in select.COMPLEXITIES
    ]
    assert select.shortages(Selection({"Complex": 1}, with_rows=True), selected) == []


def test_selections_are_those_of_the_paper() -> None:
    assert select.SELECTIONS["synsql-200k"] == Selection(
        {"Simple": 50_000, "Moderate": 50_000, "Complex": 50_000, "Highly Complex": 50_000}, with_rows=True
    )
    assert select.SELECTIONS["complex-5k"] == Selection({"Complex": 5_000}, with_rows=False)


def test_gold_sql_returns_rows_runs_the_sql(pets: Path) -> None:
    queries = ["SELECT * FROM dogs", "SELECT * FROM dogs WHERE age > 99", "SELECT * FROM cats", "DROP TABLE dogs"]
    selected = [Example(str(i), "pets", pets, "q", sql) for i, sql in enumerate(queries)]
    assert select.gold_sql_returns_rows(selected) == [True, False, False, False]
