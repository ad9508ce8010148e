from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import attention, kv_cache, qwen2
from sqlr1_jax.model.kv_cache import KVCache
from sqlr1_jax.model.quantize import QuantizedArray
from testing import tiny_models
from testing.naive_decoding import decode_step, prefilled

pytestmark = pytest.mark.usefixtures("compiles_fast")

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15, 16]]
SAMPLES, STEPS = 2, 20
PADDED_LENGTH = 28  # every plain text is padded to it, so that one program serves all
forward = jax.jit(qwen2.forward, static_argnums=4)


def random_tokens(prompts: int, seed: int = 0) -> np.ndarray:
    """Random tokens of each sample [P, G, T]."""
    return np.random.default_rng(seed).integers(2, 37, (prompts, SAMPLES, STEPS)).astype(np.int32)


def decode_tokens(model_config: qwen2.Qwen2Config, cache: KVCache, tokens_PGT: np.ndarray) -> tuple[KVCache, jax.Array]:
    """Decodes given tokens step by step: the final cache, and hidden states [P, G, T, D]."""
    tokens_TPG = jnp.moveaxis(jnp.asarray(tokens_PGT), 2, 0)
    cache, hidden_TPGD = _decode(tiny_models.random_params(model_config), cache, tokens_TPG, model_config)
    return cache, jnp.moveaxis(hidden_TPGD, 0, 2)


@functools.partial(jax.jit, static_argnames="model_config")
def _decode(
    params: qwen2.Params, cache: KVCache, tokens_TPG: jax.Array, model_config: qwen2.Qwen2Config
) -> tuple[KVCache, jax.Array]:
    def step(cache: KVCache, token_PG: jax.Array) -> tuple[KVCache, jax.Array]:
        return decode_step(params, token_PG, cache, model_config)[::-1]

    return jax.lax.scan(step, cache, tokens_TPG)


def plain_forward(model_config: qwen2.Qwen2Config, prompt: list[int], tokens_T: np.ndarray) -> jax.Array:
    """Hidden states [T, D] of one sample's tokens, from one forward pass over prompt and tokens."""
    text_1T = jnp.asarray([[*prompt[:-1], *tokens_T]], jnp.int32)
    assert text_1T.shape[1] <= PADDED_LENGTH
    text_1T = jnp.pad(text_1T, ((0, 0), (0, PADDED_LENGTH - text_1T.shape[1])))
    positions_1T = jnp.arange(text_1T.shape[1], dtype=jnp.int32)[None]
    mask = attention.causal_mask(text_1T, jnp.array([text_1T.shape[1]]))
    hidden_1TD, _ = forward(tiny_models.random_params(model_config), text_1T, positions_1T, mask, model_config)
    return hidden_1TD[0, len(prompt) - 1 : len(prompt) - 1 + len(tokens_T)]


@pytest.mark.parametrize("unroll", [1, 2])
def test_prefill_and_decode_steps_match_the_forward_pass(unroll: int) -> None:
    with jax.enable_x64(True):
        model_config = dataclasses.replace(tiny_models.in_float64(), unroll=unroll)
        tokens_PGT = random_tokens(len(PROMPTS))
        params = tiny_models.random_params(model_config)
        cache = prefilled(params, PROMPTS, SAMPLES, STEPS, model_config, prefix=9)
        _, hidden_PGTD = decode_tokens(model_config, cache, tokens_PGT)
        for p, prompt in enumerate(PROMPTS):
            for g in range(SAMPLES):
                expected_TD = plain_forward(model_config, prompt, tokens_PGT[p, g])
                assert jnp.abs(hidden_PGTD[p, g] - expected_TD).max() < 1e-12


def test_reused_slot_sees_nothing_of_its_earlier_prompt() -> None:
    with jax.enable_x64(True):
        model_config = tiny_models.in_float64()
        params = tiny_models.random_params(model_config)
        cache = prefilled(params, PROMPTS, SAMPLES, STEPS, model_config)
        for seed in (1, 2):  # 40 steps fill the 32 columns and overwrite the first 8
            cache, _ = decode_tokens(model_config, cache, random_tokens(len(PROMPTS), seed))
        tokens_1S = jnp.asarray([[20, 21]])
        mask = attention.causal_mask(tokens_1S, jnp.array([2]))
        _, cache = forward(params, tokens_1S, jnp.arange(2)[None], mask, model_config, cache, jnp.array([1]))
        tokens_PGT = random_tokens(len(PROMPTS))
        _, hidden_PGTD = decode_tokens(model_config, cache, tokens_PGT)
        for g in range(SAMPLES):
            expected_TD = plain_forward(model_config, [20, 21, 22], tokens_PGT[1, g])
            assert jnp.abs(hidden_PGTD[1, g] - expected_TD).max() < 1e-12


def test_prefixes_are_stored_once_per_prompt() -> None:
    few, many = (qwen2.cache_shapes(tiny_models.MODEL, 3, samples, 5, 7) for samples in (1, 9))
    assert [k.values.shape for k in few.prefix_k] == [k.values.shape for k in many.prefix_k] == [(2, 3, 2, 4, 5)]
    assert [v.values.shape for v in few.prefix_v] == [v.values.shape for v in many.prefix_v] == [(2, 3, 2, 5, 4)]
    assert [k.values.shape for k in many.k] == [(2, 27, 2, 4, 16)] and many.columns == 16  # 7 steps, rounded up to 16
    assert [v.values.shape for v in many.v] == [(2, 27, 2, 16, 4)]


@pytest.mark.parametrize(("unroll", "stacks", "depth"), [(1, 1, 6), (2, 2, 3), (6, 6, 1), (4, 1, 6), (9, 6, 1)])
def test_stacks_follow_the_unroll_setting(unroll: int, stacks: int, depth: int) -> None:
    model_config = dataclasses.replace(tiny_models.MODEL, num_layers=6, unroll=unroll)
    shapes = qwen2.cache_shapes(model_config, 3, 2, 5, 7)
    assert [k.values.shape[:-4] for k in shapes.k] == [(depth,) if depth > 1 else ()] * stacks


def test_write_changes_only_the_column_of_its_step() -> None:
    cache = dataclasses.replace(qwen2.init_cache(tiny_models.MODEL, 3, SAMPLES, 5, 16), step=jnp.int32(18))
    ones = jnp.ones((3, SAMPLES, 2, 4))
    after = kv_cache.write(cache, 0, 1, ones, 2 * ones)
    assert float(after.k[0].values[1, ..., 2].min()) == 1 and float(after.k[0].values.sum()) == ones.sum()
    assert float(after.v[0].values[1, ..., 2, :].min()) == 2 and float(after.v[0].values.sum()) == 2 * ones.sum()


def test_cache_is_sharded_over_prompts_and_heads() -> None:
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    with jax.set_mesh(mesh):
        cache = jax.jit(lambda: qwen2.init_cache(tiny_models.MODEL, 8, 3, 5, 16))()
    assert cache.k[0].values.addressable_shards[0].data.shape == (2, 6, 1, 4, 16)
    assert cache.prefix_v[0].values.addressable_shards[0].data.shape == (2, 2, 1, 5, 4)


@pytest.mark.parametrize(
    ("columns", "step", "window"),
    [(96, 3, 96), (608, 3, 152), (608, 151, 152), (608, 152, 304), (608, 303, 304), (608, 304, 608), (608, 607, 608)],
)
def test_step_reads_the_smallest_window_that_holds_it(columns: int, step: int, window: int) -> None:
    """A NaN in a column reaches the output exactly if that column is read."""
    rng = np.random.default_rng(0)
    cache = qwen2.init_cache(tiny_models.MODEL, 3, SAMPLES, 5, columns)
    assert cache.columns == columns
    stacks = [jnp.asarray(rng.standard_normal(cache.v[0].values.shape), jnp.float32)] * 2
    cache = dataclasses.replace(cache, step=jnp.int32(step), prefix_length_P=jnp.array([5, 1, 2]))
    q_PGHh = jnp.asarray(rng.standard_normal((3, SAMPLES, 4, 4)), jnp.float32)

    def attend_with_nan(column: int) -> jax.Array:
        k, v = (stack.at[..., column, :].set(jnp.nan) for stack in stacks)
        with_nan = dataclasses.replace(
            cache, k=(QuantizedArray(k.swapaxes(-1, -2), None),), v=(QuantizedArray(v, None),)
        )
        return attention.attend_cached(q_PGHh, with_nan, 0, 1)

    assert jnp.isnan(attend_with_nan(window - 1)).all()
    if window < columns:
        assert jnp.isfinite(attend_with_nan(window)).all()


def test_columns_past_the_step_have_no_effect() -> None:
    attend_cached = jax.jit(attention.attend_cached, static_argnums=2)
    with jax.enable_x64(True):
        model_config = tiny_models.in_float64()
        cache = prefilled(tiny_models.random_params(model_config), PROMPTS, SAMPLES, 600, model_config)
        rng = np.random.default_rng(0)
        q_PGHh = jnp.asarray(rng.standard_normal((3, SAMPLES, 4, 4)))
        noise = rng.standard_normal(cache.k[0].values.shape)
        cache = dataclasses.replace(
            cache,
            k=(QuantizedArray(jnp.asarray(noise), None),),
            v=(QuantizedArray(jnp.asarray(noise.swapaxes(-1, -2)), None),),
        )
        for step in (3, 151, 152, 303, 304, 607):
            at_step = dataclasses.replace(cache, step=jnp.int32(step))
            k = at_step.k[0].values.at[..., step + 1 :].set(9)
            v = at_step.v[0].values.at[..., step + 1 :, :].set(9)
            overwritten = dataclasses.replace(at_step, k=(QuantizedArray(k, None),), v=(QuantizedArray(v, None),))
            difference = attend_cached(q_PGHh, at_step, 0, 1) - attend_cached(q_PGHh, overwritten, 0, 1)
            assert jnp.abs(difference).max() < 1e-12


def test_int8_cache_attends_to_the_dequantized_values() -> None:
    """Scales multiply scores and weights, which equals attention over values · scale."""
    cache = qwen2.init_cache(tiny_models.MODEL, 3, SAMPLES, 5, 16, "int8")
    cache = dataclasses.replace(cache, prefix_length_P=jnp.array([5, 0, 2]), step=jnp.int32(3))
    rng = np.random.default_rng(0)

    def randomize(stack: QuantizedArray) -> QuantizedArray:
        values = jnp.asarray(rng.integers(-127, 128, stack.values.shape), jnp.int8)
        return QuantizedArray(values, jnp.asarray(rng.uniform(0.01, 0.03, stack.scale.shape), jnp.float32))

    names = ("prefix_k", "prefix_v", "k", "v")
    stored: Any = {name: tuple(map(randomize, getattr(cache, name))) for name in names}
    cache = dataclasses.replace(cache, **stored)
    wide: Any = {name: tuple(QuantizedArray(s.values * s.scale, None) for s in getattr(cache, name)) for name in names}
    q_PGHh = jnp.asarray(rng.standard_normal((3, SAMPLES, 4, 4)), jnp.float32)
    actual = attention.attend_cached(q_PGHh, cache, 0, 1)
    expected = attention.attend_cached(q_PGHh, dataclasses.replace(cache, **wide), 0, 1)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


def test_column_written_in_int8_is_within_half_a_step() -> None:
    cache = qwen2.init_cache(tiny_models.MODEL, 3, SAMPLES, 5, 16, "int8")
    k = jnp.asarray(np.random.default_rng(0).standard_normal((3, SAMPLES, 2, 4)), jnp.float32)
    after = kv_cache.write(cache, 0, 1, k, 2 * k)
    k_RKh = k.reshape(-1, 2, 4)
    k_column = (after.k[0].values * after.k[0].scale)[1, ..., :1], k_RKh[..., None], -2
    v_column = (after.v[0].values * after.v[0].scale)[1, ..., :1, :], 2 * k_RKh[:, :, None], -1
    for actual, expected, head_axis in (k_column, v_column):
        tolerance = jnp.abs(expected).max(head_axis, keepdims=True) / 254 + 1e-6
        assert (jnp.abs(actual - expected) <= tolerance).all()
