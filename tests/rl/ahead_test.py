from __future__ import annotations

from typing import Any

import numpy as np

from sqlr1_jax.rl.ahead import Ahead, Sampled
from sqlr1_jax.rollout.engine import Completions
from testing import tiny_models

SHAPE = (2, 3, 4)


def _completions() -> Completions:
    rng = np.random.default_rng(0)
    length_PG = rng.integers(1, 5, SHAPE[:2], np.int32)
    tokens_PGT = rng.integers(1, 99, SHAPE, np.int32) * (np.arange(4) < length_PG[..., None])
    return Completions(
        tokens_PGT.astype(np.int32), rng.standard_normal(SHAPE).astype(np.float32), length_PG, length_PG < 4
    )


def _sampled(step: int, completions: Completions) -> Sampled:
    nobody: Any = None
    return Sampled(step, [7, 8], [], [], completions, nobody)


def _ahead() -> Ahead:
    return Ahead(tiny_models.one_device(), SHAPE, _sampled)


def test_a_batch_is_taken_once_and_for_its_step_alone() -> None:
    ahead = _ahead()
    assert ahead.take(0) is None
    ahead.hold(_sampled(3, _completions()))
    taken = ahead.take(3)
    assert taken is not None and taken.step == 3
    assert ahead.take(3) is None
    ahead.hold(_sampled(3, _completions()))
    assert ahead.take(4) is None


def test_a_batch_comes_back_bit_for_bit() -> None:
    ahead, other = _ahead(), _ahead()
    ahead.hold(_sampled(5, _completions()))
    other.restore(ahead.tree())
    back = other.take(5)
    assert back is not None
    for one, want in zip(back.completions, _completions(), strict=True):
        assert one.dtype == want.dtype
        np.testing.assert_array_equal(one, want)


def test_without_a_batch_there_are_as_many_arrays_of_the_same_shapes() -> None:
    ahead = _ahead()
    none = ahead.tree()
    ahead.hold(_sampled(5, _completions()))
    there = ahead.tree()
    assert {k: v.shape for k, v in none["made"].items()} == {k: v.shape for k, v in there["made"].items()}
    assert (int(none["step"]), int(there["step"])) == (-1, 5)
    ahead.restore(none)
    assert ahead.take(-1) is None


def test_every_sample_is_told_of_with_its_tokens() -> None:
    made = _completions()
    told = made.ended()
    assert [(one.prompt, one.sample) for one in told] == list(np.ndindex(SHAPE[:2]))
    for p, g, ids in told:
        np.testing.assert_array_equal(ids, made.tokens_PGT[p, g, : made.length_PG[p, g]])
