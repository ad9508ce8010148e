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

B, T = 3, 11  # no chunk below divides the 33 positions


def inputs(model_config: qwen2.Qwen2Config) -> tuple[qwen2.Params, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    hidden_BTD = jnp.asarray(rng.standard_normal((B, T, model_config.hidden_size)), model_config.dtype)
    targets_BT = jnp.asarray(rng.integers(0, 37, (B, T)), jnp.int32)
    return tiny_models.random_params(model_config), hidden_BTD, targets_BT


def naive_logprobs(
    params: qwen2.Params, hidden_BTD: jax.Array, targets_BT: jax.Array, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """The definition, over the tokenizer's 37 ids."""
    logp_BTV = jax.nn.log_softmax((hidden_BTD @ params["embed"].T)[..., :37] / temperature, axis=-1)
    logp_BT = jnp.take_along_axis(logp_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return logp_BT, -(jnp.exp(logp_BTV) * logp_BTV).sum(-1)


def values_and_gradients(fn: Callable[..., tuple[jax.Array, jax.Array]], *inputs: Any) -> Any:
    """Log-probabilities, entropies, and the gradients of a loss that is nonlinear in both."""

    def loss(params: qwen2.Params, hidden_BTD: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, Any]:
        logp_BT, entropy_BT = fn(params, hidden_BTD, targets_BT)
        return (jnp.sin(logp_BT) + 0.3 * entropy_BT**2).sum(), (logp_BT, entropy_BT)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*inputs)


@pytest.mark.parametrize("chunk", [0, 8, 64])
def test_values_and_gradients_match_the_definition(chunk: int) -> None:
    with jax.enable_x64(True):
        model_config = dataclasses.replace(tiny_models.in_float64(), logits_chunk=chunk)
        actual = values_and_gradients(
            functools.partial(token_logprobs, config=model_config, temperature=1.1), *inputs(model_config)
        )
        expected = values_and_gradients(functools.partial(naive_logprobs, temperature=1.1), *inputs(model_config))
        differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), actual, expected)
    (_, (logp_BT, _)), _ = actual
    assert logp_BT.shape == (B, T)
    assert max(jax.tree.leaves(differences)) < 1e-11


def test_results_are_float32_for_a_bfloat16_model() -> None:
    model_config = dataclasses.replace(tiny_models.MODEL, dtype="bfloat16")
    shapes = jax.eval_shape(functools.partial(token_logprobs, config=model_config), *inputs(model_config))
    assert {str(shape.dtype) for shape in shapes} == {"float32"}


def test_logits_chunk_bounds_the_logits() -> None:
    model_config = dataclasses.replace(tiny_models.MODEL, logits_chunk=8)
    params, hidden_BTD, targets_BT = inputs(model_config)
    program = str(jax.make_jaxpr(lambda p, x: token_logprobs(p, x, targets_BT, model_config))(params, hidden_BTD))
    assert "f32[3,2,40]" in program and "f32[3,11,40]" not in program and "f32[3,12,40]" not in program


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 3, 2)])
def test_chunks_on_a_mesh_match_the_definition(sizes: tuple[int, int, int]) -> None:
    model_config = dataclasses.replace(tiny_models.MODEL, logits_chunk=4)
    params, hidden_BTD, targets_BT = inputs(model_config)
    mesh = sharding.make_mesh(config.MeshConfig(*sizes), jax.devices()[: sizes[1] * sizes[2]])
    with jax.set_mesh(mesh):
        logp_BT, _ = jax.jit(lambda p, x: token_logprobs(p, x, targets_BT, model_config))(params, hidden_BTD)
    np.testing.assert_allclose(np.asarray(logp_BT), naive_logprobs(params, hidden_BTD, targets_BT)[0], atol=1e-5)


def test_untied_model_uses_its_unembedding() -> None:
    model_config = dataclasses.replace(tiny_models.MODEL, tied=False)
    params, hidden_BTD, targets_BT = inputs(model_config)
    actual, _ = jax.jit(token_logprobs, static_argnames="config")(params, hidden_BTD, targets_BT, model_config)
    as_tied = params | {"embed": params["unembed"].T}
    expected, _ = jax.jit(naive_logprobs)(as_tied, hidden_BTD, targets_BT)
    assert jnp.abs(actual - expected).max() < 1e-5
