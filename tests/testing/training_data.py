"""Random groups of completions, their plain texts, and a microbatch as a loss receives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sqlr1_jax.data.packing import Group, PackedRows, Segment
from sqlr1_jax.train.batch import Batch


def random_groups(prompts: int, samples: int, seed: int = 0, longest: int = 7) -> list[Group]:
    """GRPO groups with random tokens, lengths (up to `longest`) and sampling log-probabilities."""
    rng = np.random.default_rng(seed)

    def segment(p: int, g: int) -> Segment:
        count = int(rng.integers(1, longest + 1))
        return Segment(rng.integers(2, 37, count + 1), np.ones(count), -rng.uniform(1, 5, count), p, g)

    return [
        Group(rng.integers(2, 37, int(rng.integers(1, longest + 1))), [segment(p, g) for g in range(samples)])
        for p in range(prompts)
    ]


def plain_texts(groups: Sequence[Group]) -> list[tuple[np.ndarray, int, Segment]]:
    """Each segment's plain text, prefix included, as (token ids, length of the prefix, segment)."""
    return [
        (np.concatenate([group.prefix, segment.tokens]).astype(np.int32), len(group.prefix), segment)
        for group in groups
        for segment in group.segments
    ]


def microbatch(
    rows: PackedRows,
    advantage_BT: Any = None,
    old_BT: Any = None,
    reference_BT: Any = None,
) -> Any:
    """A Batch of one microbatch with numpy arrays [b, T].

    By default advantages are 1, old log-probabilities are those of the rows, and the reference's are 0.
    """
    ones_BT: Any = np.ones(rows.tokens.shape, np.float32)
    count: Any = np.int32(1)
    return Batch(
        rows=rows,
        advantage_MBT=ones_BT if advantage_BT is None else advantage_BT,
        old_MBT=rows.logprob if old_BT is None else old_BT,
        reference_MBT=0 * ones_BT if reference_BT is None else reference_BT,
        count=count,
    )
