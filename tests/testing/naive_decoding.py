"""Reference implementations: a text's log-probabilities without sharing, greedy decoding by single steps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.model import attention, qwen2
from sqlr1_jax.model.kv_cache import KVCache
from testing.tiny_models import MODEL


@functools.partial(jax.jit, static_argnames=("model_config", "temperature"))
def naive_logprobs(
    params: Any, tokens_T: jax.Array, model_config: qwen2.Qwen2Config = MODEL, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [T-1, V] of each next token of one text, and their entropy [T-1], without a shared prefix."""
    tokens_1T = tokens_T[None, :-1]
    positions_1T = jnp.arange(tokens_1T.shape[1])[None]
    mask = attention.causal_mask(tokens_1T, jnp.full(1, tokens_1T.shape[1]))
    hidden_1TD, _ = qwen2.forward(params, tokens_1T, positions_1T, mask, model_config)
    logp_TV = jax.nn.log_softmax(qwen2.unembed(params, hidden_1TD, model_config)[0] / temperature, axis=-1)
    return logp_TV, -(jnp.exp(logp_TV) * logp_TV).sum(-1)


def logits(params: qwen2.Params, tokens: Sequence[int], model_config: qwen2.Qwen2Config) -> np.ndarray:
    """Logits [T, V] at every token of one text, by one forward pass."""
    return np.asarray(_logits(params, jnp.asarray(tokens, jnp.int32)[None], model_config)[0])


@functools.partial(jax.jit, static_argnames="model_config")
def _logits(params: qwen2.Params, tokens_BT: jax.Array, model_config: qwen2.Qwen2Config) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
    mask = attention.causal_mask(tokens_BT, jnp.full(tokens_BT.shape[0], tokens_BT.shape[1]))
    return qwen2.unembed(params, qwen2.forward(params, tokens_BT, positions_BT, mask, model_config)[0], model_config)


def prefilled(
    params: qwen2.Params,
    prompts: list[list[int]],
    samples: int,
    steps: int,
    model_config: qwen2.Qwen2Config,
    prefix: int = 0,
) -> KVCache:
    """A cache that holds all but the last token of each prompt; its prefix is at least `prefix` tokens wide."""
    lengths = [len(prompt) - 1 for prompt in prompts]
    width = max(prefix, *lengths, 1)
    tokens_PS = jnp.asarray([[*prompt[:-1], *[0] * (width - len(prompt) + 1)] for prompt in prompts], jnp.int32)
    return _prefill(params, tokens_PS, jnp.asarray(lengths, jnp.int32), samples, steps, model_config)


@functools.partial(jax.jit, static_argnames=("samples", "steps", "model_config"))
def _prefill(
    params: qwen2.Params,
    tokens_PS: jax.Array,
    length_P: jax.Array,
    samples: int,
    steps: int,
    model_config: qwen2.Qwen2Config,
) -> KVCache:
    P, S = tokens_PS.shape
    positions_PS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (P, S))
    cache = qwen2.init_cache(model_config, P, samples, S, steps)
    _, new_cache = qwen2.forward(
        params, tokens_PS, positions_PS, attention.causal_mask(tokens_PS, length_P), model_config, cache
    )
    assert new_cache is not None
    return new_cache


def greedy(
    params: qwen2.Params, prompt: list[int], steps: int, model_config: qwen2.Qwen2Config
) -> tuple[list[int], np.ndarray]:
    """The `steps` greedy tokens after a prompt, and the logits [steps, V] that each was chosen from."""
    tokens_TPG, logits_TPGV = _greedy(
        params, prefilled(params, [prompt], 1, steps, model_config), prompt[-1], steps, model_config
    )
    return [int(token) for token in tokens_TPG[:, 0, 0]], np.asarray(logits_TPGV[:, 0, 0])


@functools.partial(jax.jit, static_argnames=("steps", "model_config"))
def _greedy(
    params: qwen2.Params, cache: KVCache, last: jax.Array, steps: int, model_config: qwen2.Qwen2Config
) -> tuple[jax.Array, jax.Array]:
    def step(carry: tuple, _: None) -> tuple:
        token_PG, cache = carry
        hidden_PGD, cache = decode_step(params, token_PG, cache, model_config)
        logits_PGV = qwen2.unembed(params, hidden_PGD, model_config)
        token_PG = jnp.argmax(logits_PGV, axis=-1).astype(jnp.int32)
        return (token_PG, cache), (token_PG, logits_PGV)

    P = cache.start_P.size
    last_PG = jnp.full((P, cache.v[0].values.shape[-4] // P), last, jnp.int32)
    return jax.lax.scan(step, (last_PG, cache), None, length=steps)[1]


def decode_step(
    params: qwen2.Params, token_PG: jax.Array, cache: KVCache, model_config: qwen2.Qwen2Config
) -> tuple[jax.Array, KVCache]:
    """One decode step of every sample: hidden states [P, G, D], and the cache after it."""
    positions_P = cache.prefix_length_P + cache.step - cache.start_P
    positions_PG = jnp.broadcast_to(positions_P[:, None], token_PG.shape)
    hidden_PGD, new_cache = qwen2.forward(params, token_PG, positions_PG, None, model_config, cache)
    assert new_cache is not None
    return hidden_PGD, new_cache
