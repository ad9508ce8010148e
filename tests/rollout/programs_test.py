from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.model import attention, qwen2
from sqlr1_jax.rollout import programs, sampling
from testing import tiny_models

pytestmark = pytest.mark.usefixtures("compiles_fast")

P, G, S, T = 3, 2, 8, 7
PREFIX_LENGTHS = [8, 3, 1]  # tokens of each prompt without its last one
STOP_IDS = (2, 5, 9, 11, 20)
SAMPLED = config.SamplingConfig(temperature=0.8, max_tokens=T)
GREEDY = config.SamplingConfig(temperature=0.0, max_tokens=T)


@functools.cache
def _prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(2, 37, length + 1).astype(np.int32) for length in PREFIX_LENGTHS]


@functools.cache
def _uniform_PGT() -> np.ndarray:
    return np.asarray(sampling.uniforms(0, jnp.int32(1), jnp.arange(P), G, T))


def _prefilled_slots() -> programs.Slots:
    """All prompts, each in the slot of its index."""
    tokens_PS = np.zeros((P, S), np.int32)
    for row, prompt in zip(tokens_PS, _prompts(), strict=True):
        row[: len(prompt) - 1] = prompt[:-1]
    index_P = np.arange(P, dtype=np.int32)
    last_token_P = np.array([prompt[-1] for prompt in _prompts()], np.int32)
    limit_PG = np.full((P, G), T, np.int32)
    batch = programs.PrefillBatch(
        tokens_PS, np.array(PREFIX_LENGTHS, np.int32), last_token_P, index_P, index_P, limit_PG
    )
    slots = programs.init_slots(P, G, S, T, tiny_models.MODEL)
    return programs.prefill(tiny_models.random_params(), slots, batch, jnp.int32(1), 0, tiny_models.MODEL)


class Decoded(NamedTuple):
    tokens_PGT: np.ndarray
    logprobs_PGT: np.ndarray
    length_PG: np.ndarray


def _decode(sampling_config: config.SamplingConfig, stop_ids: tuple[int, ...] = STOP_IDS, steps: int = T) -> Decoded:
    """All samples, by as many calls of `steps` decode steps as T tokens take."""
    params, slots = tiny_models.random_params(), _prefilled_slots()
    none_done_PG, calls = np.zeros((P, G), bool), []
    for _ in range(-(-T // steps)):
        slots, decoded = programs.decode_steps(
            params, slots, none_done_PG, steps, stop_ids, tiny_models.MODEL, sampling_config
        )
        calls.append(jax.device_get(decoded))
    assert not calls[-1].busy_P.any()
    tokens_PGT, logprobs_PGT = (np.concatenate([call[i] for call in calls], axis=2)[..., :T] for i in (0, 1))
    return Decoded(tokens_PGT, logprobs_PGT, calls[-1].length_PG)


@functools.partial(jax.jit, static_argnames=("sampling_config",))
def _next_token(
    tokens_N: jax.Array, count: jax.Array, uniform: jax.Array, sampling_config: config.SamplingConfig
) -> tuple[jax.Array, jax.Array]:
    """The token after the first `count` tokens of a text, by a forward pass over the whole text without a cache."""
    tokens_1N = tokens_N[None]
    positions = jnp.arange(tokens_N.shape[0])[None]
    mask = attention.causal_mask(tokens_1N, count[None])
    hidden_1ND, _ = qwen2.forward(tiny_models.random_params(), tokens_1N, positions, mask, tiny_models.MODEL)
    logits_11V = qwen2.unembed(tiny_models.random_params(), hidden_1ND[:, count - 1][:, None], tiny_models.MODEL)
    token, logprob = sampling.next_token(logits_11V, uniform.reshape(1, 1), sampling_config)
    return token[0, 0], logprob[0, 0]


def _decode_naively(
    p: int, g: int, sampling_config: config.SamplingConfig, stop_ids: tuple[int, ...]
) -> tuple[list[int], list[float]]:
    """One sample's tokens and log-probabilities, by one forward pass per token."""
    text, logprobs = list(_prompts()[p]), []
    prompt_length = len(text)
    for t in range(T):
        padded = np.pad(np.array(text, np.int32), (0, S + 1 + T - len(text)))
        token, logprob = _next_token(padded, np.int32(len(text)), _uniform_PGT()[p, g, t], sampling_config)
        text.append(int(token))
        logprobs.append(float(logprob))
        if text[-1] in stop_ids:
            break
    return text[prompt_length:], logprobs


@pytest.mark.parametrize("sampling_config", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
@pytest.mark.parametrize("stop_ids", [STOP_IDS, (1,)], ids=["often stopped", "hardly stopped"])
def test_decoding_equals_one_forward_pass_per_token(
    sampling_config: config.SamplingConfig, stop_ids: tuple[int, ...]
) -> None:
    decoded = _decode(sampling_config, stop_ids)
    lengths = set()
    for p, g in np.ndindex(P, G):
        tokens, logprobs = _decode_naively(p, g, sampling_config, stop_ids)
        n = len(tokens)
        lengths.add(n)
        assert decoded.tokens_PGT[p, g].tolist() == tokens + [0] * (T - n)
        np.testing.assert_allclose(decoded.logprobs_PGT[p, g, :n], logprobs, rtol=1e-4, atol=1e-5)
        assert not decoded.logprobs_PGT[p, g, n:].any()
        assert decoded.length_PG[p, g] == n
    assert len(lengths) > 1 or stop_ids == (1,)


@pytest.mark.parametrize("steps", [1, 3])
def test_several_calls_decode_the_same_as_one(steps: int) -> None:
    for several_calls, one_call in zip(_decode(SAMPLED, steps=steps), _decode(SAMPLED), strict=True):
        np.testing.assert_array_equal(several_calls, one_call)


def test_a_sample_that_is_forced_done_gets_no_more_tokens() -> None:
    force_done_PG = np.zeros((P, G), bool)
    force_done_PG[0, 1] = True
    _, decoded = programs.decode_steps(
        tiny_models.random_params(), _prefilled_slots(), force_done_PG, T, (1,), tiny_models.MODEL, SAMPLED
    )
    assert decoded.length_PG[0, 1] == 0 and not decoded.tokens_PGC[0, 1].any()
    others, unforced = decoded.tokens_PGC.reshape(P * G, T), _decode(SAMPLED, (1,)).tokens_PGT.reshape(P * G, T)
    np.testing.assert_array_equal(np.delete(others, 1, 0), np.delete(unforced, 1, 0))


def test_greedy_samples_of_a_prompt_are_equal() -> None:
    decoded = _decode(GREEDY)
    np.testing.assert_array_equal(decoded.tokens_PGT[:, 0], decoded.tokens_PGT[:, 1])


def test_padding_ids_of_the_vocabulary_are_never_sampled() -> None:
    nearly_uniform = config.SamplingConfig(temperature=50.0, max_tokens=T)
    assert _decode(nearly_uniform, (1,)).tokens_PGT.max() < tiny_models.MODEL.num_tokens


def test_token_zero_can_be_a_stop_token() -> None:
    """Token 0 also fills the output of samples that have ended."""
    decoded = _decode(config.SamplingConfig(temperature=50.0, max_tokens=T), (0, *range(1, 12)))
    for p, g in np.ndindex(P, G):
        stops = [t for t, token in enumerate(decoded.tokens_PGT[p, g].tolist()) if token < 12]
        assert decoded.length_PG[p, g] == (stops[0] if stops else T - 1) + 1
