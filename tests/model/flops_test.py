from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sqlr1_jax.model import attention, flops, qwen2
from testing import tiny_models


def test_forward_flops_agree_with_xlas_cost_analysis_of_one_layer() -> None:
    config = dataclasses.replace(
        tiny_models.MODEL, hidden_size=64, head_size=16, ffw_size=192, vocab_size=256, num_tokens=0, num_layers=1
    )
    B, T = 2, 48
    mask = attention.causal_mask(jnp.zeros((B, T), jnp.int32), jnp.full(B, T))

    def program(params: qwen2.Params, tokens_BT: jax.Array) -> jax.Array:
        positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        return qwen2.unembed(params, qwen2.forward(params, tokens_BT, positions_BT, mask, config)[0], config)

    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), qwen2.abstract_params(config), is_leaf=qwen2.is_spec
    )
    lowered = jax.jit(program).lower(shapes, jax.ShapeDtypeStruct((B, T), jnp.int32))
    counted = (lowered.cost_analysis() or {})["flops"]
    formula = flops.forward_flops(config, B * T, B * T * T)  # XLA computes the masked scores too
    assert formula < counted < 1.2 * formula


def test_matmul_params_are_all_but_norms_biases_and_the_embedding() -> None:
    config = qwen2.PRESETS["7b"]
    norms_and_biases = config.num_layers * (
        2 * config.hidden_size + (config.num_heads + 2 * config.num_kv_heads) * config.head_size
    )
    embedding = config.vocab_size * config.hidden_size
    assert flops.matmul_params(config) == qwen2.count_params(config) - norms_and_biases - config.hidden_size - embedding


def test_an_update_costs_three_forward_passes() -> None:
    assert flops.update_flops(tiny_models.MODEL, 10, 40) == 3 * flops.forward_flops(tiny_models.MODEL, 10, 40)


def test_tokens_without_logits_save_the_unembedding() -> None:
    config = tiny_models.MODEL
    some, all_tokens = flops.forward_flops(config, 10, 40, logit_tokens=7), flops.forward_flops(config, 10, 40)
    assert all_tokens - some == 3 * 2 * config.vocab_size * config.hidden_size
    assert flops.update_flops(config, 10, 40, logit_tokens=7) == 3 * some


def test_row_keys_are_those_that_the_mask_allows() -> None:
    by_loop = sum(t + 1 for t in range(5)) + 3 * sum(5 + t + 1 for t in range(4))
    assert flops.row_keys(5, 3, 4) == by_loop


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("abacus", 0)]
)
def test_peak_flops_depend_on_the_device_kind(kind: str, peak: float) -> None:
    class Device:
        platform, device_kind = "other", kind

    assert flops.peak_flops(Device()) == peak  # type: ignore[arg-type]
    assert flops.peak_flops(jax.devices("cpu")[0]) > 1e9
