from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, PackedRows, PackingError, RowLayout, Segment


def segment(tokens: list[int], prompt: int = 0, sample: int = 0) -> Segment:
    count = len(tokens) - 1
    return Segment(tokens, [0.5] * count, [-float(t) for t in tokens[1:]], prompt, sample)


@st.composite
def groups(draw: st.DrawFn) -> list[Group]:
    tokens = st.integers(1, 99)
    made = []
    for prompt in range(draw(st.integers(1, 5))):
        prefix = draw(st.lists(tokens, max_size=6))
        parts = draw(st.lists(st.lists(tokens, min_size=2, max_size=6), min_size=1, max_size=4))
        made.append(Group(prefix, [segment(part, prompt, sample) for sample, part in enumerate(parts)]))
    return made


def seen(rows: PackedRows) -> list[tuple]:
    """Every segment with the prefix it sees, read back from the rows by their numbers alone."""
    found = []
    for row in range(len(rows.tokens)):
        one = PackedRows(*(field[row] for field in rows))
        for group in range(1, one.prefix.max(initial=0) + 1):
            inside = one.prefix == group
            prefix = one.tokens[inside & (one.segment == 0)].tolist()
            for number in range(1, one.segment[inside].max(initial=0) + 1):
                here = inside & (one.segment == number)
                assert one.positions[here].tolist() == list(range(len(prefix), len(prefix) + here.sum()))
                tokens, targets, prompt, sample, logprob = (
                    getattr(one, name)[here].tolist() for name in ("tokens", "targets", "prompt", "sample", "logprob")
                )
                found.append((prefix, tokens, targets, set(prompt), set(sample), logprob))
    return found


def expected(given: list[Group]) -> list[tuple]:
    return [
        (list(g.prefix), list(s.tokens[:-1]), list(s.tokens[1:]), {s.prompt}, {s.sample}, list(s.logprob))
        for g in given
        for s in g.segments
    ]


@given(groups())
def test_strided_rows_hold_exactly_their_groups(made: list[Group]) -> None:
    rows = packing.shared_prefix_rows(made, packing.smallest_layout(made, multiple=4))
    assert len(rows.tokens) == len(made)
    assert seen(rows) == expected(made)
    assert rows.weight.sum() == sum(sum(s.weight) for g in made for s in g.segments)


@given(groups(), st.integers(0, 20))
def test_packed_rows_hold_exactly_their_groups(made: list[Group], slack: int) -> None:
    length = max(packing.packed_length(group) for group in made) + slack
    rows = packing.pack_rows(made, length)
    key = str
    assert sorted(seen(rows), key=key) == sorted(expected(made), key=key)
    assert (rows.prefix > 0).sum() == sum(packing.packed_length(group) for group in made)


@given(groups())
def test_padding_is_zero_in_every_field(made: list[Group]) -> None:
    rows = packing.shared_prefix_rows(made, packing.smallest_layout(made, multiple=8))
    empty = rows.prefix == 0
    assert all((field[empty] == 0).all() for field in rows)
    assert (rows.weight[rows.segment == 0] == 0).all()


@given(groups())
def test_unshared_rows_ask_for_the_same_targets(made: list[Group]) -> None:
    alone = packing.unshared(made)
    assert all(len(group.segments) == 1 for group in alone)
    assert seen(packing.shared_prefix_rows(alone, packing.smallest_layout(alone))) == expected(made)


def test_a_strided_row_has_exactly_these_fields() -> None:
    group = Group([7, 8], [segment([8, 1, 2], 3, 0), segment([8, 4], 3, 1)])
    rows = packing.shared_prefix_rows([group], RowLayout(prefix=3, segments=2, segment=2))
    assert rows.tokens.tolist() == [[7, 8, 0, 8, 1, 8, 0]]
    assert rows.targets.tolist() == [[8, 0, 0, 1, 2, 4, 0]]
    assert rows.positions.tolist() == [[0, 1, 0, 2, 3, 2, 0]]
    assert rows.prefix.tolist() == [[1, 1, 0, 1, 1, 1, 0]]
    assert rows.segment.tolist() == [[0, 0, 0, 1, 1, 2, 0]]
    assert rows.sample.tolist() == [[0, 0, 0, 0, 0, 1, 0]]
    assert rows.prompt.tolist() == [[3, 3, 0, 3, 3, 3, 0]]
    assert rows.weight.tolist() == [[0, 0, 0, 0.5, 0.5, 0.5, 0]]
    assert rows.logprob.tolist() == [[0, 0, 0, -1, -2, -4, 0]]
    assert [field.dtype for field in rows] == [np.int32] * 7 + [np.float32] * 2


def test_packing_takes_the_longest_first_and_fills_the_gaps() -> None:
    made = [Group([1] * n, [segment([1, 2])]) for n in (2, 6, 3, 4)]
    rows = packing.pack_rows(made, 8)
    assert rows.prefix.max(axis=1).tolist() == [1, 2, 1]
    assert (rows.prefix > 0).sum(axis=1).tolist() == [7, 5 + 3, 4]


def test_layout_rounds_up() -> None:
    made = [Group([1] * 17, [segment([1] * 5), segment([1] * 34)]), Group([1], [segment([1, 2])])]
    assert packing.smallest_layout(made) == RowLayout(prefix=32, segments=2, segment=48)
    assert packing.smallest_layout(made, multiple=1) == RowLayout(prefix=17, segments=2, segment=33)
    assert packing.smallest_layout(made).length == 32 + 2 * 48


@pytest.mark.parametrize(
    ("layout", "named"),
    [(RowLayout(1, 2, 9), "prefix"), (RowLayout(9, 1, 9), "2 segments"), (RowLayout(9, 2, 1), "segment")],
)
def test_a_group_too_large_is_refused_by_name(layout: RowLayout, named: str) -> None:
    group = Group([1, 2], [segment([1, 2, 3]), segment([1, 2])])
    with pytest.raises(PackingError, match=named):
        packing.shared_prefix_rows([group], layout)
    with pytest.raises(PackingError, match="takes 5 tokens"):
        packing.pack_rows([group], 4)


def test_pad_rows_appends_empty_rows() -> None:
    rows = packing.shared_prefix_rows([Group([1], [segment([1, 2])])], RowLayout(1, 1, 1))
    padded = packing.pad_rows(rows, 3)
    assert padded.tokens.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert padded.weight.sum() == rows.weight.sum()
    assert packing.pad_rows(rows, 1).targets.tolist() == rows.targets.tolist()
    with pytest.raises(PackingError, match="1 rows do not fit"):
        packing.pad_rows(rows, 0)


def test_no_groups_give_empty_rows() -> None:
    assert packing.pack_rows([], 8).tokens.shape == (0, 8)
    assert packing.shared_prefix_rows([], RowLayout(2, 2, 2)).weight.shape == (0, 6)
    assert packing.smallest_layout([]) == RowLayout(0, 0, 0)


def test_a_step_is_packed_in_milliseconds() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(20, 96, (32, 8))
    made = [
        Group(random.integers(1, 99, 60), [
            Segment(random.integers(1, 99, n + 1), np.ones(n), np.zeros(n), p, s) for s, n in enumerate(row)
        ])
        for p, row in enumerate(lengths)
    ]  # fmt: skip
    layout = packing.smallest_layout(made)

    def seconds() -> float:
        start = time.perf_counter()
        packing.shared_prefix_rows(made, layout)
        return time.perf_counter() - start

    assert min(seconds() for _ in itertools.repeat(None, 10)) < 0.02


@given(st.integers(1, 5000), st.integers(1, 8))
def test_padded_lengths_ascend_to_the_longest(longest: int, sizes: int) -> None:
    made = packing.padded_lengths(longest, sizes)
    assert made[-1] == longest and len(made) <= sizes
    assert made == sorted(set(made)) and all(size % 16 == 0 for size in made[:-1])
    assert all(b - a <= -(-longest // sizes) + 16 for a, b in itertools.pairwise(made))
