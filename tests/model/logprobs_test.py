from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from sqlr1_jax.model import qwen2
from sqlr1_jax.model.logprobs import token_logprobs

B, T = 3, 11  # 33 places: no chunk below divides them


def inputs(cfg: qwen2.Qwen2Config) -> tuple[qwen2.Params, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    hidden_BTD = jnp.asarray(rng.standard_normal((B, T, cfg.hidden_size)), cfg.dtype)
    return small.params(cfg), hidden_BTD, jnp.asarray(rng.integers(0, 37, (B, T)), jnp.int32)


def naive(params: qwen2.Params, hidden: jax.Array, targets: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """From the definition, over the tokenizer's ids alone."""
    logp = jax.nn.log_softmax((hidden @ params["embed"].T)[..., :37] / temperature, axis=-1)
    return jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0], -(jnp.exp(logp) * logp).sum(-1)


@pytest.mark.parametrize("chunk", [0, 8, 64])
@pytest.mark.parametrize("temperature", [1.0, 1.1])
def test_values_and_gradients_are_the_definition(chunk: int, temperature: float) -> None:
    with jax.enable_x64(True):
        cfg = dataclasses.replace(small.wide(), logits_chunk=chunk)
        params, hidden, targets = inputs(cfg)

        def ours(params: qwen2.Params, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            return token_logprobs(params, hidden, targets, cfg, temperature)

        def theirs(params: qwen2.Params, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            return naive(params, hidden, targets, temperature)

        def loss(fn: object, *args: object) -> jax.Array:
            logp, entropy = fn(*args)  # type: ignore[operator]
            return (jnp.sin(logp) + 0.3 * entropy**2).sum()

        for a, b in zip(ours(params, hidden), theirs(params, hidden), strict=True):
            assert a.shape == (B, T) and jnp.abs(a - b).max() < 1e-12
        for a, b in zip(*(jax.grad(loss, (1, 2))(fn, params, hidden) for fn in (ours, theirs)), strict=True):
            gaps = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)
            assert max(jax.tree.leaves(gaps)) < 1e-11


def test_results_are_float32_at_least() -> None:
    cfg = dataclasses.replace(small.MODEL, dtype="bfloat16")
    assert {str(part.dtype) for part in token_logprobs(*inputs(cfg), cfg)} == {"float32"}


def test_chunks_bound_the_logits() -> None:
    cfg = dataclasses.replace(small.MODEL, logits_chunk=8)
    params, hidden, targets = inputs(cfg)
    program = str(jax.make_jaxpr(lambda p, h: token_logprobs(p, h, targets, cfg))(params, hidden))
    assert "f32[8,40]" in program and "f32[33,40]" not in program and "f32[40,40]" not in program


def test_untied_heads_use_their_own_table() -> None:
    cfg = dataclasses.replace(small.MODEL, tied=False)
    params, hidden, targets = inputs(cfg)
    logp, _ = token_logprobs(params, hidden, targets, cfg)
    swapped, _ = naive(params | {"embed": params["unembed"].T}, hidden, targets, 1.0)
    assert jnp.abs(logp - swapped).max() < 1e-5
