"""Tests of model/lora.py: adapters in the forward pass, their gradients, and merging."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import attention, init, logprobs, lora, qwen2
from testing import tiny_models

MODEL = dataclasses.replace(tiny_models.MODEL, lora_rank=2, lora_alpha=6.0)


def _params(model: qwen2.Qwen2Config) -> Any:
    """Random weights, and adapters whose product is not zero."""
    return tiny_models.random_params(model)


def _logp(params: Any, model: qwen2.Qwen2Config, logits_chunk: int = 0) -> jax.Array:
    model = dataclasses.replace(model, logits_chunk=logits_chunk)
    tokens_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)
    positions_BT = jnp.tile(jnp.arange(12, dtype=jnp.int32), (2, 1))
    mask = attention.causal_mask(tokens_BT, jnp.full(2, 12))
    hidden_BTD, _ = qwen2.forward(params, tokens_BT, positions_BT, mask, model)
    logp_BT, _ = logprobs.token_logprobs(params, hidden_BTD, (tokens_BT * 7) % 37, model)
    return logp_BT


def test_split_gives_the_adapters_and_the_rest() -> None:
    params = _params(MODEL)
    trained, frozen = lora.split(params)
    assert set(trained) == {"lora"} and set(frozen) == {"embed", "layers", "final_norm"}
    assert lora.split(frozen) == (frozen, {})


def test_zero_adapters_equal_the_model_to_the_bit() -> None:
    params = _params(tiny_models.MODEL)
    adapters = init.init_adapters(MODEL, jax.random.key(0))
    assert all(not np.any(adapter["b"]) and np.any(adapter["a"]) for adapter in adapters.values())
    with_adapters = _logp(params | {lora.KEY: adapters}, MODEL)
    np.testing.assert_array_equal(with_adapters, _logp(params, tiny_models.MODEL))


@pytest.mark.parametrize("matrices", [lora.MATRICES, ("q", "v"), ("down",)])
def test_adapters_compute_what_the_merged_weights_do(matrices: tuple[str, ...]) -> None:
    model = dataclasses.replace(MODEL, lora_matrices=matrices)
    params = _params(model)
    merged = lora.merge(params, model)
    assert jax.tree.structure(merged) == jax.tree.structure(_params(tiny_models.MODEL))  # type: ignore[operator]
    np.testing.assert_allclose(_logp(params, model), _logp(merged, tiny_models.MODEL), atol=1e-5)


def test_merge_adds_the_scaled_product() -> None:
    params = _params(MODEL)
    merged, adapter = lora.merge(params, MODEL), params[lora.KEY]["o"]
    delta = np.einsum("lhkr,lrd->lhkd", adapter["a"], adapter["b"]) * 6.0 / 2
    np.testing.assert_allclose(merged["layers"]["o"], params["layers"]["o"] + delta, atol=1e-6)


@pytest.mark.parametrize(
    ("remat", "logits_chunk"),
    [
        ("none", 0),
        ("full", 4),
        *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in (("none", 4), ("full", 0))),
    ],
)
def test_gradients_are_the_full_ones_projected(remat: str, logits_chunk: int) -> None:
    """By the chain rule through w + a b · alpha / r, in float64: da = dw bᵀ · alpha / r, db = aᵀ dw · alpha / r."""
    with jax.enable_x64(True):
        model = dataclasses.replace(tiny_models.in_float64(MODEL), remat=remat)
        params = _params(model)
        trained, frozen = lora.split(params)
        found = jax.grad(lambda trained: _logp(trained | frozen, model, logits_chunk).sum())(trained)[lora.KEY]
        full = jax.grad(lambda merged: _logp(merged, model, logits_chunk).sum())(lora.merge(params, model))
        for name, adapter in trained[lora.KEY].items():
            a, b, dw = (np.asarray(x, np.float64) for x in (adapter["a"], adapter["b"], full["layers"][name]))
            L, r = len(a), 2
            a_LMr, b_LrN = a.reshape(L, -1, r), b.reshape(L, r, -1)
            dw_LMN = dw.reshape(L, a_LMr.shape[1], -1) * 6.0 / r
            np.testing.assert_allclose(found[name]["a"].reshape(L, -1, r), dw_LMN @ b_LrN.mT, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found[name]["b"].reshape(L, r, -1), a_LMr.mT @ dw_LMN, rtol=1e-9, atol=1e-12)


def test_a_frozen_matrix_in_bfloat16_computes_in_float32() -> None:
    """The base may be stored in bfloat16; the products take its exact values."""
    model = dataclasses.replace(MODEL, param_dtype="bfloat16")
    params = _params(model)
    assert params["layers"]["q"].dtype == jnp.bfloat16 and params[lora.KEY]["q"]["a"].dtype == jnp.float32
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    np.testing.assert_allclose(_logp(params, model), _logp(wide, MODEL), atol=1e-6)


def test_adapters_are_split_as_their_matrices_are() -> None:
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2))
    specs = qwen2.abstract_params(MODEL)

    def axes(spec: qwen2.ParamSpec) -> Any:
        return sharding.named_sharding(mesh, spec.logical_axes, sharding.TRAIN_RULES, spec.shape).spec

    matrix, adapter = axes(specs["layers"]["gate"]), specs[lora.KEY]["gate"]
    assert axes(adapter["a"])[1] == matrix[1] and axes(adapter["b"])[2] == matrix[2]
