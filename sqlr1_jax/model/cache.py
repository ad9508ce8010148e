"""The key-value cache of sampling: each prompt's keys and values once, and those of its samples' own steps.

All prompts write the same column at a step, whatever their age: a slot that begins anew at step n has the columns
n, n + 1, … modulo their number for itself, and what an earlier prompt left there is hidden by its age. Keys lie with
time last, so that a step's scores are a plain matrix product: on CPU that halves them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from sqlr1_jax.sharding import SAMPLE_RULES, constrain

_PREFIX = (None, "rows", "kv_heads", None, None)
_OWN = (None, "rows", None, "kv_heads", None, None)
COLUMNS = 16  # what a number of columns is rounded up to: odd widths cost CPUs a third


@struct.dataclass
class Cache:
    """Slots for P prompts of G samples each; a sample has T columns for its own steps.

    Keys and values lie in U stacks: layer i is entry i // U of stack i % U. With as many stacks as layers there is no
    axis of entries, and a step reads and writes them in place; on CPU one of many entries is copied out first.
    """

    prefix_k: tuple[jax.Array, ...]  # each [L/U, P, K, h, S], or [P, K, h, S]
    prefix_v: tuple[jax.Array, ...]  # [L/U, P, K, S, h]
    prefix_length_P: jax.Array  # tokens of each prompt that are here: prompt[:-1]
    k: tuple[jax.Array, ...]  # [L/U, P, G, K, h, T]
    v: tuple[jax.Array, ...]  # [L/U, P, G, K, T, h]
    step: jax.Array  # decode steps since the cache was made; the next one writes column step % T
    start_P: jax.Array  # the step at which each slot's prompt began

    @property
    def columns(self) -> int:
        """T."""
        return self.v[0].shape[-2]


def shapes(
    layers: tuple[int, int],
    prompts: int,
    samples: int,
    prefix: int,
    steps: int,
    heads: tuple[int, int],
    dtype: jnp.dtype,
) -> Cache:
    """The cache as jax.ShapeDtypeStruct: for planning, and for `zeros`.

    Args:
      layers: stacks, and layers in each.
      prompts: P.
      samples: G.
      prefix: S.
      steps: columns at least.
      heads: key-value heads, and their size.
      dtype: of keys and values.
    """
    (stacks, depth), (K, h) = layers, heads
    T = -(-steps // COLUMNS) * COLUMNS
    entries = () if depth == 1 else (depth,)
    shared, own = (*entries, prompts, K), (*entries, prompts, samples, K)
    numbers = jax.ShapeDtypeStruct((prompts,), jnp.int32)
    fields = {
        "prefix_k": (jax.ShapeDtypeStruct((*shared, h, prefix), dtype),) * stacks,
        "prefix_v": (jax.ShapeDtypeStruct((*shared, prefix, h), dtype),) * stacks,
        "prefix_length_P": numbers,
        "k": (jax.ShapeDtypeStruct((*own, h, T), dtype),) * stacks,
        "v": (jax.ShapeDtypeStruct((*own, T, h), dtype),) * stacks,
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "start_P": numbers,
    }
    return Cache(**fields)  # type: ignore[arg-type]


def zeros(like: Cache) -> Cache:
    """An empty cache of those shapes, laid out for sampling."""
    return _laid_out(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))


def _laid_out(cache: Cache) -> Cache:
    """Split over prompts and key-value heads, where there is a mesh."""

    def split(axes: tuple[str | None, ...], stacks: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(constrain(stack, axes[-stack.ndim :], SAMPLE_RULES) for stack in stacks)

    return cache.replace(  # type: ignore[attr-defined]
        prefix_k=split(_PREFIX, cache.prefix_k),
        prefix_v=split(_PREFIX, cache.prefix_v),
        k=split(_OWN, cache.k),
        v=split(_OWN, cache.v),
    )


def fill(cache: Cache, kept: tuple[jax.Array, jax.Array], length_P: jax.Array) -> Cache:
    """Every slot's prefix, keys and values [L, P, S, K, h] as prefill computed them; prompts begin at the next step."""
    k_LPSKh, v_LPSKh = kept
    k_LPKhS = k_LPSKh.transpose(0, 1, 3, 4, 2).astype(cache.prefix_k[0].dtype)
    v_LPKSh = v_LPSKh.transpose(0, 1, 3, 2, 4).astype(cache.prefix_v[0].dtype)
    stacks = [slice(i, None, len(cache.k)) if cache.k[i].ndim == 6 else i for i in range(len(cache.k))]
    filled = cache.replace(  # type: ignore[attr-defined]
        prefix_k=tuple(k_LPKhS[layers] for layers in stacks),
        prefix_v=tuple(v_LPKSh[layers] for layers in stacks),
        prefix_length_P=length_P,
        start_P=jnp.full_like(length_P, cache.step),
    )
    return _laid_out(filled)


def insert(cache: Cache, filled: Cache, slot: jax.Array | int) -> Cache:
    """Puts the prompts of `filled` into the slots from `slot` on, where they begin at the next step.

    `filled` may hold fewer prompts and a shorter prefix; its own steps are not looked at.
    """

    def place(stack: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(stack, new, slot, stack.ndim - 4)

    starts = jnp.full_like(filled.prefix_length_P, cache.step)
    lengths = jax.lax.dynamic_update_slice(cache.prefix_length_P, filled.prefix_length_P, _indices(slot))
    return cache.replace(  # type: ignore[attr-defined]
        prefix_k=tuple(map(place, cache.prefix_k, filled.prefix_k)),
        prefix_v=tuple(map(place, cache.prefix_v, filled.prefix_v)),
        prefix_length_P=lengths,
        start_P=jax.lax.dynamic_update_slice(cache.start_P, starts, _indices(slot)),
    )


def _indices(*indices: jax.Array | int) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(index, jnp.int32) for index in indices)


def write(cache: Cache, stack: int, entry: jax.Array | int, k_PGKh: jax.Array, v_PGKh: jax.Array) -> Cache:
    """The keys and values of one layer's step, into the column of this step."""
    column = cache.step % cache.columns
    k, v = cache.k[stack], cache.v[stack]
    k_PGKh1, v_PGK1h = k_PGKh[..., None].astype(k.dtype), v_PGKh[:, :, :, None].astype(v.dtype)
    k = _update(k, k_PGKh1, _indices(entry, 0, 0, 0, 0, column))
    v = _update(v, v_PGK1h, _indices(entry, 0, 0, 0, column, 0))
    return cache.replace(  # type: ignore[attr-defined]
        k=(*cache.k[:stack], k, *cache.k[stack + 1 :]), v=(*cache.v[:stack], v, *cache.v[stack + 1 :])
    )


def _update(stack: jax.Array, new: jax.Array, at: tuple[jax.Array, ...]) -> jax.Array:
    new = new if stack.ndim == new.ndim else new[None]
    return jax.lax.dynamic_update_slice(stack, new, at[-stack.ndim :])


def prefix_of(cache: Cache, stack: int, entry: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys [P, K, h, S] and values [P, K, S, h] of one layer's prompts."""
    k, v = cache.prefix_k[stack], cache.prefix_v[stack]
    return (_entry(k, entry), _entry(v, entry)) if k.ndim == 5 else (k, v)


def layer_of(cache: Cache, stack: int, entry: jax.Array | int, window: int) -> tuple[jax.Array, jax.Array]:
    """Keys [P, G, K, h, window] and values [P, G, K, window, h] of one layer's first `window` columns."""
    k, v = cache.k[stack], cache.v[stack]
    if k.ndim == 6:  # entry and window in one cut: of two, XLA for TPU copies all columns out where they are many
        k = jax.lax.dynamic_slice(k, _indices(entry, 0, 0, 0, 0, 0), (1, *k.shape[1:5], window))[0]
        v = jax.lax.dynamic_slice(v, _indices(entry, 0, 0, 0, 0, 0), (1, *v.shape[1:4], window, v.shape[5]))[0]
        return k, v
    return jax.lax.slice_in_dim(k, 0, window, axis=4), jax.lax.slice_in_dim(v, 0, window, axis=3)


def _entry(stack: jax.Array, entry: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, entry, keepdims=False)


def visible(cache: Cache) -> tuple[jax.Array, jax.Array]:
    """What this step sees, its own column included: places of the prefix [P, S] and columns [P, T]."""
    S, T = cache.prefix_k[0].shape[-1], cache.columns
    prefix_PS = jnp.arange(S)[None, :] < cache.prefix_length_P[:, None]
    age_T = (cache.step - jnp.arange(T)) % T  # steps since the column was written
    own_PT = age_T[None, :] <= (cache.step - cache.start_P)[:, None]
    return prefix_PS, own_PT
