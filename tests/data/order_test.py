import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.data import order

counts = st.integers(1, 40)
seeds = st.integers(0, 2**32)


@given(counts, st.integers(1, 50), seeds, st.integers(0, 5))
def test_every_epoch_draws_each_item_once(count: int, per_step: int, seed: int, epoch: int) -> None:
    begin, end = epoch * count, (epoch + 1) * count
    steps = range(begin // per_step, -(-end // per_step))
    drawn = [index for step in steps for index in order.batch_indices(count, per_step, seed, step)]
    offset = begin - steps[0] * per_step
    assert sorted(drawn[offset : offset + count]) == list(range(count))


@given(counts, st.integers(1, 50), seeds, st.integers(0, 100))
def test_a_batch_does_not_depend_on_earlier_calls(count: int, per_step: int, seed: int, step: int) -> None:
    first = order.batch_indices(count, per_step, seed, step)
    for other in range(3):
        order.batch_indices(count, per_step, seed, other)
    assert order.batch_indices(count, per_step, seed, step) == first
    assert len(first) == per_step


@given(counts, seeds, st.integers(1, 7), st.integers(1, 7))
def test_the_order_does_not_depend_on_the_batch_size(count: int, seed: int, size: int, other_size: int) -> None:
    length = size * other_size * 3

    def all_indices(per_step: int) -> list[int]:
        return [i for step in range(length // per_step) for i in order.batch_indices(count, per_step, seed, step)]

    assert all_indices(size) == all_indices(other_size)


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {tuple(order.batch_indices(50, 50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_positions_of_an_item_are_uniform() -> None:
    """In 2000 epochs item 0 is at each of 5 positions about 400 times; five standard deviations are 90."""
    counts = collections.Counter(order.batch_indices(5, 5, 0, epoch).index(0) for epoch in range(2000))
    assert all(310 < counts[position] < 490 for position in range(5))


def test_drawing_from_no_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="no items"):
        order.batch_indices(0, 1, 0, 0)


@given(counts, st.integers(0, 60), seeds)
def test_a_subset_is_reproducible_ascending_and_without_duplicates(count: int, size: int, seed: int) -> None:
    indices = order.subset(count, size, seed)
    assert indices == sorted(set(indices)) == order.subset(count, size, seed)
    assert len(indices) == min(size, count)
    assert set(indices) <= set(range(count))


@given(st.integers(2, 40), st.integers(1, 39), seeds)
def test_a_smaller_subset_is_contained_in_a_larger_one(count: int, size: int, seed: int) -> None:
    assert set(order.subset(count, size - 1, seed)) <= set(order.subset(count, size, seed))
