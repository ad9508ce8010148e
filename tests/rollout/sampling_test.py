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


def _draw(
    logits: np.ndarray, uniforms: np.ndarray, sampling_config: config.SamplingConfig
) -> tuple[np.ndarray, np.ndarray]:
    """A token and its log-probability for each uniform number, all with the same logits."""
    shape = (1, len(uniforms))
    logits_PGV = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (*shape, len(logits)))
    token, logp = sampling.next_token(logits_PGV, jnp.asarray(uniforms, jnp.float32).reshape(shape), sampling_config)
    return np.asarray(token)[0], np.asarray(logp)[0]


def _kept(probability: np.ndarray, sampling_config: config.SamplingConfig) -> np.ndarray:
    """Which tokens top-k, top-p and min-p keep, by their definitions; tokens of equal probability are kept together."""
    ranked = np.sort(probability)[::-1]
    keep = np.ones(V, bool)
    for token, p in enumerate(probability):
        more_likely = probability[probability > p]
        if sampling_config.top_k:
            keep[token] &= len(more_likely) < sampling_config.top_k
        if sampling_config.top_p < 1:
            keep[token] &= more_likely.sum() < sampling_config.top_p - 1e-6
        keep[token] &= p >= sampling_config.min_p * ranked[0]
    return keep


@given(_logits, st.integers(0, V + 2), _fractions, _fractions)
def test_truncation_equals_its_definition(logits: list[float], k: int, top: float, low: float) -> None:
    sampling_config = config.SamplingConfig(top_k=min(k, V), top_p=1 - top, min_p=low)
    probability = _softmax(np.array(logits))
    edges = np.cumsum(np.sort(np.unique(probability.round(6)))[::-1])
    if np.abs(edges - sampling_config.top_p).min() < 1e-4 or np.abs(probability - low * probability.max()).min() < 1e-5:
        return  # rounding decides
    got = np.asarray(sampling.truncate(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), sampling_config))
    keep = _kept(probability, sampling_config)
    np.testing.assert_allclose(got, np.where(keep, probability, 0), rtol=1e-4, atol=1e-7)
    assert got.max() == pytest.approx(probability.max(), rel=1e-4), "the most likely token is always kept"


@given(_logits, st.sampled_from([0.5, 1.0, 1.1, 2.0]))
def test_tokens_are_drawn_with_their_probabilities(logits: list[float], temperature: float) -> None:
    """With 4000 evenly spaced uniform numbers, each token's count is right to within 1.5."""
    count = 4000
    token, logp = _draw(
        np.array(logits), (np.arange(count) + 0.5) / count, config.SamplingConfig(temperature=temperature)
    )
    probability = _softmax(np.array(logits), temperature)
    np.testing.assert_allclose(np.bincount(token, minlength=V) / count, probability, atol=1.5 / count)
    np.testing.assert_allclose(logp, np.log(probability)[token], rtol=1e-4, atol=1e-5)


@given(_logits)
def test_truncation_renormalizes_but_reports_untruncated_logprobs(
    logits: list[float],
) -> None:
    sampling_config = config.SamplingConfig(top_k=3)
    token, logp = _draw(np.array(logits), (np.arange(999) + 0.5) / 999, sampling_config)
    probability = _softmax(np.array(logits))
    left = np.where(_kept(probability, sampling_config), probability, 0)
    np.testing.assert_allclose(np.bincount(token, minlength=V) / 999, left / left.sum(), atol=2 / 999)
    np.testing.assert_allclose(logp, np.log(probability)[token], rtol=1e-4, atol=1e-5)


@given(_logits)
def test_temperature_zero_takes_the_most_likely_token(logits: list[float]) -> None:
    token, logp = _draw(np.array(logits), np.array([0.0, 0.5, 0.999]), config.SamplingConfig(temperature=0.0))
    assert set(token) == {int(np.argmax(np.array(logits, np.float32)))}
    np.testing.assert_allclose(logp, np.log(_softmax(np.array(logits)).max()), rtol=1e-4, atol=1e-5)


@given(st.sampled_from([V, 64, 200]), st.integers(0, 10**6), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_masked_token_is_never_drawn(size: int, seed: int, masked: float) -> None:
    """Also if the uniform number is at either end of its range, where rounding matters."""
    rng = np.random.default_rng(seed)
    unmasked = rng.random(size) >= masked
    unmasked[rng.integers(0, size)] = True
    logits = np.where(unmasked, 3 * rng.normal(size=size), MASKED)
    edges = np.array([0.0, 2**-32, 1e-7, 0.5, 1 - 2**-23, 1 - 2**-24])
    token, logp = _draw(logits, edges, config.SamplingConfig())
    assert all(unmasked[t] for t in token)
    assert np.isfinite(logp).all()


@given(st.integers(0, 10**6), st.sampled_from([64, 65, 150, 300]), st.sampled_from([0.0, 0.5, 0.95]))
def test_large_vocabularies_are_sampled_like_small_ones(seed: int, size: int, masked: float) -> None:
    """Many blocks of the cumulative sum, some of them without probability."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=size)
    logits[rng.random(size) < masked] = MASKED
    logits[: rng.integers(0, size)] = MASKED
    logits[-1] = 0
    count = 2000
    token, logp = _draw(logits, (np.arange(count) + 0.5) / count, config.SamplingConfig())
    probability = _softmax(logits)
    np.testing.assert_allclose(np.bincount(token, minlength=size) / count, probability, atol=1.5 / count)
    np.testing.assert_allclose(logp, np.log(probability)[token], rtol=1e-4, atol=1e-4)
    by_sum = np.searchsorted(np.cumsum(probability), (np.arange(count) + 0.5) / count, side="right")
    assert (token != by_sum).mean() < 0.01, "the first token whose cumulative probability exceeds the number"


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
    assert distance < 1.95 / 100, "Kolmogorov-Smirnov test at a significance of 0.001"


def test_each_sample_may_have_its_own_temperature() -> None:
    rng = np.random.default_rng(0)
    logits, uniform = jnp.asarray(rng.standard_normal((2, 3, 50))), jnp.asarray(rng.random((2, 3)))
    temperatures = (0.7, 1.3, 0.0)
    mixed = sampling.next_tokens(logits, uniform, config.SamplingConfig(top_k=9), jnp.asarray([temperatures] * 2))
    for g, temperature in enumerate(temperatures):
        alone = config.SamplingConfig(temperature=temperature, top_k=9)
        expected = sampling.next_token(logits[:, g : g + 1], uniform[:, g : g + 1], alone)
        np.testing.assert_array_equal(mixed[0][:, g : g + 1], expected[0])
        np.testing.assert_allclose(mixed[1][:, g : g + 1], expected[1], rtol=1e-6)
