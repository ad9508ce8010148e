from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from sqlr1_jax.model import attention, flops, qwen2
from testing import tiny_models


def test_forward_flops_match_xlas_count_without_loops() -> None:
    cfg = dataclasses.replace(
        tiny_models.MODEL, hidden_size=64, head_size=16, ffw_size=192, vocab_size=256, num_tokens=0, num_layers=1
    )
    B, T = 2, 48
    mask = attention.causal_mask(jnp.zeros((B, T), jnp.int32), jnp.full(B, T))

    def program(params: qwen2.Params, tokens_BT: jax.Array) -> jax.Array:
        positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        return qwen2.unembed(params, qwen2.forward(params, tokens_BT, positions_BT, mask, cfg)[0], cfg)

    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), qwen2.abstract_params(cfg), is_leaf=qwen2.is_spec
    )
    lowered = jax.jit(program).lower(shapes, jax.ShapeDtypeStruct((B, T), jnp.int32))
    costs: Any = lowered.cost_analysis()
    counted = costs["flops"]
    by_hand = flops.forward_flops(cfg, B * T, B * T * T)  # the program scores what causality hides, too
    assert by_hand < counted < 1.2 * by_hand


def test_matmul_params_exclude_norms_biases_and_the_embedding_lookup() -> None:
    cfg = qwen2.PRESETS["7b"]
    others = cfg.num_layers * (2 * cfg.hidden_size + (cfg.num_heads + 2 * cfg.num_kv_heads) * cfg.head_size)
    lookup = cfg.vocab_size * cfg.hidden_size
    assert flops.matmul_params(cfg) == qwen2.count_params(cfg) - others - cfg.hidden_size - lookup


def test_update_flops_are_three_forward_passes() -> None:
    assert flops.update_flops(tiny_models.MODEL, 10, 40) == 3 * flops.forward_flops(tiny_models.MODEL, 10, 40)


def test_tokens_without_logits_cost_less() -> None:
    cfg = tiny_models.MODEL
    some, every = flops.forward_flops(cfg, 10, 40, asked=7), flops.forward_flops(cfg, 10, 40)
    assert every - some == 3 * 2 * cfg.vocab_size * cfg.hidden_size
    assert flops.update_flops(cfg, 10, 40, asked=7) == 3 * some


def test_row_keys_counts_the_pairs_that_the_mask_allows() -> None:
    by_loop = sum(t + 1 for t in range(5)) + 3 * sum(5 + t + 1 for t in range(4))
    assert flops.row_keys(5, 3, 4) == by_loop


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("abacus", 0)]
)
def test_peak_flops_follow_the_device_kind(kind: str, peak: float) -> None:
    class Device:
        platform, device_kind = "other", kind

    assert flops.peak_flops(Device()) == peak  # type: ignore[arg-type]
    assert flops.peak_flops(jax.devices("cpu")[0]) > 1e9
