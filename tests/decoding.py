"""What tests of models share: nearness, the size of masks, logits of a text, greedy decoding by prefill and steps."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.model import attention, qwen2

FIXTURE = Path(__file__).parent / "model" / "fixtures" / "qwen2"


def close(ours: jax.Array | np.ndarray, theirs: np.ndarray, relative: float) -> None:
    """The largest difference, against the largest of theirs."""
    assert np.abs(np.asarray(ours) - theirs).max() <= relative * np.abs(theirs).max()


def largest_mask(function: Callable[..., Any], *args: jax.Array) -> int:
    """Elements of the largest array of bools that a program makes, loops and what stands before them included."""
    shapes = re.findall(r"bool\[([\d,]+)\]", str(jax.make_jaxpr(function)(*args)))
    return max(int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes)


def logits(params: qwen2.Params, tokens: Sequence[int], cfg: qwen2.Qwen2Config) -> np.ndarray:
    """Of one text, at each of its places, in one forward pass."""
    return np.asarray(_logits(params, jnp.asarray(tokens, jnp.int32)[None], cfg)[0])


@functools.partial(jax.jit, static_argnames="cfg")
def _logits(params: qwen2.Params, tokens_BT: jax.Array, cfg: qwen2.Qwen2Config) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
    mask = attention.causal(tokens_BT, jnp.full(tokens_BT.shape[0], tokens_BT.shape[1]))
    return qwen2.unembed(params, qwen2.forward(params, tokens_BT, positions_BT, mask, cfg)[0], cfg)


def prefilled(
    params: qwen2.Params, prompts: list[list[int]], samples: int, steps: int, cfg: qwen2.Qwen2Config, prefix: int = 0
) -> qwen2.Cache:
    """A cache that holds all but the last token of each prompt."""
    lengths = [len(prompt) - 1 for prompt in prompts]
    width = max(prefix, *lengths, 1)
    tokens_PS = jnp.asarray([[*prompt[:-1], *[0] * (width - len(prompt) + 1)] for prompt in prompts], jnp.int32)
    return _prefill(params, tokens_PS, jnp.asarray(lengths, jnp.int32), samples, steps, cfg)


@functools.partial(jax.jit, static_argnames=("samples", "steps", "cfg"))
def _prefill(
    params: qwen2.Params, tokens_PS: jax.Array, length_P: jax.Array, samples: int, steps: int, cfg: qwen2.Qwen2Config
) -> qwen2.Cache:
    P, S = tokens_PS.shape
    positions_PS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (P, S))
    cache = qwen2.empty_cache(cfg, P, samples, S, steps)
    _, cache = qwen2.forward(params, tokens_PS, positions_PS, attention.causal(tokens_PS, length_P), cfg, cache)
    assert cache is not None
    return cache


def greedy(params: qwen2.Params, prompt: list[int], steps: int, cfg: qwen2.Qwen2Config) -> tuple[list[int], np.ndarray]:
    """The `steps` likeliest next tokens, and the logits [steps, V] that each was chosen from."""
    tokens_TPG, logits_TPGV = _greedy(params, prefilled(params, [prompt], 1, steps, cfg), prompt[-1], steps, cfg)
    return [int(token) for token in tokens_TPG[:, 0, 0]], np.asarray(logits_TPGV[:, 0, 0])


@functools.partial(jax.jit, static_argnames=("steps", "cfg"))
def _greedy(
    params: qwen2.Params, cache: qwen2.Cache, last: jax.Array, steps: int, cfg: qwen2.Qwen2Config
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
    params: qwen2.Params, token_PG: jax.Array, cache: qwen2.Cache, cfg: qwen2.Qwen2Config
) -> tuple[jax.Array, qwen2.Cache]:
    """One step of every sample, whatever its prompt's age: hidden [P, G, D] and the cache after it."""
    positions_P = cache.prefix_length_P + cache.step - cache.start_P
    positions_PG = jnp.broadcast_to(positions_P[:, None], token_PG.shape)
    hidden_PGD, after = qwen2.forward(params, token_PG, positions_PG, None, cfg, cache)
    assert after is not None
    return hidden_PGD, after
