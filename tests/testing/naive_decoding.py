"""Slow ways to compute a text's logits and log-probabilities, and greedy decoding by prefill and single steps."""

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


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def naive_logprobs(
    params: Any, tokens_T: jax.Array, model: qwen2.Qwen2Config = MODEL, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [T-1, V] of each next token of one plain text, and their entropy [T-1]: nothing is shared."""
    tokens_1T = tokens_T[None, :-1]
    positions_1T = jnp.arange(tokens_1T.shape[1])[None]
    mask = attention.causal_mask(tokens_1T, jnp.full(1, tokens_1T.shape[1]))
    hidden_1TD, _ = qwen2.forward(params, tokens_1T, positions_1T, mask, model)
    logp_TV = jax.nn.log_softmax(qwen2.unembed(params, hidden_1TD, model)[0] / temperature, axis=-1)
    return logp_TV, -(jnp.exp(logp_TV) * logp_TV).sum(-1)


def logits(params: qwen2.Params, tokens: Sequence[int], cfg: qwen2.Qwen2Config) -> np.ndarray:
    """Logits [T, V] of one text at each of its tokens, in one forward pass."""
    return np.asarray(_logits(params, jnp.asarray(tokens, jnp.int32)[None], cfg)[0])


@functools.partial(jax.jit, static_argnames="cfg")
def _logits(params: qwen2.Params, tokens_BT: jax.Array, cfg: qwen2.Qwen2Config) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
    mask = attention.causal_mask(tokens_BT, jnp.full(tokens_BT.shape[0], tokens_BT.shape[1]))
    return qwen2.unembed(params, qwen2.forward(params, tokens_BT, positions_BT, mask, cfg)[0], cfg)


def prefilled(
    params: qwen2.Params, prompts: list[list[int]], samples: int, steps: int, cfg: qwen2.Qwen2Config, prefix: int = 0
) -> KVCache:
    """A cache that holds all but the last token of each prompt; its prefix is at least `prefix` tokens wide."""
    lengths = [len(prompt) - 1 for prompt in prompts]
    width = max(prefix, *lengths, 1)
    tokens_PS = jnp.asarray([[*prompt[:-1], *[0] * (width - len(prompt) + 1)] for prompt in prompts], jnp.int32)
    return _prefill(params, tokens_PS, jnp.asarray(lengths, jnp.int32), samples, steps, cfg)


@functools.partial(jax.jit, static_argnames=("samples", "steps", "cfg"))
def _prefill(
    params: qwen2.Params, tokens_PS: jax.Array, length_P: jax.Array, samples: int, steps: int, cfg: qwen2.Qwen2Config
) -> KVCache:
    P, S = tokens_PS.shape
    positions_PS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (P, S))
    cache = qwen2.init_cache(cfg, P, samples, S, steps)
    _, after = qwen2.forward(params, tokens_PS, positions_PS, attention.causal_mask(tokens_PS, length_P), cfg, cache)
    assert after is not None
    return after


def greedy(params: qwen2.Params, prompt: list[int], steps: int, cfg: qwen2.Qwen2Config) -> tuple[list[int], np.ndarray]:
    """The `steps` greedy tokens after a prompt, and the logits [steps, V] that each was chosen from."""
    tokens_TPG, logits_TPGV = _greedy(params, prefilled(params, [prompt], 1, steps, cfg), prompt[-1], steps, cfg)
    return [int(token) for token in tokens_TPG[:, 0, 0]], np.asarray(logits_TPGV[:, 0, 0])


@functools.partial(jax.jit, static_argnames=("steps", "cfg"))
def _greedy(
    params: qwen2.Params, cache: KVCache, last: jax.Array, steps: int, cfg: qwen2.Qwen2Config
) -> tuple[jax.Array, jax.Array]:
    def step(carry: tuple, _: None) -> tuple:
        token_PG, cache = carry
        hidden_PGD, cache = decode_step(params, token_PG, cache, cfg)
        logits_PGV = qwen2.unembed(params, hidden_PGD, cfg)
        token_PG = jnp.argmax(logits_PGV, axis=-1).astype(jnp.int32)
        return (token_PG, cache), (token_PG, logits_PGV)

    P = cache.start_P.size
    last_PG = jnp.full((P, cache.v[0].values.shape[-4] // P), last, jnp.int32)
    return jax.lax.scan(step, (last_PG, cache), None, length=steps)[1]


def decode_step(
    params: qwen2.Params, token_PG: jax.Array, cache: KVCache, cfg: qwen2.Qwen2Config
) -> tuple[jax.Array, KVCache]:
    """One decode step of every sample: hidden states [P, G, D], and the cache after it."""
    positions_P = cache.prefix_length_P + cache.step - cache.start_P
    positions_PG = jnp.broadcast_to(positions_P[:, None], token_PG.shape)
    hidden_PGD, after = qwen2.forward(params, token_PG, positions_PG, None, cfg, cache)
    assert after is not None
    return hidden_PGD, after
