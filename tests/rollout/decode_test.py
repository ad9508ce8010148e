from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import compiles_fast  # noqa: F401

from sqlr1_jax import config
from sqlr1_jax.model import qwen2
from sqlr1_jax.rollout import decode, sampling

P, G, S, T = 3, 2, 8, 7
LENGTHS = [8, 3, 1]  # of the prompts, their last tokens counted
STOP = (2, 5, 9, 11, 20)
WARM = config.Sampling(temperature=0.8, max_tokens=T)
GREEDY = config.Sampling(temperature=0.0, max_tokens=T)


@functools.cache
def _prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(2, 37, length + 1).astype(np.int32) for length in LENGTHS]


@functools.cache
def _uniform() -> np.ndarray:
    return np.asarray(sampling.uniforms(0, jnp.int32(1), jnp.arange(P), G, T))


def _decoded(settings: config.Sampling, stop: tuple[int, ...] = STOP) -> decode.Decoded:
    tokens = np.zeros((P, S), np.int32)
    for row, prompt in zip(tokens, _prompts(), strict=True):
        row[: len(prompt) - 1] = prompt[:-1]
    lengths = np.array([len(prompt) - 1 for prompt in _prompts()], np.int32)
    last = np.array([prompt[-1] for prompt in _prompts()], np.int32)
    cache = decode.prefill(small.params(), tokens, lengths, G, T, small.MODEL)
    made, _ = decode.decode(small.params(), cache, last, _uniform(), stop, small.MODEL, settings)
    return decode.Decoded(*map(np.asarray, made))


@functools.partial(jax.jit, static_argnames=("settings",))
def _next(tokens_N: jax.Array, count: jax.Array, uniform: jax.Array, settings: config.Sampling) -> tuple:
    """The token after the first `count` of a text, by the model over the whole text so far: no cache, no sharing."""
    tokens_1N = tokens_N[None]
    positions = jnp.arange(tokens_N.shape[0])[None]
    mask = decode.attention.causal(tokens_1N, count[None])
    hidden_1ND, _ = qwen2.forward(small.params(), tokens_1N, positions, mask, small.MODEL)
    logits_11V = qwen2.unembed(small.params(), hidden_1ND[:, count - 1][:, None], small.MODEL)
    token, logprob = sampling.next_token(logits_11V, uniform.reshape(1, 1), settings)
    return token[0, 0], logprob[0, 0]


def _by_steps(p: int, g: int, settings: config.Sampling, stop: tuple[int, ...]) -> tuple[list[int], list[float]]:
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
def test_decoding_is_one_forward_pass_a_token(settings: config.Sampling, stop: tuple[int, ...]) -> None:
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
            assert made.stopped_PG[p, g] == (tokens[-1] in stop)
    assert len(lengths) > 1 or stop == (1,)


def test_greedy_samples_of_a_prompt_are_one_and_the_same() -> None:
    made = _decoded(GREEDY)
    np.testing.assert_array_equal(made.tokens_PGT[:, 0], made.tokens_PGT[:, 1])


def test_ids_past_the_tokenizers_are_never_sampled() -> None:
    hot = config.Sampling(temperature=50.0, max_tokens=T)
    assert _decoded(hot, (1,)).tokens_PGT.max() < small.MODEL.num_tokens


def test_token_zero_may_stop_although_it_also_fills() -> None:
    made = _decoded(config.Sampling(temperature=50.0, max_tokens=T), (0, *range(1, 12)))
    for p in range(P):
        for g in range(G):
            tokens = made.tokens_PGT[p, g].tolist()
            ends = [t for t, token in enumerate(tokens) if token < 12]
            first = ends[0] if ends else T - 1
            assert made.length_PG[p, g] == first + 1
