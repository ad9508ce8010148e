from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.data import order
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.train.lazy_batches import LazyBatches

ODD = "it is odd."


def odd_are_unusable(numbers: list[int]) -> list[int | None]:
    return [None if number % 2 else number for number in numbers]


def batches(count: int = 10) -> LazyBatches[int]:
    return LazyBatches(count, odd_are_unusable, ODD)


@given(st.integers(1, 7), st.integers(0, 99), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_a_batch_depends_on_no_other(size: int, seed: int, numbers: list[int]) -> None:
    used = batches()
    for number in numbers:
        used.start(size, seed, number + 1)
        batch = used.batch(size, seed, number)
        assert batch == batches().batch(size, seed, number)
        ordered = order.batch_indices(10, size, seed, number)
        assert [item for item, first in zip(batch, ordered, strict=True) if first % 2 == 0] == [
            first for first in ordered if first % 2 == 0
        ]
        assert all(item % 2 == 0 for item in batch)


def test_substitutes_differ_from_turn_to_turn(caplog: pytest.LogCaptureFixture) -> None:
    lazy = batches(1000)
    chosen = [item for number in range(10) for item in lazy.batch(10, 0, number)]
    assert len(set(chosen)) > 80
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith(f"cannot be used, and others take the turns of all such: {ODD}")


def test_items_are_made_once_and_on_one_thread() -> None:
    made: list[list[int]] = []
    threads = set()

    def make(numbers: list[int]) -> list[int | None]:
        made.append(numbers)
        threads.add(threading.current_thread())
        return list(numbers)

    lazy = LazyBatches(10, make, "")
    lazy.start(3, 0, 1)
    for number in range(3):
        lazy.batch(3, 0, number)
    assert lazy.call(make, [5]) == [5]
    expected = [order.batch_indices(10, 3, 0, number) for number in range(3)]
    assert sorted(made[:-1]) == sorted(expected)
    assert len(threads) == 1
    assert threading.main_thread() not in threads


def test_an_error_reaches_the_caller_and_hopeless_data_is_refused() -> None:
    def fail(numbers: list[int]) -> list[int | None]:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        LazyBatches(10, fail, "").batch(2, 0, 0)
    with pytest.raises(ConfigError, match=r"100 items in a row cannot be used: it is odd\."):
        LazyBatches(10, lambda numbers: [None] * len(numbers), ODD).batch(2, 0, 0)
