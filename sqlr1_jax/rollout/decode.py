"""The sampler's two programs: prefill prompts once, then decode all their samples in one loop on the device."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqlr1_jax import config
from sqlr1_jax.model import attention, qwen2
from sqlr1_jax.model.cache import Cache
from sqlr1_jax.rollout import sampling


class Decoded(NamedTuple):
    """What the loop wrote; a sample's places past its length hold zeros."""

    tokens_PGT: jax.Array
    logprobs_PGT: jax.Array
    length_PG: jax.Array  # tokens sampled, the stop token counted
    stopped_PG: jax.Array  # False: cut off at T


@functools.partial(jax.jit, static_argnames=("samples", "max_tokens", "cfg"))
def prefill(
    params: Any, tokens_PS: jax.Array, length_P: jax.Array, samples: int, max_tokens: int, cfg: qwen2.Qwen2Config
) -> Cache:
    """The cache of prompts without their last token, with room for `samples` × `max_tokens` behind each.

    A prompt's last token is left for the first decode step: that step samples, and prefill needs no logits.
    """
    positions_PS = jnp.broadcast_to(jnp.arange(tokens_PS.shape[1], dtype=jnp.int32), tokens_PS.shape)
    mask = attention.causal(tokens_PS, length_P)
    P, S = tokens_PS.shape
    cache: Cache | None = qwen2.empty_cache(cfg, P, samples, S, max_tokens)
    _, cache = qwen2.forward(params, tokens_PS, positions_PS, mask, cfg, cache)
    assert cache is not None
    return cache


@functools.partial(jax.jit, static_argnames=("stop", "cfg", "settings"), donate_argnames=("cache",))
def decode(
    params: Any,
    cache: Cache,
    last_P: jax.Array,
    uniform_PGT: jax.Array,
    stop: tuple[int, ...],
    cfg: qwen2.Qwen2Config,
    settings: config.Sampling,
) -> tuple[Decoded, Cache]:
    """Samples until every sample has stopped or T tokens are made.

    Args:
      params: the sampler's weights.
      cache: of `prefill`, spent here (and handed back so that its memory serves the next one).
      last_P: each prompt's last token.
      uniform_PGT: the random numbers, as `sampling.uniforms` makes them.
      stop: token ids that end a sample.
      cfg: the model's shape.
      settings: temperature and truncation.
    """
    P, G, T = uniform_PGT.shape
    stop_N = jnp.asarray(stop, jnp.int32)

    def going(carry: tuple) -> jax.Array:
        t, _, _, done_PG, _, _ = carry
        return (t < T) & ~done_PG.all()

    def step(carry: tuple) -> tuple:
        t, token_PG, cache, done_PG, tokens_PGT, logprobs_PGT = carry
        positions_PG = jnp.broadcast_to((cache.prefix_length_P + t)[:, None], (P, G))
        hidden_PGD, cache = qwen2.forward(params, token_PG, positions_PG, None, cfg, cache)
        logits_PGV = qwen2.unembed(params, hidden_PGD, cfg)
        uniform_PG = jax.lax.dynamic_index_in_dim(uniform_PGT, t, 2, keepdims=False)
        token_PG, logprob_PG = sampling.next_token(logits_PGV, uniform_PG, settings)
        token_PG = jnp.where(done_PG, 0, token_PG)
        tokens_PGT = jax.lax.dynamic_update_index_in_dim(tokens_PGT, token_PG, t, 2)
        logprobs_PGT = jax.lax.dynamic_update_index_in_dim(
            logprobs_PGT, jnp.where(done_PG, 0.0, logprob_PG), t, 2
        )
        # A step that a finished sample went through is told from its stop token by the lengths, not here.
        done_PG = done_PG | jnp.isin(token_PG, stop_N)
        return t + 1, token_PG, cache, done_PG, tokens_PGT, logprobs_PGT

    first_PG = jnp.broadcast_to(last_P[:, None], (P, G))
    empty = jnp.zeros((P, G), bool), jnp.zeros((P, G, T), jnp.int32), jnp.zeros((P, G, T), jnp.float32)
    steps, _, cache, done_PG, tokens_PGT, logprobs_PGT = jax.lax.while_loop(
        going, step, (jnp.int32(0), first_PG, cache, *empty)
    )
    stopped_PGT = jnp.isin(tokens_PGT, stop_N)
    length_PG = jnp.where(done_PG, jnp.argmax(stopped_PGT, axis=-1) + 1, steps)
    return Decoded(tokens_PGT, logprobs_PGT, length_PG.astype(jnp.int32), done_PG), cache
