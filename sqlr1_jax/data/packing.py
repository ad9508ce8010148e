"""Rows for training: many segments that see one shared prefix, laid out with or without holes.

A group is a prefix (a prompt without its last token, or a schema) and the segments that continue it. A
segment sees the prefix and itself, and its positions go on where the prefix ends, so a row computes a
prefix once for all its segments and gives each of them what it would have computed alone (docs/design.md,
"A prompt is computed once"). SFT and GRPO eat the same rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sqlr1_jax.errors import Sqlr1Error

Ints = Any  # int32: numpy where rows are made, JAX's once they are on the device
Floats = Any  # float32, likewise


class Segment(NamedTuple):
    """A continuation of a prefix: `tokens[:-1]` go in, `tokens[1:]` are asked for."""

    tokens: Sequence[int] | npt.NDArray[np.integer]  # n + 1 ids
    weight: Sequence[float] | npt.NDArray[np.floating]  # n: share of each target in the loss
    logprob: Sequence[float] | npt.NDArray[np.floating]  # n: under the weights that sampled; zeros for SFT
    prompt: int  # its place in the batch's prompts
    sample: int  # its place in the prompt's samples


class Group(NamedTuple):
    """A prefix, without loss, and the segments that all see it and never each other."""

    prefix: Sequence[int] | npt.NDArray[np.integer]
    segments: Sequence[Segment]


class PackedRows(NamedTuple):
    """What training eats. Every field is [B, T]; a place that holds no token is 0 in all of them."""

    tokens: Ints
    targets: Ints  # the id asked for; on prefixes the next one, which weighs nothing
    positions: Ints  # of rotary embeddings: a segment's begin at its prefix's length
    prefix: Ints  # which of the row's groups, from 1; 0: no token
    segment: Ints  # which of the group's segments, from 1; 0: the prefix itself
    prompt: Ints
    sample: Ints
    weight: Floats
    logprob: Floats


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """A strided row, [prefix | segments × segment]: fixed places, so that attention needs no [T, T] mask."""

    prefix: int  # tokens
    segments: int  # how many
    segment: int  # tokens each

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prefix + self.segments * self.segment


class PackingError(Sqlr1Error):
    """A group that does not fit its row; the message says by how much, and what to raise."""


class _Piece(NamedTuple):
    """A run of tokens and where it goes."""

    group: int
    row: int
    start: int  # place in the row
    prefix: int  # 1-based group number within the row
    segment: int  # 0 for the prefix


def packed_length(group: Group) -> int:
    """Tokens the group takes in a packed row: its prefix and its segments' inputs."""
    return len(group.prefix) + sum(len(s.tokens) - 1 for s in group.segments)


def smallest_layout(groups: Sequence[Group], multiple: int = 16) -> RowLayout:
    """The smallest layout that takes every group, rounded up to a multiple: fewer shapes to compile."""
    prefix = max((len(g.prefix) for g in groups), default=0)
    segment = max((len(s.tokens) - 1 for g in groups for s in g.segments), default=0)
    count = max((len(g.segments) for g in groups), default=0)
    return RowLayout(_up(prefix, multiple), count, _up(segment, multiple))


def layout_ladder(layout: RowLayout, count: int) -> tuple[RowLayout, ...]:
    """At most `count` layouts of as many segments up to `layout`, each √2 shorter than the next; smallest first."""
    shares = [2 ** (-i / 2) for i in reversed(range(count))]
    sizes = [(_shorter(layout.prefix, share), _shorter(layout.segment, share)) for share in shares]
    return tuple(RowLayout(prefix, layout.segments, segment) for prefix, segment in dict.fromkeys(sizes))


def _shorter(size: int, share: float) -> int:
    """A share of a size, rounded up to what kernels like: to 8, or where that is little to 128."""
    return min(size, _up(math.ceil(size * share), 128 if size >= 1024 else 8))


def layout_fraction(group: Group, layout: RowLayout) -> float:
    """The share of its layout that a group needs."""
    longest = max((len(s.tokens) - 1 for s in group.segments), default=0)
    return max(len(group.prefix) / max(1, layout.prefix), longest / max(1, layout.segment))


def shared_prefix_rows(groups: Sequence[Group], layout: RowLayout) -> PackedRows:
    """One row a group, each part at its layout's place, padded behind. Raises `PackingError`."""
    pieces = []
    for row, group in enumerate(groups):
        _check_fits(group, layout)
        pieces.append(_Piece(row, row, 0, 1, 0))
        starts = [layout.prefix + i * layout.segment for i in range(len(group.segments))]
        pieces += [_Piece(row, row, start, 1, i + 1) for i, start in enumerate(starts)]
    return _fill(groups, pieces, len(groups), layout.length)


def pack_rows(groups: Sequence[Group], length: int) -> PackedRows:
    """Groups side by side in rows of `length`, the longest first, each in the first row with room.

    Raises `PackingError` when one is longer than a row.
    """
    sizes = [packed_length(group) for group in groups]
    if groups and max(sizes) > length:
        worst = int(np.argmax(sizes))
        raise PackingError(f"group {worst} takes {sizes[worst]} tokens, a packed row {length}: raise rows.length.")
    used: list[int] = []
    count: list[int] = []
    pieces = []
    for index in sorted(range(len(groups)), key=lambda i: -sizes[i]):
        row = next((r for r, n in enumerate(used) if n + sizes[index] <= length), len(used))
        if row == len(used):
            used.append(0)
            count.append(0)
        count[row] += 1
        pieces += _side_by_side(groups[index], index, row, used[row], count[row])
        used[row] += sizes[index]
    return _fill(groups, pieces, len(used), length)


def unshared(groups: Sequence[Group]) -> list[Group]:
    """Each segment with a prefix of its own: the rows that sharing is measured against."""
    return [Group(group.prefix, [segment]) for group in groups for segment in group.segments]


def pad_rows(rows: PackedRows, count: int) -> PackedRows:
    """The rows, and empty ones behind them up to `count`."""
    missing = count - len(rows.tokens)
    if missing < 0:
        raise PackingError(f"{len(rows.tokens)} rows do not fit a batch of {count}.")
    fields: list[Any] = [np.pad(field, ((0, missing), (0, 0))) for field in rows]
    return PackedRows(*fields)


def padded_lengths(longest: int, sizes: int) -> list[int]:
    """Up to `sizes` lengths to pad to, ascending in equal steps of whole 16s; the last is `longest`."""
    return sorted({min(longest, _up(-(-longest * (i + 1) // sizes), 16)) for i in range(sizes)})


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _check_fits(group: Group, layout: RowLayout) -> None:
    if len(group.prefix) > layout.prefix:
        raise PackingError(f"a prefix of {len(group.prefix)} tokens: raise rows.prefix past {layout.prefix}.")
    if len(group.segments) > layout.segments:
        raise PackingError(f"{len(group.segments)} segments do not fit a row of {layout.segments}.")
    longest = max((len(s.tokens) - 1 for s in group.segments), default=0)
    if longest > layout.segment:
        raise PackingError(f"a segment of {longest} tokens: raise rows.segment past {layout.segment}.")


def _side_by_side(group: Group, index: int, row: int, start: int, number: int) -> list[_Piece]:
    pieces = [_Piece(index, row, start, number, 0)]
    start += len(group.prefix)
    for i, segment in enumerate(group.segments):
        pieces.append(_Piece(index, row, start, number, i + 1))
        start += len(segment.tokens) - 1
    return pieces


def _fill(groups: Sequence[Group], pieces: Sequence[_Piece], count: int, length: int) -> PackedRows:
    """Scatters all pieces at once: one flat index, one assignment a field."""
    parts = [_part(groups[p.group], p.segment) for p in pieces]
    sizes = np.array([len(part.weight) for part in parts], np.int64)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = within + np.repeat(np.array([p.row * length + p.start for p in pieces], np.int64), sizes)
    offsets = [len(groups[p.group].prefix) if p.segment else 0 for p in pieces]

    def scatter(values: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
        field: npt.NDArray[Any] = np.zeros(count * length, dtype)
        field[place] = values
        return field.reshape(count, length)

    def each(values: Sequence[int]) -> Ints:
        return scatter(np.repeat(np.array(values, np.int32), sizes), np.int32)

    def joined(arrays: Sequence[Any], dtype: type) -> npt.NDArray[Any]:
        return scatter(np.concatenate([np.zeros(0, dtype), *arrays]), dtype)

    return PackedRows(
        tokens=joined([part.tokens[:-1] for part in parts], np.int32),
        targets=joined([part.tokens[1:] for part in parts], np.int32),
        positions=scatter(within + np.repeat(np.array(offsets, np.int64), sizes), np.int32),
        prefix=each([p.prefix for p in pieces]),
        segment=each([p.segment for p in pieces]),
        prompt=each([part.prompt for part in parts]),
        sample=each([part.sample for part in parts]),
        weight=joined([part.weight for part in parts], np.float32),
        logprob=joined([part.logprob for part in parts], np.float32),
    )


def _part(group: Group, number: int) -> Segment:
    """The group's segment by its 1-based number; 0 is the prefix, as a segment that weighs nothing."""
    if number:
        return group.segments[number - 1]
    nothing = np.zeros(len(group.prefix), np.float32)
    prompt = group.segments[0].prompt if group.segments else 0
    return Segment(np.append(np.asarray(group.prefix, np.int32), 0), nothing, nothing, prompt, 0)
