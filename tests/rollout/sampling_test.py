from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.rollout import sampling

pytestmark = pytest.mark.usefixtures("compiles_fast")

V = 11
MASKED = -1e30

_logits = st.lists(st.integers(-40, 40).map(lambda n: n / 10), min_size=V, max_size=V)
_fractions = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 0.95])


def _softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


def _drawn(logits: np.ndarray, uniforms: np.ndarray, cfg: config.SamplingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and their log-probabilities for many uniform numbers over the same logits."""
    shape = (1, len(uniforms))
    logits_PGV = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (*shape, len(logits)))
    token, logp = sampling.next_token(logits_PGV, jnp.asarray(uniforms, jnp.float32).reshape(shape), cfg)
    return np.asarray(token)[0], np.asarray(logp)[0]


def _allowed(probability: np.ndarray, cfg: config.SamplingConfig) -> np.ndarray:
    """By definition, token by token; ties at a threshold stay together."""
    ranked = np.sort(probability)[::-1]
    keep = np.ones(V, bool)
    for token, p in enumerate(probability):
        likelier = probability[probability > p]
        if cfg.top_k:
            keep[token] &= len(likelier) < cfg.top_k
        if cfg.top_p < 1:
            keep[token] &= likelier.sum() < cfg.top_p - 1e-6
        keep[token] &= p >= cfg.min_p * ranked[0]
    return keep


@given(_logits, st.integers(0, V + 2), _fractions, _fractions)
def test_truncation_equals_its_definition(logits: list[float], k: int, top: float, low: float) -> None:
    cfg = config.SamplingConfig(top_k=min(k, V), top_p=1 - top, min_p=low)
    probability = _softmax(np.array(logits))
    edges = np.cumsum(np.sort(np.unique(probability.round(6)))[::-1])
    if np.abs(edges - cfg.top_p).min() < 1e-4 or np.abs(probability - low * probability.max()).min() < 1e-5:
        return  # on the edge rounding decides
    got = np.asarray(sampling.truncate(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), cfg))
    keep = _allowed(probability, cfg)
    np.testing.assert_allclose(got, np.where(keep, probability, 0), rtol=1e-4, atol=1e-7)
    assert got.max() == pytest.approx(probability.max(), rel=1e-4), "the likeliest token always stays"


@given(_logits, st.sampled_from([0.5, 1.0, 1.1, 2.0]))
def test_tokens_are_drawn_with_their_probabilities(logits: list[float], temperature: float) -> None:
    """4000 uniform numbers at even distances: each token's share is right to one of them."""
    count = 4000
    token, logp = _drawn(
        np.array(logits), (np.arange(count) + 0.5) / count, config.SamplingConfig(temperature=temperature)
    )
    probability = _softmax(np.array(logits), temperature)
    np.testing.assert_allclose(np.bincount(token, minlength=V) / count, probability, atol=1.5 / count)
    np.testing.assert_allclose(logp, np.log(probability)[token], rtol=1e-4, atol=1e-5)


@given(_logits)
def test_truncation_renormalizes_but_reports_untruncated_logprobs(
    logits: list[float],
) -> None:
    cfg = config.SamplingConfig(top_k=3)
    token, logp = _drawn(np.array(logits), (np.arange(999) + 0.5) / 999, cfg)
    probability = _softmax(np.array(logits))
    left = np.where(_allowed(probability, cfg), probability, 0)
    np.testing.assert_allclose(np.bincount(token, minlength=V) / 999, left / left.sum(), atol=2 / 999)
    np.testing.assert_allclose(logp, np.log(probability)[token], rtol=1e-4, atol=1e-5)


@given(_logits)
def test_temperature_zero_takes_the_most_likely_token(logits: list[float]) -> None:
    token, logp = _drawn(np.array(logits), np.array([0.0, 0.5, 0.999]), config.SamplingConfig(temperature=0.0))
    assert set(token) == {int(np.argmax(np.array(logits, np.float32)))}
    np.testing.assert_allclose(logp, np.log(_softmax(np.array(logits)).max()), rtol=1e-4, atol=1e-5)


@given(st.sampled_from([V, 64, 200]), st.integers(0, 10**6), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_masked_token_is_never_drawn(size: int, seed: int, masked: float) -> None:
    """Whatever rounding does at either end of the sum."""
    rng = np.random.default_rng(seed)
    possible = rng.random(size) >= masked
    possible[rng.integers(0, size)] = True
    logits = np.where(possible, 3 * rng.normal(size=size), MASKED)
    edges = np.array([0.0, 2**-32, 1e-7, 0.5, 1 - 2**-23, 1 - 2**-24])
    token, logp = _drawn(logits, edges, config.SamplingConfig())
    assert all(possible[t] for t in token)
    assert np.isfinite(logp).all()


@given(st.integers(0, 10**6), st.sampled_from([64, 65, 150, 300]), st.sampled_from([0.0, 0.5, 0.95]))
def test_large_vocabularies_are_sampled_like_small_ones(seed: int, size: int, masked: float) -> None:
    """Many blocks of the running sum, some of them without any probability."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=size)
    logits[rng.random(size) < masked] = MASKED
    logits[: rng.integers(0, size)] = MASKED
    logits[-1] = 0
    count = 2000
    token, logp = _drawn(logits, (np.arange(count) + 0.5) / count, config.SamplingConfig())
    probability = _softmax(logits)
    np.testing.assert_allclose(np.bincount(token, minlength=size) / count, probability, atol=1.5 / count)
    np.testing.assert_allclose(logp, np.log(probability)[token], rtol=1e-4, atol=1e-4)
    by_sum = np.searchsorted(np.cumsum(probability), (np.arange(count) + 0.5) / count, side="right")
    assert (token != by_sum).mean() < 0.01, "the first token at which the running sum passes the number"


def _uniforms(prompts: list[int], seed: int = 0, step: int = 3, samples: int = 4, length: int = 6) -> np.ndarray:
    return np.asarray(sampling.uniforms(seed, jnp.int32(step), jnp.asarray(prompts, jnp.int32), samples, length))


def test_random_numbers_depend_only_on_seed_step_prompt_and_sample() -> None:
    whole = _uniforms([0, 1, 2, 3, 4])
    np.testing.assert_array_equal(_uniforms([4, 2]), whole[[4, 2]])
    np.testing.assert_array_equal(_uniforms([3], samples=2), whole[3:4, :2])
    np.testing.assert_array_equal(_uniforms([3], samples=9)[:, :4], whole[3:4])
    different = [whole, _uniforms([0, 1, 2, 3, 4], seed=1), _uniforms([0, 1, 2, 3, 4], step=4)]
    assert len(np.unique(np.concatenate([x.ravel() for x in different]))) == 3 * whole.size


def test_random_numbers_are_uniform() -> None:
    values = np.sort(_uniforms(list(range(50)), samples=10, length=20).ravel())
    assert values[0] >= 0
    assert values[-1] < 1
    distance = np.abs(values - (np.arange(10000) + 0.5) / 10000).max()
    assert distance < 1.95 / 100, "Kolmogorov and Smirnov, at one in a thousand"
