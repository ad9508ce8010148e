import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.data import order

counts = st.integers(1, 40)
seeds = st.integers(0, 2**32)


@given(counts, st.integers(1, 50), seeds, st.integers(0, 5))
def test_every_epoch_holds_each_item_once(count: int, per_step: int, seed: int, epoch: int) -> None:
    begin, end = epoch * count, (epoch + 1) * count
    steps = range(begin // per_step, -(-end // per_step))
    taken = [index for step in steps for index in order.batch_indices(count, per_step, seed, step)]
    offset = begin - steps[0] * per_step
    assert sorted(taken[offset : offset + count]) == list(range(count))


@given(counts, st.integers(1, 50), seeds, st.integers(0, 100))
def test_a_steps_items_depend_on_count_seed_and_step_alone(count: int, per_step: int, seed: int, step: int) -> None:
    fresh = order.batch_indices(count, per_step, seed, step)
    for other in range(3):
        order.batch_indices(count, per_step, seed, other)
    assert order.batch_indices(count, per_step, seed, step) == fresh
    assert len(fresh) == per_step


@given(counts, seeds, st.integers(1, 7), st.integers(1, 7))
def test_the_order_does_not_depend_on_how_it_is_cut_into_steps(count: int, seed: int, one: int, other: int) -> None:
    length = one * other * 3

    def walk(per_step: int) -> list[int]:
        return [i for step in range(length // per_step) for i in order.batch_indices(count, per_step, seed, step)]

    assert walk(one) == walk(other)


def test_every_epoch_and_seed_has_a_different_order() -> None:
    orders = {tuple(order.batch_indices(50, 50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_an_item_is_equally_likely_at_every_position() -> None:
    """Item 0 stands at each of 5 places about as often: 2000 epochs, 400 each, five standard deviations are 90."""
    places = collections.Counter(order.batch_indices(5, 5, 0, epoch).index(0) for epoch in range(2000))
    assert all(310 < places[place] < 490 for place in range(5))


def test_nothing_to_take_is_an_error() -> None:
    with pytest.raises(ValueError, match="no items"):
        order.batch_indices(0, 1, 0, 0)


@given(counts, st.integers(0, 60), seeds)
def test_a_subset_is_deterministic_sorted_and_unique(count: int, size: int, seed: int) -> None:
    chosen = order.subset(count, size, seed)
    assert chosen == sorted(set(chosen)) == order.subset(count, size, seed)
    assert len(chosen) == min(size, count)
    assert set(chosen) <= set(range(count))


@given(st.integers(2, 40), st.integers(1, 39), seeds)
def test_a_smaller_subset_is_part_of_a_larger(count: int, size: int, seed: int) -> None:
    assert set(order.subset(count, size - 1, seed)) <= set(order.subset(count, size, seed))
