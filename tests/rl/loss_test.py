from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.data.packing import PackedRows
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.train import batch
from sqlr1_jax.train.batch import Batch
from testing import training_data

pytestmark = pytest.mark.usefixtures("compiles_fast")

B, T = 3, 5
SETTINGS = config.GrpoConfig(clip=0.2, clip_high=0.3, kl=0.1, entropy=0.01)


def _inputs(seed: int = 0) -> tuple[Any, Any, Any]:
    """Numpy log-probabilities and entropies, and a microbatch (a Batch) in which about half of the tokens have loss."""
    rng = np.random.default_rng(seed)
    zeros = np.zeros((B, T), np.int32)
    logp, sampled, old, reference = -rng.uniform(0.1, 3, (4, B, T)).astype(np.float32)
    weight = np.where(rng.random((B, T)) < 0.5, 1 / 7, 0).astype(np.float32)
    advantage = rng.normal(size=(B, T)).astype(np.float32)
    rows = PackedRows(zeros, zeros, zeros, zeros, zeros, zeros, zeros, weight, sampled)
    entropy = rng.uniform(0, 2, (B, T)).astype(np.float32)
    return logp, entropy, training_data.microbatch(rows, advantage_BT=advantage, old_BT=old, reference_BT=reference)


def _by_hand(
    logp: np.ndarray, entropy: np.ndarray, micro: Batch, settings: config.GrpoConfig
) -> tuple[float, dict[str, float]]:
    """The formula of docs/method.md, section 5, token by token, in Python floats."""
    total, tokens = 0.0, []
    for b in range(B):
        for t in range(T):
            weight = float(micro.rows.weight[b, t])
            if not weight:
                continue
            ratio = math.exp(logp[b, t] - micro.old_MBT[b, t])
            advantage = float(micro.advantage_MBT[b, t])
            clipped = min(max(ratio, 1 - settings.clip), 1 + settings.clip_high)
            policy = -min(ratio * advantage, clipped * advantage)
            if settings.importance_cap:
                policy *= min(math.exp(micro.old_MBT[b, t] - micro.rows.logprob[b, t]), settings.importance_cap)
            gap = float(micro.reference_MBT[b, t]) - float(logp[b, t])
            kl = math.exp(gap) - gap - 1
            total += weight * (policy + settings.kl * kl - settings.entropy * float(entropy[b, t]))
            mismatch = math.exp(abs(logp[b, t] - micro.rows.logprob[b, t]))
            # The clip binds where it changes the objective.
            tokens.append((kl, entropy[b, t], ratio * advantage > clipped * advantage, ratio, mismatch))
    names = ("kl", "entropy", "clip_fraction", "ratio/mean", "logprob_mismatch")
    means = dict(zip(names, np.mean(np.array(tokens, float), axis=0), strict=True))
    return total, means | {"ratio/max": max(row[3] for row in tokens), "clamped_fraction": 0.0}


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0]))
def test_loss_and_metrics_equal_the_formula(seed: int, cap: float) -> None:
    logp, entropy, micro = _inputs(seed)
    if not micro.rows.weight.any():
        return
    settings = dataclasses.replace(SETTINGS, importance_cap=cap)
    value, sums = grpo_loss(logp, entropy, micro, settings)
    want, means = _by_hand(logp, entropy, micro, settings)
    assert float(value) == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert {name: float(a / b) for name, (a, b) in sums.items()} == pytest.approx(means, rel=1e-4)


def test_gradient_equals_central_differences_of_the_formula() -> None:
    """The differences are of the loss by hand, in float64."""
    logp, entropy, micro = _inputs(3)
    gradient = jax.grad(lambda x: grpo_loss(x, entropy, micro, SETTINGS)[0])(logp)
    for position in np.ndindex(B, T):
        step = np.zeros((B, T))
        step[position] = 1e-5
        up, down = (_by_hand(logp.astype(float) + sign * step, entropy, micro, SETTINGS)[0] for sign in (1, -1))
        assert float(gradient[position]) == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-5)


def test_defect_05_kl_pulls_toward_the_reference() -> None:
    """With advantages of 0 only KL is left: it must push log-probabilities towards the reference's."""
    logp, entropy, micro = _inputs()
    micro = dataclasses.replace(micro, advantage_MBT=np.zeros((B, T), np.float32))
    settings = dataclasses.replace(SETTINGS, entropy=0.0)
    at_reference = float(grpo_loss(micro.reference_MBT, entropy, micro, settings)[0])
    assert at_reference == pytest.approx(0, abs=1e-6)
    assert float(grpo_loss(logp, entropy, micro, settings)[0]) > at_reference
    loss_mask = micro.rows.weight > 0
    gradient = jax.jit(jax.grad(lambda x: grpo_loss(x, entropy, micro, settings)[0]))
    signs = np.sign(logp - micro.reference_MBT)
    np.testing.assert_array_equal(np.sign(gradient(logp))[loss_mask], signs[loss_mask])
    for _ in range(1000):
        logp = logp - 3 * gradient(logp)
    assert np.abs(logp - micro.reference_MBT)[loss_mask].max() < 1e-2, "gradient descent must end at the reference"


@given(st.floats(-20, 20), st.floats(-20, 0))
def test_defect_05_kl_is_never_negative(gap: float, logp: float) -> None:
    _, _, micro = _inputs()
    ones: Any = np.ones((B, T), np.float32)
    rows = micro.rows._replace(weight=ones)
    micro = dataclasses.replace(micro, rows=rows, reference_MBT=ones * np.float32(logp + gap))
    kl, count = grpo_loss(ones * np.float32(logp), ones, micro, SETTINGS)[1]["kl"]
    rounding = 1e-6 if abs(gap) < 0.01 else 0.0  # of exp(gap) near 1 in float32, where KL itself is below 5e-5
    assert float(kl / count) >= -rounding


@pytest.mark.parametrize("gap", [50.0, 100.0, -50.0, -100.0])
def test_one_token_far_from_the_reference_does_not_decide_the_loss(gap: float) -> None:
    """It is counted; loss and gradient are those of a token at the reference, where the KL term is 0."""
    logp, entropy, micro = _inputs()
    token = tuple(np.argwhere(micro.rows.weight > 0)[0])
    reference, near = np.array(micro.reference_MBT), np.array(micro.reference_MBT)
    reference[token], near[token] = logp[token] + gap, logp[token]
    value_and_grad = jax.jit(
        jax.value_and_grad(
            lambda x, reference: grpo_loss(x, entropy, dataclasses.replace(micro, reference_MBT=reference), SETTINGS),
            has_aux=True,
        )
    )
    ((value, sums), gradient), ((other, means), expected) = value_and_grad(logp, reference), value_and_grad(logp, near)
    assert float(value) == pytest.approx(float(other), rel=1e-6)
    clamped = math.copysign(20, gap)
    assert float(sums["kl"][0]) == pytest.approx(float(means["kl"][0]) + math.exp(clamped) - clamped - 1, rel=1e-5)
    assert float(sums["clamped_fraction"][0]) == 1
    assert float(sums["clamped_fraction"][1]) == (micro.rows.weight > 0).sum()
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("log_ratio", [50.0, 100.0])
def test_one_token_far_from_the_old_policy_leaves_the_loss_finite(advantage: float, log_ratio: float) -> None:
    logp, entropy, micro = _inputs()
    ones = np.ones((B, T), np.float32)
    micro = dataclasses.replace(
        micro,
        advantage_MBT=advantage * ones,
        old_MBT=logp - np.float32(log_ratio),
        rows=micro.rows._replace(weight=ones, logprob=logp - np.float32(log_ratio)),
    )
    settings = dataclasses.replace(SETTINGS, kl=0.0, entropy=0.0)
    (value, sums), gradient = jax.value_and_grad(lambda x: grpo_loss(x, entropy, micro, settings), has_aux=True)(logp)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)
    assert float(sums["ratio/max"][0]) == pytest.approx(math.exp(20), rel=1e-4)
    assert {name: np.isfinite(total) for name, (total, _) in sums.items()} == dict.fromkeys(sums, True)
    assert float(sums["clamped_fraction"][0]) == B * T


def test_the_loss_has_the_bits_of_its_formula_where_nothing_is_clamped() -> None:
    logp, entropy, micro = _inputs()

    def unclamped(logp: jax.Array) -> jax.Array:
        mask = micro.rows.weight > 0
        x, old, reference = (jnp.where(mask, a, 0.0) for a in (logp, micro.old_MBT, micro.reference_MBT))
        ratio = jnp.exp(x - old)
        policy = jnp.minimum(ratio * micro.advantage_MBT, jnp.clip(ratio, 0.8, 1.3) * micro.advantage_MBT)
        objective = -policy - SETTINGS.entropy * entropy
        objective += SETTINGS.kl * (jnp.exp(reference - x) - (reference - x) - 1)
        return (jnp.where(mask, objective, 0.0) * micro.rows.weight).sum()

    expected = jax.jit(jax.value_and_grad(unclamped))(logp)
    found = jax.jit(jax.value_and_grad(lambda x: grpo_loss(x, entropy, micro, SETTINGS)[0]))(logp)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_entropy_lowers_the_loss() -> None:
    logp, entropy, micro = _inputs()
    more = grpo_loss(logp, entropy + 1, micro, SETTINGS)[0] - grpo_loss(logp, entropy, micro, SETTINGS)[0]
    assert float(more) == pytest.approx(-0.01 * micro.rows.weight.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "moves"),
    [(1, 0.0, True), (1, 0.5, False), (1, -0.5, True), (-1, 0.0, True), (-1, 0.5, True), (-1, -0.5, False)],
)
def test_the_clip_stops_the_gradient_outside_its_range(advantage: float, log_ratio: float, moves: bool) -> None:
    _, entropy, micro = _inputs()
    ones = np.ones((B, T), np.float32)
    micro = dataclasses.replace(micro, advantage_MBT=advantage * ones, rows=micro.rows._replace(weight=ones))
    settings = dataclasses.replace(SETTINGS, kl=0.0)
    gradient = jax.grad(lambda x: grpo_loss(x, entropy, micro, settings)[0])(micro.old_MBT + np.float32(log_ratio))
    want = -advantage * math.exp(log_ratio) if moves else 0.0
    np.testing.assert_allclose(gradient, want, rtol=1e-5)


def test_masked_tokens_may_hold_any_value() -> None:
    """Prompt tokens can have log-probabilities whose exp overflows."""
    logp, entropy, micro = _inputs()
    loss_mask = micro.rows.weight > 0

    def fill_masked(x: np.ndarray, value: float) -> np.ndarray:
        return np.where(loss_mask, x, np.float32(value))

    filled = dataclasses.replace(
        micro,
        rows=micro.rows._replace(logprob=fill_masked(micro.rows.logprob, np.inf)),
        reference_MBT=fill_masked(micro.reference_MBT, 500),
        old_MBT=fill_masked(micro.old_MBT, -np.inf),
    )
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, kl=0.0)):
        for bad in (-500.0, np.nan, np.inf):
            clean, broken = (
                jax.value_and_grad(lambda x, f=f, e=e, settings=settings: grpo_loss(x, e, f, settings), has_aux=True)(x)
                for x, f, e in ((logp, micro, entropy), (fill_masked(logp, bad), filled, fill_masked(entropy, bad)))
            )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, fill_masked(b, 0) if b.ndim else b), broken, clean)


def test_without_kl_the_reference_is_not_read() -> None:
    logp, entropy, micro = _inputs()
    settings = dataclasses.replace(SETTINGS, kl=0.0)
    without_reference = dataclasses.replace(micro, reference_MBT=np.full((B, T), np.nan, np.float32))
    value, sums = grpo_loss(logp, entropy, without_reference, settings)
    assert float(value) == float(grpo_loss(logp, entropy, micro, settings)[0])
    assert "kl" not in sums


@pytest.mark.parametrize("aggregation", ["token", "sample", "constant"])
def test_losses_of_microbatches_add_up_to_the_loss_of_the_batch(aggregation: str) -> None:
    rows = batch.pack_groups(training_data.random_groups(4, 3), None, config.RowsConfig(layout="packed", length=40))
    rows = rows._replace(weight=batch.loss_weights(rows, aggregation, 16))
    rng = np.random.default_rng(0)
    logp, entropy, advantage = rng.normal(size=(3, *rows.tokens.shape)).astype(np.float32)
    whole, sums = grpo_loss(logp, entropy, training_data.microbatch(rows, advantage_BT=advantage), SETTINGS)

    def microbatch_loss(i: int) -> tuple:
        micro = training_data.microbatch(PackedRows(*(x[i : i + 1] for x in rows)), advantage_BT=advantage[i : i + 1])
        return grpo_loss(logp[i : i + 1], entropy[i : i + 1], micro, SETTINGS)

    losses = [microbatch_loss(i) for i in range(len(rows.tokens))]
    assert len(losses) > 1
    assert float(sum(value for value, _ in losses)) == pytest.approx(float(whole), rel=1e-5)
    assert float(sum(s["entropy"][0] for _, s in losses)) == pytest.approx(float(sums["entropy"][0]), rel=1e-5)
