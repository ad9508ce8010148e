from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import qwen2
from sqlr1_jax.model.logprobs import token_logprobs
from testing import tiny_models

pytestmark = pytest.mark.usefixtures("compiles_fast")

B, T = 3, 11  # 33 places: no chunk below divides them


def inputs(cfg: qwen2.Qwen2Config) -> tuple[qwen2.Params, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    hidden_BTD = jnp.asarray(rng.standard_normal((B, T, cfg.hidden_size)), cfg.dtype)
    return tiny_models.random_params(cfg), hidden_BTD, jnp.asarray(rng.integers(0, 37, (B, T)), jnp.int32)


def naive(
    params: qwen2.Params, hidden: jax.Array, targets: jax.Array, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """From the definition, over the tokenizer's ids alone."""
    logp = jax.nn.log_softmax((hidden @ params["embed"].T)[..., :37] / temperature, axis=-1)
    return jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0], -(jnp.exp(logp) * logp).sum(-1)


def values_and_gradients(fn: Callable[..., tuple[jax.Array, jax.Array]], *inputs: Any) -> Any:
    """Of a function that is curved in both results, with regard to parameters and hidden states."""

    def loss(params: qwen2.Params, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
        logp, entropy = fn(params, hidden, targets)
        return (jnp.sin(logp) + 0.3 * entropy**2).sum(), (logp, entropy)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*inputs)


@pytest.mark.parametrize("chunk", [0, 8, 64])
def test_values_and_gradients_equal_the_definition(chunk: int) -> None:
    with jax.enable_x64(True):
        cfg = dataclasses.replace(tiny_models.in_float64(), logits_chunk=chunk)
        ours = functools.partial(token_logprobs, cfg=cfg, temperature=1.1)
        theirs = functools.partial(naive, temperature=1.1)
        pair = [values_and_gradients(fn, *inputs(cfg)) for fn in (ours, theirs)]
        gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *pair)
    assert pair[0][0][1][0].shape == (B, T)
    assert max(jax.tree.leaves(gaps)) < 1e-11


def test_results_are_float32_at_least() -> None:
    cfg = dataclasses.replace(tiny_models.MODEL, dtype="bfloat16")
    shapes = jax.eval_shape(functools.partial(token_logprobs, cfg=cfg), *inputs(cfg))
    assert {str(shape.dtype) for shape in shapes} == {"float32"}


def test_chunks_bound_the_logits() -> None:
    cfg = dataclasses.replace(tiny_models.MODEL, logits_chunk=8)
    params, hidden, targets = inputs(cfg)
    program = str(jax.make_jaxpr(lambda p, h: token_logprobs(p, h, targets, cfg))(params, hidden))
    assert "f32[3,2,40]" in program and "f32[3,11,40]" not in program and "f32[3,12,40]" not in program


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 3, 2)])
def test_chunks_on_a_mesh_equal_those_on_one_device(sizes: tuple[int, int, int]) -> None:
    cfg = dataclasses.replace(tiny_models.MODEL, logits_chunk=4)
    params, hidden, targets = inputs(cfg)
    mesh = sharding.make_mesh(config.MeshConfig(*sizes), jax.devices()[: sizes[1] * sizes[2]])
    with jax.set_mesh(mesh):
        logp, _ = jax.jit(lambda p, h: token_logprobs(p, h, targets, cfg))(params, hidden)
    np.testing.assert_allclose(np.asarray(logp), naive(params, hidden, targets)[0], atol=1e-5)


def test_untied_heads_use_their_own_table() -> None:
    cfg = dataclasses.replace(tiny_models.MODEL, tied=False)
    params, hidden, targets = inputs(cfg)
    logp, _ = jax.jit(token_logprobs, static_argnames="cfg")(params, hidden, targets, cfg)
    swapped, _ = jax.jit(naive)(params | {"embed": params["unembed"].T}, hidden, targets)
    assert jnp.abs(logp - swapped).max() < 1e-5
