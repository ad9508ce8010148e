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
def random_groups(draw: st.DrawFn) -> list[Group]:
    tokens = st.integers(1, 99)
    drawn = []
    for prompt in range(draw(st.integers(1, 5))):
        prefix = draw(st.lists(tokens, max_size=6))
        texts = draw(st.lists(st.lists(tokens, min_size=2, max_size=6), min_size=1, max_size=4))
        drawn.append(Group(prefix, [segment(text, prompt, sample) for sample, text in enumerate(texts)]))
    return drawn


def segments_in_rows(rows: PackedRows) -> list[tuple]:
    """Every segment with its prefix, read back from the rows by group and segment number."""
    read = []
    for index in range(len(rows.tokens)):
        row = PackedRows(*(field[index] for field in rows))
        for group in range(1, row.prefix.max(initial=0) + 1):
            in_group = row.prefix == group
            prefix = row.tokens[in_group & (row.segment == 0)].tolist()
            for number in range(1, row.segment[in_group].max(initial=0) + 1):
                in_segment = in_group & (row.segment == number)
                positions = list(range(len(prefix), len(prefix) + in_segment.sum()))
                assert row.positions[in_segment].tolist() == positions
                tokens, targets, prompt, sample, logprob = (
                    field[in_segment].tolist()
                    for field in (row.tokens, row.targets, row.prompt, row.sample, row.logprob)
                )
                read.append((prefix, tokens, targets, set(prompt), set(sample), logprob))
    return read


def segments_in_groups(groups: list[Group]) -> list[tuple]:
    """Every segment with its prefix, in the form of `segments_in_rows`."""
    return [
        (list(g.prefix), list(s.tokens[:-1]), list(s.tokens[1:]), {s.prompt}, {s.sample}, list(s.logprob))
        for g in groups
        for s in g.segments
    ]


@given(random_groups())
def test_shared_prefix_rows_hold_exactly_their_groups(groups: list[Group]) -> None:
    rows = packing.shared_prefix_rows(groups, packing.smallest_layout(groups, multiple=4))
    assert len(rows.tokens) == len(groups)
    assert segments_in_rows(rows) == segments_in_groups(groups)
    assert rows.weight.sum() == sum(sum(s.weight) for g in groups for s in g.segments)


@given(random_groups(), st.integers(0, 20))
def test_packed_rows_hold_exactly_their_groups(groups: list[Group], slack: int) -> None:
    length = max(packing.packed_length(group) for group in groups) + slack
    rows = packing.pack_rows(groups, length)
    assert sorted(segments_in_rows(rows), key=str) == sorted(segments_in_groups(groups), key=str)
    assert (rows.prefix > 0).sum() == sum(packing.packed_length(group) for group in groups)


@given(random_groups())
def test_padding_is_zero_in_every_field(groups: list[Group]) -> None:
    rows = packing.shared_prefix_rows(groups, packing.smallest_layout(groups, multiple=8))
    padding = rows.prefix == 0
    assert all((field[padding] == 0).all() for field in rows)
    assert (rows.weight[rows.segment == 0] == 0).all()


@given(random_groups())
def test_unshared_rows_have_the_same_inputs_and_targets(groups: list[Group]) -> None:
    unshared = packing.unshared(groups)
    assert all(len(group.segments) == 1 for group in unshared)
    rows = packing.shared_prefix_rows(unshared, packing.smallest_layout(unshared))
    assert segments_in_rows(rows) == segments_in_groups(groups)


def test_a_shared_prefix_row_in_full() -> None:
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


def test_packing_starts_with_the_longest_group_and_fills_the_first_row_with_room() -> None:
    groups = [Group([1] * n, [segment([1, 2])]) for n in (2, 6, 3, 4)]
    rows = packing.pack_rows(groups, 8)
    assert rows.prefix.max(axis=1).tolist() == [1, 2, 1]
    assert (rows.prefix > 0).sum(axis=1).tolist() == [7, 5 + 3, 4]


def test_the_smallest_layout_rounds_lengths_up() -> None:
    groups = [Group([1] * 17, [segment([1] * 5), segment([1] * 34)]), Group([1], [segment([1, 2])])]
    assert packing.smallest_layout(groups) == RowLayout(prefix=32, segments=2, segment=48)
    assert packing.smallest_layout(groups, multiple=1) == RowLayout(prefix=17, segments=2, segment=33)
    assert packing.smallest_layout(groups).length == 32 + 2 * 48


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (RowLayout(1, 2, 9), r"prefix needs 2 tokens, .* raise rows\.prefix"),
        (RowLayout(9, 1, 9), "2 segments"),
        (RowLayout(9, 2, 1), r"segment needs 2 tokens, .* raise rows\.segment"),
    ],
)
def test_a_group_that_does_not_fit_is_an_error_that_names_the_setting(layout: RowLayout, message: str) -> None:
    group = Group([1, 2], [segment([1, 2, 3]), segment([1, 2])])
    with pytest.raises(PackingError, match=message):
        packing.shared_prefix_rows([group], layout)
    with pytest.raises(PackingError, match="needs 5 tokens"):
        packing.pack_rows([group], 4)


def test_pad_rows_appends_empty_rows() -> None:
    rows = packing.shared_prefix_rows([Group([1], [segment([1, 2])])], RowLayout(1, 1, 1))
    padded = packing.pad_rows(rows, 3)
    assert padded.tokens.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert padded.weight.sum() == rows.weight.sum()
    assert packing.pad_rows(rows, 1).targets.tolist() == rows.targets.tolist()
    with pytest.raises(PackingError, match="1 rows do not fit"):
        packing.pad_rows(rows, 0)


def test_no_groups_pack_into_no_rows() -> None:
    assert packing.pack_rows([], 8).tokens.shape == (0, 8)
    assert packing.shared_prefix_rows([], RowLayout(2, 2, 2)).weight.shape == (0, 6)
    assert packing.smallest_layout([]) == RowLayout(0, 0, 0)


def test_a_batch_is_packed_in_milliseconds() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 96, (32, 8))
    groups = [
        Group(rng.integers(1, 99, 60), [
            Segment(rng.integers(1, 99, n + 1), np.ones(n), np.zeros(n), prompt, sample)
            for sample, n in enumerate(lengths_of_prompt)
        ])
        for prompt, lengths_of_prompt in enumerate(lengths)
    ]  # fmt: skip
    layout = packing.smallest_layout(groups)

    def seconds() -> float:
        start = time.perf_counter()
        packing.shared_prefix_rows(groups, layout)
        return time.perf_counter() - start

    assert min(seconds() for _ in itertools.repeat(None, 10)) < 0.02


@given(st.integers(1, 5000), st.integers(1, 8))
def test_padded_lengths_ascend_in_even_steps_to_the_longest(longest: int, sizes: int) -> None:
    lengths = packing.padded_lengths(longest, sizes)
    assert lengths[-1] == longest and len(lengths) <= sizes
    assert lengths == sorted(set(lengths)) and all(length % 16 == 0 for length in lengths[:-1])
    assert all(b - a <= -(-longest // sizes) + 16 for a, b in itertools.pairwise(lengths))
