from __future__ import annotations

import statistics

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sqlr1_jax import config
from sqlr1_jax.data import answer
from sqlr1_jax.rl import reward
from sqlr1_jax.rl.advantage import advantage
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

pytestmark = pytest.mark.usefixtures("compiles_fast")

KEY = jax.random.key(0)
ONES = np.ones(4, np.float32)
P, G, R = 5, 7, 4
CFG = config.AdvantageConfig

_rewards = arrays.arrays(np.float32, (P, G, R), elements=st.sampled_from([-3.0, -2.0, -1.0, 0.0, 0.25, 1.0, 2.0, 3.0]))
_flags = arrays.arrays(bool, (P, G))
_sound = arrays.arrays(bool, P)


def _run(rewards: np.ndarray, correct: np.ndarray, sound: np.ndarray, cfg: config.AdvantageConfig) -> tuple:
    return tuple(np.asarray(x) for x in advantage(rewards, correct, sound, ONES, KEY, cfg))


def _normalized(values: list[float]) -> list[float]:
    """(r − mean) / (std + 1e-6) with the unbiased standard deviation, by the standard library."""
    mean, std = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / (std + 1e-6) for value in values]


def _kept(correct: np.ndarray, sound: np.ndarray, cfg: config.AdvantageConfig) -> list[bool]:
    mixed = [any(group) and not all(group) for group in correct.tolist()]
    return [ok and (cfg.keep == "all" or mix) for ok, mix in zip(sound.tolist(), mixed, strict=True)]


@given(_rewards, _flags, _sound, st.sampled_from(["mixed", "all"]))
def test_group_normalization_is_the_papers_formula(
    rewards: np.ndarray, correct: np.ndarray, sound: np.ndarray, keep: str
) -> None:
    cfg = CFG(normalize="group", keep=keep)
    adv, kept = _run(rewards, correct, sound, cfg)
    assert kept.tolist() == _kept(correct, sound, cfg)
    for p in range(P):
        want = _normalized(rewards[p].sum(-1).tolist()) if kept[p] else [0.0] * G
        np.testing.assert_allclose(adv[p], want, rtol=1e-4, atol=1e-5)


@given(_rewards, _flags, _sound)
def test_without_normalization_advantages_are_distances_to_the_mean(
    rewards: np.ndarray, correct: np.ndarray, sound: np.ndarray
) -> None:
    adv, kept = _run(rewards, correct, sound, CFG(normalize="none"))
    for p in range(P):
        totals = rewards[p].sum(-1).tolist()
        want = [total - statistics.fmean(totals) if kept[p] else 0.0 for total in totals]
        np.testing.assert_allclose(adv[p], want, rtol=1e-5, atol=1e-5)


@given(_rewards, _flags, _sound)
def test_parts_are_normalized_per_group_and_their_sum_over_the_batch(
    rewards: np.ndarray, correct: np.ndarray, sound: np.ndarray
) -> None:
    adv, kept = _run(rewards, correct, sound, CFG(normalize="parts"))
    sums = np.array([np.sum([_normalized(part.tolist()) for part in group.T], 0) for group in rewards.astype(float)])
    counted = sums[kept].ravel()
    if not counted.size:
        assert not adv.any()
        return
    want = np.where(kept[:, None], (sums - counted.mean()) / (counted.std() + 1e-6), 0.0)
    np.testing.assert_allclose(adv, want, rtol=1e-3, atol=1e-3)


def test_weights_of_parts_survive_normalization() -> None:
    """Two parts that disagree: what a part weighs decides whose order the advantages have."""
    rewards = np.asarray([[[1, 0], [2, 0], [3, 0], [0, 9]]], np.float32)
    right, sound = np.asarray([[True, False, False, False]]), np.ones(1, bool)
    cfg = CFG(normalize="parts")
    for weights, best in (((1.0, 0.1), 2), ((0.1, 1.0), 3), ((-1.0, 0.1), 3), ((-0.1, -1.0), 0)):
        scaled = np.asarray(weights, np.float32)
        adv, _ = advantage(rewards * scaled, right, sound, scaled, KEY, cfg)
        assert int(np.argmax(adv[0])) == best


@given(_rewards, st.sampled_from(["group", "none", "parts"]), st.floats(-7, 7, width=32))
def test_equal_rewards_have_zero_advantage(rewards: np.ndarray, normalize: str, level: float) -> None:
    """Not even rounding: 1e-7 of it over a standard deviation of 1e-7 would count in full."""
    rewards = np.broadcast_to(rewards[:, :1] + np.float32(level / 3), rewards.shape)
    adv, _ = _run(rewards, np.zeros((P, G), bool), np.ones(P, bool), CFG(normalize=normalize, keep="all"))
    assert np.abs(adv).max() <= (1e-6 if normalize == "parts" else 0)


@given(_rewards, _flags, _sound)
def test_shuffling_permutes_advantages_of_kept_groups(
    rewards: np.ndarray, correct: np.ndarray, sound: np.ndarray
) -> None:
    plain, kept = _run(rewards, correct, sound, CFG())
    shuffled, also_kept = _run(rewards, correct, sound, CFG(shuffled=True))
    np.testing.assert_array_equal(kept, also_kept)
    before, after = (np.sort(x[kept], axis=None) for x in (plain, shuffled))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
    assert not shuffled[~kept].any()


def test_shuffling_depends_on_its_key_and_crosses_groups() -> None:
    rewards = np.random.default_rng(0).normal(size=(8, 8, 1)).astype(np.float32)
    correct = np.arange(64).reshape(8, 8) % 2 == 0
    cfg = CFG(shuffled=True)
    one, again, other = (
        np.asarray(advantage(rewards, correct, np.ones(8, bool), ONES, jax.random.key(k), cfg)[0]) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.5
    plain = _run(rewards, correct, np.ones(8, bool), CFG())[0]
    assert not any(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(one, plain, strict=True))


def _all_right(thoughts: list[int]) -> np.ndarray:
    """Rewards [1, G, R] of a group in which every completion is right and they think at different lengths."""
    said = [answer.read(answer.write("x" * n, "SELECT 1", "reasoning"), "reasoning") for n in thoughts]
    return reward.stack([[reward.parts(one, Outcome(OutcomeKind.MATCH), config.RewardConfig()) for one in said]])


def test_defect_11_differences_in_length_alone_give_no_advantage() -> None:
    """Four right answers, a few characters apart: the paper's rule makes full-size advantages of that."""
    rewards = _all_right([10, 11, 12, 13])
    assert float(np.ptp(rewards.sum(-1))) < 0.001
    right, sound = np.ones((1, 4), bool), np.ones(1, bool)
    for normalize in ("group", "none", "parts"):
        adv, kept = _run(rewards, right, sound, CFG(normalize=normalize))
        assert not kept.any()
        assert not adv.any()
    adv, kept = _run(rewards, right, sound, CFG(keep="all"))  # the defect, by its name
    assert kept.all()
    assert np.abs(adv).max() > 0.9


def test_defect_11_without_normalization_length_gives_a_tiny_advantage() -> None:
    rewards = _all_right([10, 11, 12, 13])
    adv, _ = _run(rewards, np.ones((1, 4), bool), np.ones(1, bool), CFG(normalize="none", keep="all"))
    assert 0 < np.abs(adv).max() < 0.001


def test_defect_11_the_default_filters_groups_by_correctness() -> None:
    assert config.GrpoConfig().advantage == CFG(normalize="group", keep="mixed")


@pytest.mark.parametrize("keep", ["mixed", "all"])
def test_a_group_with_a_failing_gold_is_filtered(keep: str) -> None:
    rewards = np.random.default_rng(0).normal(size=(P, G, R)).astype(np.float32)
    correct = np.tile([True, False, False, True, True, False, False], (P, 1))
    sound = np.array([True, False, True, False, True])
    adv, kept = _run(rewards, correct, sound, CFG(keep=keep))
    np.testing.assert_array_equal(kept, sound)
    assert not adv[~sound].any()
    assert adv[sound].all()


def test_epsilon_is_the_papers() -> None:
    """Rewards a millionth apart, whose standard deviation is about as small as what is added to it."""
    rewards = np.asarray([[[0.0], [2e-6]]], np.float32)
    adv, _ = _run(rewards, np.asarray([[True, False]]), np.ones(1, bool), CFG(normalize="group"))
    want = 1e-6 / (2**0.5 * 1e-6 + 1e-6)
    np.testing.assert_allclose(adv, [[-want, want]], rtol=1e-4)
