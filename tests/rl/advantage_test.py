from __future__ import annotations

import statistics

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sqlr1_jax import config
from sqlr1_jax.config import AdvantageConfig
from sqlr1_jax.data import answer
from sqlr1_jax.rl import advantage, reward
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

pytestmark = pytest.mark.usefixtures("compiles_fast")

KEY = jax.random.key(0)
ONES = np.ones(4, np.float32)
P, G, R = 5, 7, 4

_rewards = arrays.arrays(np.float32, (P, G, R), elements=st.sampled_from([-3.0, -2.0, -1.0, 0.0, 0.25, 1.0, 2.0, 3.0]))
_flags = arrays.arrays(bool, (P, G))
_gold_ran = arrays.arrays(bool, P)


def test_a_batch_is_its_first_round_with_gaps_filled_in_order() -> None:
    def batch(*rounds: list[int]) -> list[int]:
        return advantage.fill_batch(np.concatenate(rounds).astype(bool), 4).tolist()

    assert batch([1, 0, 0, 1]) == [0, 1, 2, 3]
    assert batch([1, 0, 1, 0], [0, 1, 1, 1]) == [0, 5, 2, 6]
    assert batch([0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]) == [5, 11, 2, 3]
    assert batch([0, 0, 0, 0], [1, 1, 1, 1]) == [4, 5, 6, 7]
    assert batch([1, 1, 1, 1], [1, 1, 1, 1]) == [0, 1, 2, 3]


@given(st.lists(st.booleans(), min_size=4, max_size=20).map(lambda flags: np.array(flags[: len(flags) // 4 * 4])))
def test_a_batch_has_the_first_kept_groups_or_all_there_are(keep: np.ndarray) -> None:
    batch = advantage.fill_batch(keep, 4)
    assert batch.shape == (4,) and len(set(batch.tolist())) == 4
    assert sorted(i for i in batch.tolist() if keep[i]) == np.flatnonzero(keep)[:4].tolist()


def _run(rewards: np.ndarray, correct: np.ndarray, gold_ran: np.ndarray, settings: AdvantageConfig) -> tuple:
    return tuple(np.asarray(x) for x in advantage.compute_advantages(rewards, correct, gold_ran, ONES, KEY, settings))


def _normalized(values: list[float]) -> list[float]:
    """(r − mean) / (std + 1e-6) with the unbiased standard deviation, by the standard library."""
    mean, std = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / (std + 1e-6) for value in values]


def _expected_keep(
    rewards: np.ndarray, correct: np.ndarray, gold_ran: np.ndarray, settings: AdvantageConfig
) -> list[bool]:
    rules = {
        "mixed": [any(group) and not all(group) for group in correct.tolist()],
        "varied": [len({sum(parts) for parts in group}) > 1 for group in rewards.tolist()],
        "all": [True] * len(correct),
    }
    return [ok and kept for ok, kept in zip(gold_ran.tolist(), rules[settings.keep], strict=True)]


@given(_rewards, _flags, _gold_ran, st.sampled_from(["mixed", "varied", "all"]))
def test_normalize_group_follows_the_papers_formula(
    rewards: np.ndarray, correct: np.ndarray, gold_ran: np.ndarray, keep: str
) -> None:
    settings = AdvantageConfig(normalize="group", keep=keep)
    adv, kept = _run(rewards, correct, gold_ran, settings)
    assert kept.tolist() == _expected_keep(rewards, correct, gold_ran, settings)
    for p in range(P):
        want = _normalized(rewards[p].sum(-1).tolist()) if kept[p] else [0.0] * G
        np.testing.assert_allclose(adv[p], want, rtol=1e-4, atol=1e-5)


@given(_rewards, _flags, _gold_ran)
def test_normalize_none_subtracts_the_group_mean(
    rewards: np.ndarray, correct: np.ndarray, gold_ran: np.ndarray
) -> None:
    adv, kept = _run(rewards, correct, gold_ran, AdvantageConfig(normalize="none"))
    for p in range(P):
        totals = rewards[p].sum(-1).tolist()
        want = [total - statistics.fmean(totals) if kept[p] else 0.0 for total in totals]
        np.testing.assert_allclose(adv[p], want, rtol=1e-5, atol=1e-5)


@given(_rewards, _flags, _gold_ran)
def test_normalize_parts_normalizes_each_part_and_then_the_sum_over_the_batch(
    rewards: np.ndarray, correct: np.ndarray, gold_ran: np.ndarray
) -> None:
    adv, kept = _run(rewards, correct, gold_ran, AdvantageConfig(normalize="parts"))
    sums = np.array([np.sum([_normalized(part.tolist()) for part in group.T], 0) for group in rewards.astype(float)])
    kept_sums = sums[kept].ravel()
    if not kept_sums.size:
        assert not adv.any()
        return
    want = np.where(kept[:, None], (sums - kept_sums.mean()) / (kept_sums.std() + 1e-6), 0.0)
    np.testing.assert_allclose(adv, want, rtol=1e-3, atol=1e-3)


def test_normalize_parts_keeps_the_weights_of_the_parts() -> None:
    """Two parts rank the completions differently: the one with the larger weight decides."""
    rewards = np.asarray([[[1, 0], [2, 0], [3, 0], [0, 9]]], np.float32)
    right, gold_ran = np.asarray([[True, False, False, False]]), np.ones(1, bool)
    settings = AdvantageConfig(normalize="parts")
    for weights, best in (((1.0, 0.1), 2), ((0.1, 1.0), 3), ((-1.0, 0.1), 3), ((-0.1, -1.0), 0)):
        scaled = np.asarray(weights, np.float32)
        adv, _ = advantage.compute_advantages(rewards * scaled, right, gold_ran, scaled, KEY, settings)
        assert int(np.argmax(adv[0])) == best


@given(_rewards, st.sampled_from(["group", "none", "parts"]), st.floats(-7, 7, width=32))
def test_equal_rewards_give_exactly_zero_advantage(rewards: np.ndarray, normalize: str, level: float) -> None:
    """A rounding error of 1e-7 over a standard deviation of 1e-7 would be a full-size advantage."""
    rewards = np.broadcast_to(rewards[:, :1] + np.float32(level / 3), rewards.shape)
    adv, _ = _run(rewards, np.zeros((P, G), bool), np.ones(P, bool), AdvantageConfig(normalize=normalize, keep="all"))
    assert np.abs(adv).max() <= (1e-6 if normalize == "parts" else 0)


@given(_rewards, _flags, _gold_ran)
def test_shuffling_permutes_the_advantages_of_the_kept_groups(
    rewards: np.ndarray, correct: np.ndarray, gold_ran: np.ndarray
) -> None:
    plain, kept = _run(rewards, correct, gold_ran, AdvantageConfig())
    shuffled, also_kept = _run(rewards, correct, gold_ran, AdvantageConfig(shuffled=True))
    np.testing.assert_array_equal(kept, also_kept)
    before, after = (np.sort(x[kept], axis=None) for x in (plain, shuffled))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
    assert not shuffled[~kept].any()


def test_shuffling_depends_on_the_key_and_crosses_groups() -> None:
    rewards = np.random.default_rng(0).normal(size=(8, 8, 1)).astype(np.float32)
    correct = np.arange(64).reshape(8, 8) % 2 == 0
    settings = AdvantageConfig(shuffled=True)
    first, repeated, other = (
        np.asarray(
            advantage.compute_advantages(rewards, correct, np.ones(8, bool), ONES, jax.random.key(k), settings)[0]
        )
        for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, repeated)
    assert (first != other).mean() > 0.5
    plain = _run(rewards, correct, np.ones(8, bool), AdvantageConfig())[0]
    assert not any(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(first, plain, strict=True))


def _all_right_rewards(thoughts: list[int]) -> np.ndarray:
    """Rewards [1, G, R] of a group whose completions are all right, with reasoning of these lengths."""
    answers = [answer.read(answer.write("x" * n, "SELECT 1", "reasoning"), "reasoning") for n in thoughts]
    match = Outcome(OutcomeKind.MATCH)
    return np.stack([[reward.weighted_parts(parsed, match, config.RewardConfig()) for parsed in answers]])


def test_defect_11_differences_in_length_alone_give_no_advantage() -> None:
    """Four right answers differ by a few characters: the paper's rule turns that into full-size advantages."""
    rewards = _all_right_rewards([10, 11, 12, 13])
    assert float(np.ptp(rewards.sum(-1))) < 0.001
    right, gold_ran = np.ones((1, 4), bool), np.ones(1, bool)
    for normalize in ("group", "none", "parts"):
        adv, kept = _run(rewards, right, gold_ran, AdvantageConfig(normalize=normalize))
        assert not kept.any()
        assert not adv.any()
    adv, kept = _run(rewards, right, gold_ran, AdvantageConfig(keep="all"))  # the paper's rule
    assert kept.all()
    assert np.abs(adv).max() > 0.9


def test_defect_11_without_normalization_length_gives_a_tiny_advantage() -> None:
    rewards = _all_right_rewards([10, 11, 12, 13])
    adv, _ = _run(rewards, np.ones((1, 4), bool), np.ones(1, bool), AdvantageConfig(normalize="none", keep="all"))
    assert 0 < np.abs(adv).max() < 0.001


def test_defect_11_the_default_filters_groups_by_correctness() -> None:
    assert config.GrpoConfig().advantage == AdvantageConfig(normalize="group", keep="mixed")


@pytest.mark.parametrize("keep", ["mixed", "all"])
def test_a_group_whose_gold_query_failed_is_dropped(keep: str) -> None:
    rewards = np.random.default_rng(0).normal(size=(P, G, R)).astype(np.float32)
    correct = np.tile([True, False, False, True, True, False, False], (P, 1))
    gold_ran = np.array([True, False, True, False, True])
    adv, kept = _run(rewards, correct, gold_ran, AdvantageConfig(keep=keep))
    np.testing.assert_array_equal(kept, gold_ran)
    assert not adv[~gold_ran].any()
    assert adv[gold_ran].all()


def test_epsilon_is_the_papers_value() -> None:
    """The rewards are a millionth apart, so that their standard deviation is about as small as epsilon."""
    rewards = np.asarray([[[0.0], [2e-6]]], np.float32)
    adv, _ = _run(rewards, np.asarray([[True, False]]), np.ones(1, bool), AdvantageConfig(normalize="group"))
    expected = 1e-6 / (2**0.5 * 1e-6 + 1e-6)
    np.testing.assert_allclose(adv, [[-expected, expected]], rtol=1e-4)
