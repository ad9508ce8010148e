from __future__ import annotations

import random

import pytest

from sqlr1_jax.sql import tolerance
from sqlr1_jax.sql.tolerance import match_within_tolerance

Table = list[tuple]


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Its only item counts the pairs of numbers that are tested for closeness."""
    count = [0]
    close_numbers = tolerance.close_numbers

    def counting(number: float, other: float) -> bool:
        count[0] += 1
        return close_numbers(number, other)

    monkeypatch.setattr(tolerance, "close_numbers", counting)
    return count


def noisy_means(rows: int) -> tuple[Table, Table]:
    """A mean and an id a row. Rounding differs between the tables, so that their sorted orders differ."""
    rng = random.Random(0)
    noise = [(rng.choice((0.3, 0.1 + 0.2)), rng.choice((0.3, 0.1 + 0.2))) for _ in range(rows)]
    return [(a, i, None) for i, (a, _) in enumerate(noise, 7)], [(b, i, None) for i, (_, b) in enumerate(noise, 7)]


def test_rounding_in_a_column_of_equal_values_takes_few_tests(tested: list[int]) -> None:
    gold, rows = noisy_means(3000)
    assert match_within_tolerance(gold, rows)
    rows[5] = (0.3, 3, None)
    assert not match_within_tolerance(gold, rows)
    assert tested[0] < 20 * 3000


def test_text_and_null_must_be_equal() -> None:
    assert match_within_tolerance([("a", 1), (None, 2)], [(None, 2.0000001), ("a", 1)])
    assert not match_within_tolerance([("a", 1)], [(b"a", 1)])
    assert not match_within_tolerance([("1", 1)], [(1, 1)])
    assert not match_within_tolerance([("", 1)], [(None, 1)])


def test_a_chain_of_close_numbers_is_searched() -> None:
    """Each number is close to the next one alone, and sorting pairs some that are not close."""
    step = 8e-7
    gold = [(1 + step, 1), (1, 2)]
    assert match_within_tolerance(gold, [(1 + 2 * step, 1), (1 + step, 2)])
    assert match_within_tolerance(gold, [(1, 1), (1 + step, 2)])
    assert not match_within_tolerance(gold, [(1 + 2 * step, 2), (1 + step, 1)])


def test_the_search_ends_where_closeness_does_not_decide(tested: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerance, "SEARCH_BUDGET", 5000)
    rng = random.Random(0)
    levels = [1 + 8e-7 * i for i in range(4)]
    columns = [rng.sample(levels * 50, 200) for _ in range(6)]
    others = [rng.sample(column, 200) for column in columns]
    assert not match_within_tolerance(list(zip(*columns, strict=True)), list(zip(*others, strict=True)))
    assert tested[0] < 6 * (5000 + 4 * 200)
