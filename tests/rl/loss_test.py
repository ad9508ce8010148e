from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
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
CFG = config.GrpoConfig(clip=0.2, clip_high=0.3, kl=0.1, entropy=0.01)


def _fed(seed: int = 0) -> tuple[Any, Any, Any]:
    """Log-probabilities, entropies and a batch in which about half of the places count, numpy's arrays."""
    rng = np.random.default_rng(seed)
    zeros = np.zeros((B, T), np.int32)
    logp, sampled, old, reference = -rng.uniform(0.1, 3, (4, B, T)).astype(np.float32)
    weight = np.where(rng.random((B, T)) < 0.5, 1 / 7, 0).astype(np.float32)
    advantage = rng.normal(size=(B, T)).astype(np.float32)
    rows = PackedRows(zeros, zeros, zeros, zeros, zeros, zeros, zeros, weight, sampled)
    entropy = rng.uniform(0, 2, (B, T)).astype(np.float32)
    return logp, entropy, training_data.microbatch(rows, advantage_BT=advantage, old_BT=old, reference_BT=reference)


def _by_hand(
    logp: np.ndarray, entropy: np.ndarray, fed: Batch, cfg: config.GrpoConfig
) -> tuple[float, dict[str, float]]:
    """sql-r1.md §1, place by place, in Python's floats."""
    total, seen = 0.0, []
    for b in range(B):
        for t in range(T):
            weight = float(fed.rows.weight[b, t])
            if not weight:
                continue
            ratio = math.exp(logp[b, t] - fed.old_MBT[b, t])
            advantage = float(fed.advantage_MBT[b, t])
            clipped = min(max(ratio, 1 - cfg.clip), 1 + cfg.clip_high)
            policy = -min(ratio * advantage, clipped * advantage)
            if cfg.importance_cap:
                policy *= min(math.exp(fed.old_MBT[b, t] - fed.rows.logprob[b, t]), cfg.importance_cap)
            gap = float(fed.reference_MBT[b, t]) - float(logp[b, t])
            kl = math.exp(gap) - gap - 1
            total += weight * (policy + cfg.kl * kl - cfg.entropy * float(entropy[b, t]))
            mismatch = math.exp(abs(logp[b, t] - fed.rows.logprob[b, t]))
            # The clip binds where it changes the objective.
            seen.append((kl, entropy[b, t], ratio * advantage > clipped * advantage, ratio, mismatch))
    names = ("kl", "entropy", "clip_fraction", "ratio/mean", "logprob_mismatch")
    means = dict(zip(names, np.mean(np.array(seen, float), axis=0), strict=True))
    return total, means | {"ratio/max": max(row[3] for row in seen)}


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 2.0]))
def test_value_and_metrics_equal_the_formulas(seed: int, cap: float) -> None:
    logp, entropy, fed = _fed(seed)
    if not fed.rows.weight.any():
        return
    cfg = dataclasses.replace(CFG, importance_cap=cap)
    value, sums = grpo_loss(logp, entropy, fed, cfg)
    want, means = _by_hand(logp, entropy, fed, cfg)
    assert float(value) == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert {name: float(a / b) for name, (a, b) in sums.items()} == pytest.approx(means, rel=1e-4)


def test_the_gradient_equals_finite_differences() -> None:
    """Central differences of the hand-written loss, in float64."""
    logp, entropy, fed = _fed(3)
    gradient = jax.grad(lambda x: grpo_loss(x, entropy, fed, CFG)[0])(logp)
    for place in np.ndindex(B, T):
        step = np.zeros((B, T))
        step[place] = 1e-5
        up, down = (_by_hand(logp.astype(float) + sign * step, entropy, fed, CFG)[0] for sign in (1, -1))
        assert float(gradient[place]) == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-5)


def test_defect_05_kl_pulls_toward_the_reference() -> None:
    """Advantages of 0 leave KL alone: it must push log-probabilities towards the reference's, never away."""
    logp, entropy, fed = _fed()
    fed = fed.replace(advantage_MBT=np.zeros((B, T), np.float32))
    cfg = dataclasses.replace(CFG, entropy=0.0)
    at_reference = float(grpo_loss(fed.reference_MBT, entropy, fed, cfg)[0])
    assert at_reference == pytest.approx(0, abs=1e-6)
    assert float(grpo_loss(logp, entropy, fed, cfg)[0]) > at_reference
    counted = fed.rows.weight > 0
    gradient = jax.jit(jax.grad(lambda x: grpo_loss(x, entropy, fed, cfg)[0]))
    signs = np.sign(logp - fed.reference_MBT)
    np.testing.assert_array_equal(np.sign(gradient(logp))[counted], signs[counted])
    for _ in range(1000):
        logp = logp - 3 * gradient(logp)
    assert np.abs(logp - fed.reference_MBT)[counted].max() < 1e-2, "a descent ends at the reference"


@given(st.floats(-20, 20), st.floats(-20, 0))
def test_defect_05_kl_is_never_negative(gap: float, logp: float) -> None:
    _, _, fed = _fed()
    ones: Any = np.ones((B, T), np.float32)
    fed = fed.replace(rows=fed.rows._replace(weight=ones), reference_MBT=ones * np.float32(logp + gap))
    kl, count = grpo_loss(ones * np.float32(logp), ones, fed, CFG)[1]["kl"]
    assert float(kl / count) >= 0


def test_entropy_is_rewarded() -> None:
    logp, entropy, fed = _fed()
    more = grpo_loss(logp, entropy + 1, fed, CFG)[0] - grpo_loss(logp, entropy, fed, CFG)[0]
    assert float(more) == pytest.approx(-0.01 * fed.rows.weight.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "moves"),
    [(1, 0.0, True), (1, 0.5, False), (1, -0.5, True), (-1, 0.0, True), (-1, 0.5, True), (-1, -0.5, False)],
)
def test_the_clip_stops_the_gradient_of_large_ratios(advantage: float, log_ratio: float, moves: bool) -> None:
    _, entropy, fed = _fed()
    ones: Any = np.ones((B, T), np.float32)
    fed = fed.replace(advantage_MBT=advantage * ones, rows=fed.rows._replace(weight=ones))
    cfg = dataclasses.replace(CFG, kl=0.0)
    gradient = jax.grad(lambda x: grpo_loss(x, entropy, fed, cfg)[0])(fed.old_MBT + np.float32(log_ratio))
    want = -advantage * math.exp(log_ratio) if moves else 0.0
    np.testing.assert_allclose(gradient, want, rtol=1e-5)


def test_places_of_weight_zero_may_hold_nan_and_infinity() -> None:
    """Confident weights give the tokens of a prompt log-probabilities of which exp overflows."""
    logp, entropy, fed = _fed()
    counted = fed.rows.weight > 0

    def spoil(x: Any, value: float) -> Any:
        return np.where(counted, x, np.float32(value))

    spoiled = fed.replace(
        rows=fed.rows._replace(logprob=spoil(fed.rows.logprob, np.inf)),
        reference_MBT=spoil(fed.reference_MBT, 500),
        old_MBT=spoil(fed.old_MBT, -np.inf),
    )
    for cfg in (CFG, dataclasses.replace(CFG, kl=0.0)):
        for bad in (-500.0, np.nan, np.inf):
            clean, broken = (
                jax.value_and_grad(lambda x, f=f, e=e, cfg=cfg: grpo_loss(x, e, f, cfg), has_aux=True)(x)
                for x, f, e in ((logp, fed, entropy), (spoil(logp, bad), spoiled, spoil(entropy, bad)))
            )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, spoil(b, 0) if b.ndim else b), broken, clean)


def test_without_kl_the_reference_is_ignored() -> None:
    logp, entropy, fed = _fed()
    cfg = dataclasses.replace(CFG, kl=0.0)
    value, sums = grpo_loss(logp, entropy, fed.replace(reference_MBT=np.full((B, T), np.nan, np.float32)), cfg)
    assert float(value) == float(grpo_loss(logp, entropy, fed, cfg)[0])
    assert "kl" not in sums


@pytest.mark.parametrize("aggregation", ["token", "sample", "constant"])
def test_the_loss_of_microbatches_adds_up_to_that_of_the_batch(aggregation: str) -> None:
    rows = batch.pack_groups(training_data.random_groups(4, 3), None, config.RowsConfig(layout="packed", length=40))
    rows = rows._replace(weight=batch.loss_weights(rows, aggregation, 16))
    rng = np.random.default_rng(0)
    logp, entropy, advantage = rng.normal(size=(3, *rows.tokens.shape)).astype(np.float32)
    whole, sums = grpo_loss(logp, entropy, training_data.microbatch(rows, advantage_BT=advantage), CFG)

    def piece(i: int) -> tuple:
        one = training_data.microbatch(PackedRows(*(x[i : i + 1] for x in rows)), advantage_BT=advantage[i : i + 1])
        return grpo_loss(logp[i : i + 1], entropy[i : i + 1], one, CFG)

    pieces = [piece(i) for i in range(len(rows.tokens))]
    assert len(pieces) > 1
    assert float(sum(value for value, _ in pieces)) == pytest.approx(float(whole), rel=1e-5)
    assert float(sum(s["entropy"][0] for _, s in pieces)) == pytest.approx(float(sums["entropy"][0]), rel=1e-5)
