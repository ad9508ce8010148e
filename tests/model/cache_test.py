from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import small
from decoding import decode_step, prefilled

from sqlr1_jax.model import attention, cache, qwen2

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15, 16]]
SAMPLES, STEPS = 2, 20  # past the smallest window of columns that is read
WIDEST = 28
forward = jax.jit(qwen2.forward, static_argnames="cfg")


def samples(prompts: int, seed: int = 0) -> np.ndarray:
    """What each sample says [P, G, T]."""
    return np.random.default_rng(seed).integers(2, 37, (prompts, SAMPLES, STEPS)).astype(np.int32)


def step_by_step(cfg: qwen2.Qwen2Config, state: qwen2.Cache, tokens_PGT: np.ndarray) -> tuple[qwen2.Cache, jax.Array]:
    """Feeds those tokens one at a time: the cache then, and the hidden states [P, G, T, D]."""
    state, hidden_TPGD = run(small.params(cfg), state, jnp.moveaxis(jnp.asarray(tokens_PGT), 2, 0), cfg)
    return state, jnp.moveaxis(hidden_TPGD, 0, 2)


@functools.partial(jax.jit, static_argnames="cfg")
def run(
    params: qwen2.Params, state: qwen2.Cache, tokens_TPG: jax.Array, cfg: qwen2.Qwen2Config
) -> tuple[qwen2.Cache, jax.Array]:
    def step(state: qwen2.Cache, token_PG: jax.Array) -> tuple[qwen2.Cache, jax.Array]:
        return decode_step(params, token_PG, state, cfg)[::-1]

    return jax.lax.scan(step, state, tokens_TPG)


def at_once(cfg: qwen2.Qwen2Config, prompt: list[int], tokens_T: np.ndarray) -> jax.Array:
    """The same of one sample in one plain forward pass."""
    text_1T = jnp.asarray([[*prompt[:-1], *tokens_T]], jnp.int32)
    assert text_1T.shape[1] <= WIDEST
    text_1T = jnp.pad(text_1T, ((0, 0), (0, WIDEST - text_1T.shape[1])))  # one program for all
    positions_1T = jnp.arange(text_1T.shape[1], dtype=jnp.int32)[None]
    mask = attention.causal(text_1T, jnp.array([text_1T.shape[1]]))
    hidden_1TD, _ = forward(small.params(cfg), text_1T, positions_1T, mask, cfg)
    return hidden_1TD[0, len(prompt) - 1 : len(prompt) - 1 + len(tokens_T)]


def test_prefill_and_steps_are_the_forward_pass() -> None:
    with jax.enable_x64(True):
        cfg = small.wide()
        tokens_PGT = samples(len(PROMPTS))
        state = prefilled(small.params(cfg), PROMPTS, SAMPLES, STEPS, cfg, prefix=9)
        _, ours = step_by_step(cfg, state, tokens_PGT)
        for p, prompt in enumerate(PROMPTS):
            for g in range(SAMPLES):
                assert jnp.abs(ours[p, g] - at_once(cfg, prompt, tokens_PGT[p, g])).max() < 1e-12


def test_a_slot_begun_anew_is_as_good_as_a_fresh_cache() -> None:
    with jax.enable_x64(True):
        cfg = small.wide()
        params = small.params(cfg)
        state = prefilled(params, PROMPTS, SAMPLES, STEPS, cfg)
        for seed in (1, 2):  # the columns are full, and of two ages
            state, _ = step_by_step(cfg, state, samples(len(PROMPTS), seed)[:, :, :13])
        state = cache.insert(state, prefilled(params, [[20, 21, 22]], SAMPLES, 1, cfg), 1)
        tokens_PGT = samples(len(PROMPTS))
        _, ours = step_by_step(cfg, state, tokens_PGT)
        for g in range(SAMPLES):
            assert jnp.abs(ours[1, g] - at_once(cfg, [20, 21, 22], tokens_PGT[1, g])).max() < 1e-12


def test_a_prompt_is_kept_once_whatever_its_samples() -> None:
    few, many = (qwen2.cache_shapes(small.MODEL, 3, samples, 5, 7) for samples in (1, 9))
    assert few.prefix_k.shape == many.prefix_k.shape == (2, 3, 2, 4, 5)
    assert few.prefix_v.shape == many.prefix_v.shape == (2, 3, 2, 5, 4)
    assert many.k.shape == (2, 3, 9, 2, 4, 7) and many.v.shape == (2, 3, 9, 2, 7, 4)


def test_a_step_writes_its_own_column_alone() -> None:
    state = qwen2.empty_cache(small.MODEL, 3, SAMPLES, 5, 6).replace(step=jnp.int32(8))
    ones = jnp.ones((3, SAMPLES, 2, 4))
    after = cache.write(state, 1, ones, 2 * ones)
    assert float(after.k[1, ..., 2].min()) == 1 and float(after.k.sum()) == ones.sum()
    assert float(after.v[1, ..., 2, :].min()) == 2 and float(after.v.sum()) == 2 * ones.sum()


def test_axes_name_every_dimension() -> None:
    shapes = qwen2.cache_shapes(small.MODEL, 3, 2, 5, 7)
    for name, axes in cache.AXES.items():
        assert len(axes) == len(getattr(shapes, name).shape)
