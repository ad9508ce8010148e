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
LENGTHS = [8, 3, 1]  # of the prompts, their last tokens counted
STOP = (2, 5, 9, 11, 20)
WARM = config.SamplingConfig(temperature=0.8, max_tokens=T)
GREEDY = config.SamplingConfig(temperature=0.0, max_tokens=T)


@functools.cache
def _prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(2, 37, length + 1).astype(np.int32) for length in LENGTHS]


@functools.cache
def _uniform() -> np.ndarray:
    return np.asarray(sampling.uniforms(0, jnp.int32(1), jnp.arange(P), G, T))


class Decoded(NamedTuple):
    tokens_PGT: np.ndarray
    logprobs_PGT: np.ndarray
    length_PG: np.ndarray


def _arrivals() -> programs.PrefillBatch:
    tokens = np.zeros((P, S), np.int32)
    for row, prompt in zip(tokens, _prompts(), strict=True):
        row[: len(prompt) - 1] = prompt[:-1]
    lengths, last = ([f(prompt) for prompt in _prompts()] for f in (lambda p: len(p) - 1, lambda p: p[-1]))
    limit = np.full((P, G), T, np.int32)
    numbers = np.arange(P, dtype=np.int32)
    return programs.PrefillBatch(tokens, np.array(lengths, np.int32), np.array(last, np.int32), numbers, numbers, limit)


def _decoded(settings: config.SamplingConfig, stop: tuple[int, ...] = STOP, steps: int = T) -> Decoded:
    params = tiny_models.random_params()
    slots = programs.prefill(
        params, programs.init_slots(P, G, S, T, tiny_models.MODEL), _arrivals(), jnp.int32(1), 0, tiny_models.MODEL
    )
    nobody, chunks = np.zeros((P, G), bool), []
    for _ in range(-(-T // steps)):
        slots, chunk = programs.decode_steps(params, slots, nobody, steps, stop, tiny_models.MODEL, settings)
        chunks.append(jax.device_get(chunk))
    assert not chunks[-1].busy_P.any()
    tokens, logprobs = (np.concatenate([chunk[i] for chunk in chunks], axis=2)[..., :T] for i in (0, 1))
    return Decoded(tokens, logprobs, chunks[-1].length_PG)


@functools.partial(jax.jit, static_argnames=("settings",))
def _next(tokens_N: jax.Array, count: jax.Array, uniform: jax.Array, settings: config.SamplingConfig) -> tuple:
    """The token after the first `count` of a text, by the model over the whole text so far: no cache, no sharing."""
    tokens_1N = tokens_N[None]
    positions = jnp.arange(tokens_N.shape[0])[None]
    mask = attention.causal_mask(tokens_1N, count[None])
    hidden_1ND, _ = qwen2.forward(tiny_models.random_params(), tokens_1N, positions, mask, tiny_models.MODEL)
    logits_11V = qwen2.unembed(tiny_models.random_params(), hidden_1ND[:, count - 1][:, None], tiny_models.MODEL)
    token, logprob = sampling.next_token(logits_11V, uniform.reshape(1, 1), settings)
    return token[0, 0], logprob[0, 0]


def _by_steps(p: int, g: int, settings: config.SamplingConfig, stop: tuple[int, ...]) -> tuple[list[int], list[float]]:
    text, logprobs = list(_prompts()[p]), []
    begin = len(text)
    for t in range(T):
        padded = np.pad(np.array(text, np.int32), (0, S + 1 + T - len(text)))
        token, logprob = _next(padded, np.int32(len(text)), _uniform()[p, g, t], settings)
        text.append(int(token))
        logprobs.append(float(logprob))
        if text[-1] in stop:
            break
    return text[begin:], logprobs


@pytest.mark.parametrize("settings", [WARM, GREEDY], ids=["sampled", "greedy"])
@pytest.mark.parametrize("stop", [STOP, (1,)], ids=["often stopped", "hardly stopped"])
def test_decoding_equals_one_forward_pass_per_token(settings: config.SamplingConfig, stop: tuple[int, ...]) -> None:
    made = _decoded(settings, stop)
    lengths = set()
    for p in range(P):
        for g in range(G):
            tokens, logprobs = _by_steps(p, g, settings, stop)
            n = len(tokens)
            lengths.add(n)
            assert made.tokens_PGT[p, g].tolist() == tokens + [0] * (T - n)
            np.testing.assert_allclose(made.logprobs_PGT[p, g, :n], logprobs, rtol=1e-4, atol=1e-5)
            assert not made.logprobs_PGT[p, g, n:].any()
            assert made.length_PG[p, g] == n
    assert len(lengths) > 1 or stop == (1,)


@pytest.mark.parametrize("steps", [1, 3])
def test_decoding_in_chunks_equals_decoding_at_once(steps: int) -> None:
    whole, made = _decoded(WARM), _decoded(WARM, steps=steps)
    for ours, theirs in zip(made, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_halted_sample_gets_no_more_tokens() -> None:
    slots = programs.prefill(
        tiny_models.random_params(),
        programs.init_slots(P, G, S, T, tiny_models.MODEL),
        _arrivals(),
        jnp.int32(1),
        0,
        tiny_models.MODEL,
    )
    halt = np.zeros((P, G), bool)
    halt[0, 1] = True
    _, chunk = programs.decode_steps(tiny_models.random_params(), slots, halt, T, (1,), tiny_models.MODEL, WARM)
    assert chunk.length_PG[0, 1] == 0 and not chunk.tokens_PGC[0, 1].any()
    np.testing.assert_array_equal(np.delete(chunk.tokens_PGC.reshape(P * G, T), 1, 0), np.delete(
        _decoded(WARM, (1,)).tokens_PGT.reshape(P * G, T), 1, 0))  # fmt: skip


def test_greedy_samples_of_a_prompt_are_equal() -> None:
    made = _decoded(GREEDY)
    np.testing.assert_array_equal(made.tokens_PGT[:, 0], made.tokens_PGT[:, 1])


def test_padding_ids_of_the_vocabulary_are_never_sampled() -> None:
    hot = config.SamplingConfig(temperature=50.0, max_tokens=T)
    assert _decoded(hot, (1,)).tokens_PGT.max() < tiny_models.MODEL.num_tokens


def test_token_zero_can_be_a_stop_token() -> None:
    made = _decoded(config.SamplingConfig(temperature=50.0, max_tokens=T), (0, *range(1, 12)))
    for p in range(P):
        for g in range(G):
            tokens = made.tokens_PGT[p, g].tolist()
            ends = [t for t, token in enumerate(tokens) if token < 12]
            first = ends[0] if ends else T - 1
            assert made.length_PG[p, g] == first + 1
