"""The key-value cache of sampling: each prompt's keys and values once, and those of its samples' own steps.

All prompts write the same column at a step, whatever their age: a slot that begins anew at step n has the columns
n, n + 1, … modulo their number for itself, and what an earlier prompt left there is hidden by its age. Keys lie with
time last, so that a step's scores are a plain matrix product: on CPU that halves them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Cache:
    """Slots for P prompts of G samples each; a sample has T columns for its own steps."""

    prefix_k: jax.Array  # [L, P, K, h, S]
    prefix_v: jax.Array  # [L, P, K, S, h]
    prefix_length_P: jax.Array  # tokens of each prompt that are here: prompt[:-1]
    k: jax.Array  # [L, P, G, K, h, T]
    v: jax.Array  # [L, P, G, K, T, h]
    step: jax.Array  # decode steps since the cache was made; the next one writes column step % T
    start_P: jax.Array  # the step at which each slot's prompt began


# Logical axes of each field, for sharding.spec with SAMPLE_RULES.
AXES: dict[str, tuple[str | None, ...]] = {
    "prefix_k": (None, "rows", "kv_heads", None, None),
    "prefix_v": (None, "rows", "kv_heads", None, None),
    "prefix_length_P": ("rows",),
    "k": (None, "rows", None, "kv_heads", None, None),
    "v": (None, "rows", None, "kv_heads", None, None),
    "step": (),
    "start_P": ("rows",),
}


def shapes(
    layers: int, prompts: int, samples: int, prefix: int, steps: int, kv_heads: int, head_size: int, dtype: jnp.dtype
) -> Cache:
    """The cache as jax.ShapeDtypeStruct: for planning, and for `zeros`."""
    shared, own = (layers, prompts, kv_heads), (layers, prompts, samples, kv_heads)
    numbers = jax.ShapeDtypeStruct((prompts,), jnp.int32)
    fields = {
        "prefix_k": jax.ShapeDtypeStruct((*shared, head_size, prefix), dtype),
        "prefix_v": jax.ShapeDtypeStruct((*shared, prefix, head_size), dtype),
        "prefix_length_P": numbers,
        "k": jax.ShapeDtypeStruct((*own, head_size, steps), dtype),
        "v": jax.ShapeDtypeStruct((*own, steps, head_size), dtype),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "start_P": numbers,
    }
    return Cache(**fields)  # type: ignore[arg-type]


def zeros(like: Cache) -> Cache:
    """An empty cache of those shapes."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)


def insert(cache: Cache, filled: Cache, slot: jax.Array | int) -> Cache:
    """Puts the prompts of `filled` into the slots from `slot` on, where they begin at the next step.

    `filled` may hold fewer prompts and a shorter prefix; its own steps are not looked at.
    """
    starts = jnp.full_like(filled.prefix_length_P, cache.step)
    return cache.replace(  # type: ignore[attr-defined]
        prefix_k=jax.lax.dynamic_update_slice(cache.prefix_k, filled.prefix_k, _indices(0, slot, 0, 0, 0)),
        prefix_v=jax.lax.dynamic_update_slice(cache.prefix_v, filled.prefix_v, _indices(0, slot, 0, 0, 0)),
        prefix_length_P=jax.lax.dynamic_update_slice(cache.prefix_length_P, filled.prefix_length_P, _indices(slot)),
        start_P=jax.lax.dynamic_update_slice(cache.start_P, starts, _indices(slot)),
    )


def _indices(*indices: jax.Array | int) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(index, jnp.int32) for index in indices)


def layer_of(cache: Cache, layer: jax.Array | int, window: int) -> tuple[jax.Array, jax.Array]:
    """Keys [P, G, K, h, window] and values [P, G, K, window, h] of one layer's first `window` columns."""
    _, P, G, K, h, _ = cache.k.shape
    at = _indices(layer, 0, 0, 0, 0, 0)
    k = jax.lax.dynamic_slice(cache.k, at, (1, P, G, K, h, window))[0]
    return k, jax.lax.dynamic_slice(cache.v, at, (1, P, G, K, window, h))[0]


def write(cache: Cache, layer: jax.Array | int, k_PGKh: jax.Array, v_PGKh: jax.Array) -> Cache:
    """The keys and values of one layer's step, into the column of this step."""
    column = cache.step % cache.k.shape[5]
    k_PGKh1, v_PGK1h = k_PGKh[..., None].astype(cache.k.dtype), v_PGKh[:, :, :, None].astype(cache.v.dtype)
    k = jax.lax.dynamic_update_slice(cache.k, k_PGKh1[None], _indices(layer, 0, 0, 0, 0, column))
    v = jax.lax.dynamic_update_slice(cache.v, v_PGK1h[None], _indices(layer, 0, 0, 0, column, 0))
    return cache.replace(k=k, v=v)  # type: ignore[attr-defined]


def visible(cache: Cache) -> tuple[jax.Array, jax.Array]:
    """What this step sees, its own column included: places of the prefix [P, S] and columns [P, T]."""
    S, T = cache.prefix_k.shape[4], cache.k.shape[5]
    prefix_PS = jnp.arange(S)[None, :] < cache.prefix_length_P[:, None]
    age_T = (cache.step - jnp.arange(T)) % T  # steps since the column was written
    own_PT = age_T[None, :] <= (cache.step - cache.start_P)[:, None]
    return prefix_PS, own_PT
