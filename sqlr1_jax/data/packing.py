"""Rows for training: segments that share a prefix, in one of two layouts.

A group is a prefix (a prompt without its last token, or a schema) and the segments that continue it. A segment attends
to the prefix and to itself, never to another segment, and its positions continue those of the prefix. So a row computes
the prefix once for all segments, and each segment gets what it would get in a row of its own with a copy of the prefix.
SFT and GRPO use the same rows.

Shared-prefix row: one group per row, each part padded to a fixed length ('.': padding), so that attention needs no
[T, T] mask. For a group with prefix p, q, r and two segments, in RowLayout(prefix=4, segments=2, segment=3):

               |    prefix     | segment 1 | segment 2 |
    tokens     | p   q   r   . | a   b   c | d   e   . |
    prefix     | 1   1   1   0 | 1   1   1 | 1   1   0 |    group in the row, from 1
    segment    | 0   0   0   0 | 1   1   1 | 2   2   0 |    segment in the group, from 1; 0: the prefix
    positions  | 0   1   2   0 | 3   4   5 | 3   4   0 |

Packed row: several groups per row without gaps; attention needs a [T, T] mask made from `prefix` and `segment`:

               |            group 1            |    group 2    |       |
    tokens     | p   q   r   a   b   c   d   e | u   v   f   g | .   . |
    prefix     | 1   1   1   1   1   1   1   1 | 2   2   2   2 | 0   0 |
    segment    | 0   0   0   1   1   1   2   2 | 0   0   1   1 | 0   0 |
    positions  | 0   1   2   3   4   5   3   4 | 0   1   2   3 | 0   0 |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sqlr1_jax.errors import Sqlr1Error

Ints = Any  # int32: a numpy array, or a JAX array once it is on the device
Floats = Any  # float32, likewise


class Segment(NamedTuple):
    """A continuation of a prefix: `tokens[:-1]` are inputs, `tokens[1:]` their targets."""

    tokens: Sequence[int] | npt.NDArray[np.integer]  # n + 1 ids
    weight: Sequence[float] | npt.NDArray[np.floating]  # n: loss weight of each target; 0: no loss
    logprob: Sequence[float] | npt.NDArray[np.floating]  # n: each target's log-probability in the sampler; zeros in SFT
    prompt: int  # index of its prompt in the batch
    sample: int  # index of its sample among the prompt's


class Group(NamedTuple):
    """A prefix, which has no loss, and the segments that attend to it but not to each other."""

    prefix: Sequence[int] | npt.NDArray[np.integer]
    segments: Sequence[Segment]


class PackedRows(NamedTuple):
    """Rows of tokens, each field [B, T] and 0 at padding; the module docstring has diagrams."""

    tokens: Ints  # input ids
    targets: Ints  # id to predict; within a prefix, the next id, which has no loss
    positions: Ints  # rotary positions; those of a segment start at its prefix's length
    prefix: Ints  # number of the group in its row, from 1; 0: padding
    segment: Ints  # number of the segment in its group, from 1; 0: the prefix (or padding)
    prompt: Ints  # index of the prompt in the batch
    sample: Ints  # index of the sample among the prompt's
    weight: Floats  # loss weight of the target; 0: no loss
    logprob: Floats  # log-probability of the target under the sampler's weights


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """Lengths of a shared-prefix row, [prefix | segments × segment]."""

    prefix: int  # tokens
    segments: int  # number of segments
    segment: int  # tokens of each

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prefix + self.segments * self.segment


class PackingError(Sqlr1Error):
    """A group does not fit its row; the message names both lengths and the setting to raise."""


class _Placement(NamedTuple):
    """Where a prefix or segment goes."""

    group: int  # index among all groups
    row: int
    start: int  # position in the row of the first token
    group_number: int  # number of the group in its row, from 1
    segment_number: int  # number of the segment in its group, from 1; 0: the prefix


def packed_length(group: Group) -> int:
    """Tokens that the group takes in a packed row: its prefix and its segments' inputs."""
    return len(group.prefix) + sum(len(segment.tokens) - 1 for segment in group.segments)


def smallest_layout(groups: Sequence[Group], multiple: int = 16) -> RowLayout:
    """The smallest layout that fits every group, with lengths rounded up to `multiple` so that fewer shapes compile."""
    prefix = max((len(group.prefix) for group in groups), default=0)
    segment = max(map(_longest_segment, groups), default=0)
    count = max((len(group.segments) for group in groups), default=0)
    return RowLayout(_round_up(prefix, multiple), count, _round_up(segment, multiple))


def _longest_segment(group: Group) -> int:
    """Tokens of the longest segment's inputs."""
    return max((len(segment.tokens) - 1 for segment in group.segments), default=0)


class Buckets(NamedTuple):
    """How many sizes the parts of a shared-prefix row have."""

    prefix: int = 1
    segment: int = 1

    def sizes(self, layout: RowLayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes of the prefix and of the segments up to those of `layout`, ascending, by factors of √2."""
        return _sizes(layout.prefix, self.prefix), _sizes(layout.segment, self.segment)


ONE_SIZE = Buckets()  # every row has the largest sizes


def _sizes(largest: int, count: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_shorten(largest, 2 ** (-i / 2)) for i in reversed(range(count))))


def _shorten(size: int, fraction: float) -> int:
    """A fraction of a size, rounded up to a multiple that suits attention kernels: 8, or 128 for sizes from 1024."""
    return min(size, _round_up(math.ceil(size * fraction), 128 if size >= 1024 else 8))


def layout_fraction(group: Group, layout: RowLayout) -> float:
    """How much of a layout a group needs: the larger of the used fractions of its prefix and of a segment."""
    return max(len(group.prefix) / max(1, layout.prefix), _longest_segment(group) / max(1, layout.segment))


def shared_prefix_rows(groups: Sequence[Group], layout: RowLayout) -> PackedRows:
    """Rows of one group each, in the order of the groups, every part at its position in the layout.

    Raises:
      PackingError: a group does not fit the layout.
    """
    placements = []
    for row, group in enumerate(groups):
        _check_fits(group, layout)
        placements.append(_Placement(row, row, 0, 1, 0))
        starts = [layout.prefix + i * layout.segment for i in range(len(group.segments))]
        placements += [_Placement(row, row, start, 1, i + 1) for i, start in enumerate(starts)]
    return _scatter(groups, placements, len(groups), layout.length)


def pack_rows(groups: Sequence[Group], length: int) -> PackedRows:
    """Rows of `length` tokens with several groups each: longest group first, each in the first row that can hold it.

    Raises:
      PackingError: a group is longer than a row.
    """
    sizes = [packed_length(group) for group in groups]
    if groups and max(sizes) > length:
        worst = int(np.argmax(sizes))
        raise PackingError(
            f"group {worst} needs {sizes[worst]} tokens, but a packed row has {length}: raise rows.length "
            "(config.sft.rows.length or config.grpo.rows.length)."
        )
    used: list[int] = []  # tokens of each row
    counts: list[int] = []  # groups of each row
    placements = []
    for index in sorted(range(len(groups)), key=lambda i: -sizes[i]):
        row = next((r for r, tokens in enumerate(used) if tokens + sizes[index] <= length), len(used))
        if row == len(used):
            used.append(0)
            counts.append(0)
        counts[row] += 1
        placements += _consecutive_placements(groups[index], index, row, used[row], counts[row])
        used[row] += sizes[index]
    return _scatter(groups, placements, len(used), length)


def unshared(groups: Sequence[Group]) -> list[Group]:
    """The same segments, each in a group with its own copy of the prefix: the baseline for shared prefixes."""
    return [Group(group.prefix, [segment]) for group in groups for segment in group.segments]


def pad_rows(rows: PackedRows, count: int) -> PackedRows:
    """The rows, followed by empty ones up to `count`.

    Raises:
      PackingError: there are more than `count` rows.
    """
    missing = count - len(rows.tokens)
    if missing < 0:
        raise PackingError(f"{len(rows.tokens)} rows do not fit a batch of {count}.")
    fields: list[Any] = [np.pad(field, ((0, missing), (0, 0))) for field in rows]
    return PackedRows(*fields)


def padded_lengths(longest: int, sizes: int) -> list[int]:
    """At most `sizes` lengths to pad to, ascending in about equal steps: multiples of 16, and `longest` at the end."""
    return sorted({min(longest, _round_up(-(-longest * (i + 1) // sizes), 16)) for i in range(sizes)})


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _check_fits(group: Group, layout: RowLayout) -> None:
    if len(group.prefix) > layout.prefix:
        raise PackingError(
            f"a prefix needs {len(group.prefix)} tokens, but a row has {layout.prefix} for it: raise rows.prefix "
            "(config.sft.rows.prefix or config.grpo.rows.prefix)."
        )
    if len(group.segments) > layout.segments:
        raise PackingError(f"a group has {len(group.segments)} segments, but a row can hold only {layout.segments}.")
    longest = _longest_segment(group)
    if longest > layout.segment:
        raise PackingError(
            f"a segment needs {longest} tokens, but a row has {layout.segment} for each: raise rows.segment "
            "(config.sft.rows.segment or config.grpo.rows.segment)."
        )


def _consecutive_placements(group: Group, index: int, row: int, start: int, group_number: int) -> list[_Placement]:
    """Placements of a group's prefix and segments one after another, from `start`."""
    placements = [_Placement(index, row, start, group_number, 0)]
    start += len(group.prefix)
    for i, segment in enumerate(group.segments):
        placements.append(_Placement(index, row, start, group_number, i + 1))
        start += len(segment.tokens) - 1
    return placements


def _scatter(groups: Sequence[Group], placements: Sequence[_Placement], count: int, length: int) -> PackedRows:
    """`count` rows of `length` tokens with every part at its placement; one indexed assignment per field."""
    parts = [_prefix_or_segment(groups[p.group], p.segment_number) for p in placements]
    sizes = np.array([len(part.weight) for part in parts], np.int64)
    offset = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each token in its part
    # Index of each token in the flattened rows, and its part's first rotary position.
    flat_index = offset + np.repeat(np.array([p.row * length + p.start for p in placements], np.int64), sizes)
    first_positions = [len(groups[p.group].prefix) if p.segment_number else 0 for p in placements]

    def scatter(values: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
        field: npt.NDArray[Any] = np.zeros(count * length, dtype)
        field[flat_index] = values
        return field.reshape(count, length)

    def per_part(values: Sequence[int]) -> Ints:
        return scatter(np.repeat(np.array(values, np.int32), sizes), np.int32)

    def per_token(arrays: Sequence[Any], dtype: type) -> npt.NDArray[Any]:
        return scatter(np.concatenate([np.zeros(0, dtype), *arrays]), dtype)

    return PackedRows(
        tokens=per_token([part.tokens[:-1] for part in parts], np.int32),
        targets=per_token([part.tokens[1:] for part in parts], np.int32),
        positions=scatter(offset + np.repeat(np.array(first_positions, np.int64), sizes), np.int32),
        prefix=per_part([p.group_number for p in placements]),
        segment=per_part([p.segment_number for p in placements]),
        prompt=per_part([part.prompt for part in parts]),
        sample=per_part([part.sample for part in parts]),
        weight=per_token([part.weight for part in parts], np.float32),
        logprob=per_token([part.logprob for part in parts], np.float32),
    )


def _prefix_or_segment(group: Group, segment_number: int) -> Segment:
    """The segment of this number, from 1; for 0 the prefix as a segment without loss."""
    if segment_number:
        return group.segments[segment_number - 1]
    zeros = np.zeros(len(group.prefix), np.float32)
    prompt = group.segments[0].prompt if group.segments else 0
    return Segment(np.append(np.asarray(group.prefix, np.int32), 0), zeros, zeros, prompt, 0)
