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
WIDEST = 28
forward = jax.jit(qwen2.forward, static_argnames="config")


def samples(prompts: int, seed: int = 0) -> np.ndarray:
    """What each sample says [P, G, T]."""
    return np.random.default_rng(seed).integers(2, 37, (prompts, SAMPLES, STEPS)).astype(np.int32)


def step_by_step(cfg: qwen2.Qwen2Config, state: KVCache, tokens_PGT: np.ndarray) -> tuple[KVCache, jax.Array]:
    """Feeds those tokens one at a time: the cache then, and the hidden states [P, G, T, D]."""
    state, hidden_TPGD = run(tiny_models.random_params(cfg), state, jnp.moveaxis(jnp.asarray(tokens_PGT), 2, 0), cfg)
    return state, jnp.moveaxis(hidden_TPGD, 0, 2)


@functools.partial(jax.jit, static_argnames="cfg")
def run(
    params: qwen2.Params, state: KVCache, tokens_TPG: jax.Array, cfg: qwen2.Qwen2Config
) -> tuple[KVCache, jax.Array]:
    def step(state: KVCache, token_PG: jax.Array) -> tuple[KVCache, jax.Array]:
        return decode_step(params, token_PG, state, cfg)[::-1]

    return jax.lax.scan(step, state, tokens_TPG)


def at_once(cfg: qwen2.Qwen2Config, prompt: list[int], tokens_T: np.ndarray) -> jax.Array:
    """The same of one sample in one plain forward pass."""
    text_1T = jnp.asarray([[*prompt[:-1], *tokens_T]], jnp.int32)
    assert text_1T.shape[1] <= WIDEST
    text_1T = jnp.pad(text_1T, ((0, 0), (0, WIDEST - text_1T.shape[1])))  # one program for all
    positions_1T = jnp.arange(text_1T.shape[1], dtype=jnp.int32)[None]
    mask = attention.causal_mask(text_1T, jnp.array([text_1T.shape[1]]))
    hidden_1TD, _ = forward(tiny_models.random_params(cfg), text_1T, positions_1T, mask, cfg)
    return hidden_1TD[0, len(prompt) - 1 : len(prompt) - 1 + len(tokens_T)]


@pytest.mark.parametrize("unroll", [1, 2])
def test_prefill_and_decode_steps_equal_the_forward_pass(unroll: int) -> None:
    with jax.enable_x64(True):
        cfg = dataclasses.replace(tiny_models.in_float64(), unroll=unroll)
        tokens_PGT = samples(len(PROMPTS))
        state = prefilled(tiny_models.random_params(cfg), PROMPTS, SAMPLES, STEPS, cfg, prefix=9)
        _, ours = step_by_step(cfg, state, tokens_PGT)
        for p, prompt in enumerate(PROMPTS):
            for g in range(SAMPLES):
                assert jnp.abs(ours[p, g] - at_once(cfg, prompt, tokens_PGT[p, g])).max() < 1e-12


def test_a_refilled_slot_equals_a_fresh_cache() -> None:
    with jax.enable_x64(True):
        cfg = tiny_models.in_float64()
        params = tiny_models.random_params(cfg)
        state = prefilled(params, PROMPTS, SAMPLES, STEPS, cfg)
        for seed in (1, 2):  # 40 steps into 32 columns, which then are full and of two ages
            state, _ = step_by_step(cfg, state, samples(len(PROMPTS), seed))
        tokens_1S = jnp.asarray([[20, 21]])
        mask = attention.causal_mask(tokens_1S, jnp.array([2]))
        _, state = forward(params, tokens_1S, jnp.arange(2)[None], mask, cfg, state, jnp.array([1]))
        tokens_PGT = samples(len(PROMPTS))
        _, ours = step_by_step(cfg, state, tokens_PGT)
        for g in range(SAMPLES):
            assert jnp.abs(ours[1, g] - at_once(cfg, [20, 21, 22], tokens_PGT[1, g])).max() < 1e-12


def test_a_prompts_keys_are_stored_once_for_all_samples() -> None:
    few, many = (qwen2.cache_shapes(tiny_models.MODEL, 3, samples, 5, 7) for samples in (1, 9))
    assert [k.values.shape for k in few.prefix_k] == [k.values.shape for k in many.prefix_k] == [(2, 3, 2, 4, 5)]
    assert [v.values.shape for v in few.prefix_v] == [v.values.shape for v in many.prefix_v] == [(2, 3, 2, 5, 4)]
    assert [k.values.shape for k in many.k] == [(2, 27, 2, 4, 16)] and many.columns == 16  # 7 steps in whole columns
    assert [v.values.shape for v in many.v] == [(2, 27, 2, 16, 4)]


@pytest.mark.parametrize(("unroll", "stacks", "depth"), [(1, 1, 6), (2, 2, 3), (6, 6, 1), (4, 1, 6), (9, 6, 1)])
def test_the_cache_has_one_stack_per_unrolled_layer(unroll: int, stacks: int, depth: int) -> None:
    cfg = dataclasses.replace(tiny_models.MODEL, num_layers=6, unroll=unroll)
    shapes = qwen2.cache_shapes(cfg, 3, 2, 5, 7)
    assert [k.values.shape[:-4] for k in shapes.k] == [(depth,) if depth > 1 else ()] * stacks


def test_a_step_writes_only_its_own_column() -> None:
    state = dataclasses.replace(qwen2.init_cache(tiny_models.MODEL, 3, SAMPLES, 5, 16), step=jnp.int32(18))
    ones = jnp.ones((3, SAMPLES, 2, 4))
    after = kv_cache.write(state, 0, 1, ones, 2 * ones)
    assert float(after.k[0].values[1, ..., 2].min()) == 1 and float(after.k[0].values.sum()) == ones.sum()
    assert float(after.v[0].values[1, ..., 2, :].min()) == 2 and float(after.v[0].values.sum()) == 2 * ones.sum()


def test_a_cache_is_split_over_prompts_and_heads() -> None:
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    with jax.set_mesh(mesh):
        made = jax.jit(lambda: qwen2.init_cache(tiny_models.MODEL, 8, 3, 5, 16))()
    assert made.k[0].values.addressable_shards[0].data.shape == (2, 6, 1, 4, 16)
    assert made.prefix_v[0].values.addressable_shards[0].data.shape == (2, 2, 1, 5, 4)


@pytest.mark.parametrize(
    ("columns", "step", "window"),
    [(96, 3, 96), (608, 3, 152), (608, 151, 152), (608, 152, 304), (608, 303, 304), (608, 304, 608), (608, 607, 608)],
)
def test_a_step_reads_a_window_of_columns_that_doubles_until_it_holds_the_step(
    columns: int, step: int, window: int
) -> None:
    """A NaN in a column spoils the output exactly where that column is read."""
    rng = np.random.default_rng(0)
    state = qwen2.init_cache(tiny_models.MODEL, 3, SAMPLES, 5, columns)
    assert state.columns == columns
    stacks = [jnp.asarray(rng.standard_normal(state.v[0].values.shape), jnp.float32)] * 2
    state = dataclasses.replace(state, step=jnp.int32(step), prefix_length_P=jnp.array([5, 1, 2]))
    q_PGHh = jnp.asarray(rng.standard_normal((3, SAMPLES, 4, 4)), jnp.float32)

    def attended(bad: int) -> jax.Array:
        k, v = (stack.at[..., bad, :].set(jnp.nan) for stack in stacks)
        spoiled = dataclasses.replace(
            state, k=(QuantizedArray(k.swapaxes(-1, -2), None),), v=(QuantizedArray(v, None),)
        )
        return attention.attend_cached(q_PGHh, spoiled, 0, 1)

    assert jnp.isnan(attended(window - 1)).all()
    if window < columns:
        assert jnp.isfinite(attended(window)).all()


def test_columns_past_the_step_change_nothing() -> None:
    attend = jax.jit(attention.attend_cached, static_argnums=2)
    with jax.enable_x64(True):
        state = prefilled(
            tiny_models.random_params(tiny_models.in_float64()), PROMPTS, SAMPLES, 600, tiny_models.in_float64()
        )
        rng = np.random.default_rng(0)
        q_PGHh = jnp.asarray(rng.standard_normal((3, SAMPLES, 4, 4)))
        noise = rng.standard_normal(state.k[0].values.shape)
        keys, values = (QuantizedArray(jnp.asarray(array), None) for array in (noise, noise.swapaxes(-1, -2)))
        state = dataclasses.replace(state, k=(keys,), v=(values,))
        for step in (3, 151, 152, 303, 304, 607):
            at = dataclasses.replace(state, step=jnp.int32(step))
            reached = attend(q_PGHh, at, 0, 1)
            k, v = at.k[0].values.at[..., step + 1 :].set(9), at.v[0].values.at[..., step + 1 :, :].set(9)
            blank = dataclasses.replace(at, k=(QuantizedArray(k, None),), v=(QuantizedArray(v, None),))
            assert jnp.abs(reached - attend(q_PGHh, blank, 0, 1)).max() < 1e-12


def test_int8_attention_equals_attention_to_the_dequantized_cache() -> None:
    """Scales multiply scores and weights, which is attention over the keys and values that they stand for."""
    cfg = tiny_models.MODEL
    state = dataclasses.replace(qwen2.init_cache(cfg, 3, SAMPLES, 5, 16, "int8"), prefix_length_P=jnp.array([5, 0, 2]))
    rng = np.random.default_rng(0)

    def filled(stack: QuantizedArray) -> QuantizedArray:
        values = jnp.asarray(rng.integers(-127, 128, stack.values.shape), jnp.int8)
        return QuantizedArray(values, jnp.asarray(rng.uniform(0.01, 0.03, stack.scale.shape), jnp.float32))

    names = ("prefix_k", "prefix_v", "k", "v")
    stored: Any = {name: tuple(map(filled, getattr(state, name))) for name in names}
    state = dataclasses.replace(state, **stored, step=jnp.int32(3))
    wide: Any = {name: tuple(QuantizedArray(s.values * s.scale, None) for s in getattr(state, name)) for name in names}
    q_PGHh = jnp.asarray(rng.standard_normal((3, SAMPLES, 4, 4)), jnp.float32)
    ours, theirs = (attention.attend_cached(q_PGHh, one, 0, 1) for one in (state, dataclasses.replace(state, **wide)))
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_a_column_written_in_int8_is_within_half_a_quantization_step() -> None:
    state = qwen2.init_cache(tiny_models.MODEL, 3, SAMPLES, 5, 16, "int8")
    k = jnp.asarray(np.random.default_rng(0).standard_normal((3, SAMPLES, 2, 4)), jnp.float32)
    after = kv_cache.write(state, 0, 1, k, 2 * k)
    k_RKh = k.reshape(-1, 2, 4)
    for stack, want in ((after.k[0], k_RKh[..., None]), (after.v[0], 2 * k_RKh[:, :, None])):
        got = (stack.values * stack.scale)[1]
        got = got[..., :1] if want.shape[-1] == 1 else got[..., :1, :]
        axis = -2 if want.shape[-1] == 1 else -1
        assert (jnp.abs(got - want) <= jnp.abs(want).max(axis, keepdims=True) / 254 + 1e-6).all()
