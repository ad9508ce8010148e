"""What tests of models share: logits of a text, and greedy decoding by prefill and steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.model import attention, qwen2

FIXTURE = Path(__file__).parent / "model" / "fixtures" / "qwen2"


def logits(params: qwen2.Params, tokens: Sequence[int], cfg: qwen2.Qwen2Config) -> np.ndarray:
    """Of one text, at each of its places, in one forward pass."""
    tokens_BT = jnp.asarray(tokens, jnp.int32)[None]
    positions_BT = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    mask = attention.causal(tokens_BT, jnp.array([len(tokens)]))
    hidden_BTD, _ = qwen2.forward(params, tokens_BT, positions_BT, mask, cfg)
    return np.asarray(qwen2.unembed(params, hidden_BTD, cfg)[0])


def prefilled(
    params: qwen2.Params, prompts: list[list[int]], samples: int, steps: int, cfg: qwen2.Qwen2Config, prefix: int = 0
) -> qwen2.Cache:
    """A cache that holds all but the last token of each prompt."""
    lengths = [len(prompt) - 1 for prompt in prompts]
    width = max(prefix, *lengths, 1)
    tokens_PS = jnp.asarray([[*prompt[:-1], *[0] * (width - len(prompt) + 1)] for prompt in prompts], jnp.int32)
    positions_PS = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], tokens_PS.shape)
    mask = attention.causal(tokens_PS, jnp.asarray(lengths, jnp.int32))
    cache = qwen2.empty_cache(cfg, len(prompts), samples, width, steps)
    _, cache = qwen2.forward(params, tokens_PS, positions_PS, mask, cfg, cache)
    assert cache is not None
    return cache


def greedy(params: qwen2.Params, prompt: list[int], steps: int, cfg: qwen2.Qwen2Config) -> tuple[list[int], np.ndarray]:
    """The `steps` likeliest next tokens, and the logits [steps, V] that each was chosen from."""

    @jax.jit
    def run(params: qwen2.Params, cache: qwen2.Cache) -> tuple[jax.Array, jax.Array]:
        def step(carry: tuple, _: None) -> tuple:
            token_PG, cache = carry
            positions_PG = cache.prefix_length_P[:, None] + cache.step
            hidden_PGD, cache = qwen2.forward(params, token_PG, positions_PG, None, cfg, cache)
            logits_PGV = qwen2.unembed(params, hidden_PGD, cfg)
            token_PG = jnp.argmax(logits_PGV, axis=-1).astype(jnp.int32)
            return (token_PG, cache), (token_PG, logits_PGV)

        first = jnp.asarray([[prompt[-1]]], jnp.int32), cache
        return jax.lax.scan(step, first, None, length=steps)[1]

    tokens_TPG, logits_TPGV = run(params, prefilled(params, [prompt], 1, steps, cfg))
    return [int(token) for token in tokens_TPG[:, 0, 0]], np.asarray(logits_TPGV[:, 0, 0])
