from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sqlr1_jax.model import attention, flops, qwen2
from testing import tiny_models


def test_forward_is_what_the_compiler_counts_of_a_model_without_loops() -> None:
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
    counted = lowered.cost_analysis()["flops"]
    by_hand = flops.forward_flops(config, B * T, B * T * T)  # the program scores what causality hides, too
    assert by_hand < counted < 1.2 * by_hand


def test_parameters_of_products_are_all_but_norms_biases_and_the_lookup() -> None:
    config = qwen2.PRESETS["7b"]
    others = config.num_layers * (
        2 * config.hidden_size + (config.num_heads + 2 * config.num_kv_heads) * config.head_size
    )
    lookup = config.vocab_size * config.hidden_size
    assert flops.matmul_params(config) == qwen2.count_params(config) - others - config.hidden_size - lookup


def test_an_update_is_three_forward_passes() -> None:
    assert flops.update_flops(tiny_models.MODEL, 10, 40) == 3 * flops.forward_flops(tiny_models.MODEL, 10, 40)


def test_a_token_that_is_not_asked_saves_its_logits() -> None:
    config = tiny_models.MODEL
    some, every = flops.forward_flops(config, 10, 40, logit_tokens=7), flops.forward_flops(config, 10, 40)
    assert every - some == 3 * 2 * config.vocab_size * config.hidden_size
    assert flops.update_flops(config, 10, 40, logit_tokens=7) == 3 * some


def test_keys_of_a_row_are_those_its_mask_allows() -> None:
    by_loop = sum(t + 1 for t in range(5)) + 3 * sum(5 + t + 1 for t in range(4))
    assert flops.row_keys(5, 3, 4) == by_loop


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("abacus", 0)]
)
def test_peaks_go_by_the_devices_kind(kind: str, peak: float) -> None:
    class Device:
        platform, device_kind = "other", kind

    assert flops.peak_flops(Device()) == peak  # type: ignore[arg-type]
    assert flops.peak_flops(jax.devices("cpu")[0]) > 1e9
