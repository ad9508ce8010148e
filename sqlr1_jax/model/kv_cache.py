"""The key-value cache of sampling: each prompt's keys and values once, and those of its samples' own steps.

All prompts write the same column at a step, whatever their age: a slot that begins anew at step n has the columns
n, n + 1, … modulo their number for itself, and what an earlier prompt left there is hidden by its age. Keys lie with
time last, so that a step's scores are a plain matrix product: on CPU that halves them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sqlr1_jax.distributed.sharding import SAMPLE_RULES, constrain
from sqlr1_jax.model.quantize import QuantizedArray, quantize_int8

_PREFIX = (None, "rows", "kv_heads", None, None)
_OWN = (None, "rows", "kv_heads", None, None)
COLUMNS = 16  # what a number of columns is rounded up to: odd widths cost CPUs a third


@struct.dataclass
class KVCache:
    """Slots for P prompts of G samples each; a sample has T columns for its own steps.

    Keys and values lie in U stacks: layer i is entry i // U of stack i % U. With as many stacks as layers there is no
    axis of entries, and a step reads and writes them in place; on CPU one of many entries is copied out first. Samples
    lie on one axis R = P · G, prompt after prompt: of an axis P of one, XLA for CPU makes copies at each step.
    """

    prefix_k: tuple[QuantizedArray, ...]  # each [L/U, P, K, h, S], or [P, K, h, S]; a scale has 1 in place of h
    prefix_v: tuple[QuantizedArray, ...]  # [L/U, P, K, S, h]
    prefix_length_P: jax.Array  # tokens of each prompt that are here: prompt[:-1]
    k: tuple[QuantizedArray, ...]  # [L/U, R, K, h, T]
    v: tuple[QuantizedArray, ...]  # [L/U, R, K, T, h]
    step: jax.Array  # decode steps since the cache was made; the next one writes column step % T
    start_P: jax.Array  # the step at which each slot's prompt began

    @property
    def columns(self) -> int:
        """T."""
        return self.v[0].values.shape[-2]


def shapes(
    layers: tuple[int, int],
    prompts: int,
    samples: int,
    prefix: int,
    steps: int,
    heads: tuple[int, int],
    dtype: jnp.dtype,
) -> KVCache:
    """The cache as jax.ShapeDtypeStruct: for planning, and for `zeros`.

    Args:
      layers: stacks, and layers in each.
      prompts: P.
      samples: G.
      prefix: S.
      steps: columns at least.
      heads: key-value heads, and their size.
      dtype: of keys and values; int8 has scales beside it.
    """
    (stacks, depth), (K, h) = layers, heads
    T = -(-steps // COLUMNS) * COLUMNS
    entries = () if depth == 1 else (depth,)
    shared, own = (*entries, prompts, K), (*entries, prompts * samples, K)
    numbers = jax.ShapeDtypeStruct((prompts,), jnp.int32)

    def keys(lead: tuple[int, ...], time: int) -> tuple[QuantizedArray, ...]:
        return (_shapes((*lead, h, time), -2, dtype),) * stacks

    def values(lead: tuple[int, ...], time: int) -> tuple[QuantizedArray, ...]:
        return (_shapes((*lead, time, h), -1, dtype),) * stacks

    fields = {
        "prefix_k": keys(shared, prefix),
        "prefix_v": values(shared, prefix),
        "prefix_length_P": numbers,
        "k": keys(own, T),
        "v": values(own, T),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "start_P": numbers,
    }
    return KVCache(**fields)  # type: ignore[arg-type]


def _shapes(shape: tuple[int, ...], axis: int, dtype: jnp.dtype) -> QuantizedArray:
    values = jax.ShapeDtypeStruct(shape, dtype)
    if dtype != jnp.int8:
        return QuantizedArray(values, None)
    flat = list(shape)
    flat[axis] = 1
    return QuantizedArray(values, jax.ShapeDtypeStruct(tuple(flat), jnp.float32))


def _store(x: jax.Array, axis: int, like: QuantizedArray) -> QuantizedArray:
    """Keys or values as `like` keeps them; `axis` is that of h."""
    return QuantizedArray(x.astype(like.values.dtype), None) if like.scale is None else quantize_int8(x, axis)


def zeros(like: KVCache) -> KVCache:
    """An empty cache of those shapes, laid out for sampling."""
    return _laid_out(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))


def _laid_out(cache: KVCache) -> KVCache:
    """Split over prompts and key-value heads, where there is a mesh."""

    def split(axes: tuple[str | None, ...], stacks: tuple[QuantizedArray, ...]) -> Any:
        return jax.tree.map(lambda leaf: constrain(leaf, axes[-leaf.ndim :], SAMPLE_RULES), stacks)

    return cache.replace(  # type: ignore[attr-defined]
        prefix_k=split(_PREFIX, cache.prefix_k),
        prefix_v=split(_PREFIX, cache.prefix_v),
        k=split(_OWN, cache.k),
        v=split(_OWN, cache.v),
    )


def insert(cache: KVCache, kept: tuple[jax.Array, jax.Array], length_R: jax.Array, slot_R: jax.Array) -> KVCache:
    """Puts prompts into slots, where they begin at the next step; a slot past all there are takes nothing.

    kept: their keys and values [L, R, S, K, h] as prefill computed them; they may be shorter than the cache's.
    """
    k_LRSKh, v_LRSKh = kept
    k_LRKhS, v_LRKSh = k_LRSKh.transpose(0, 1, 3, 4, 2), v_LRSKh.transpose(0, 1, 3, 2, 4)
    layers = [slice(i, None, len(cache.k)) if old.values.ndim == 5 else i for i, old in enumerate(cache.k)]

    def put(axis: int, new: jax.Array, old: QuantizedArray) -> Any:
        return jax.tree.map(lambda into, leaf: _scatter(into, leaf, slot_R), old, _store(new, axis, old))

    filled = cache.replace(  # type: ignore[attr-defined]
        prefix_k=tuple(put(-2, k_LRKhS[some], old) for some, old in zip(layers, cache.prefix_k, strict=True)),
        prefix_v=tuple(put(-1, v_LRKSh[some], old) for some, old in zip(layers, cache.prefix_v, strict=True)),
        prefix_length_P=cache.prefix_length_P.at[slot_R].set(length_R, mode="drop"),
        start_P=cache.start_P.at[slot_R].set(cache.step, mode="drop"),
    )
    return _laid_out(filled)


def _scatter(into: jax.Array, new: jax.Array, slot_R: jax.Array) -> jax.Array:
    """Prompts at axis -4 into the slots that they are for; of a longer prefix the front is written."""
    front = tuple(slice(0, size) for size in new.shape[-3:])
    entries = (slice(None),) * (into.ndim - 4)
    return into.at[(*entries, slot_R, *front)].set(new, mode="drop")


def write(cache: KVCache, stack: int, entry: jax.Array | int, k_PGKh: jax.Array, v_PGKh: jax.Array) -> KVCache:
    """The keys and values of one layer's step, into the column of this step."""
    column = cache.step % cache.columns
    k, v = cache.k[stack], cache.v[stack]
    k_RKh, v_RKh = (x.reshape(-1, *x.shape[2:]) for x in (k_PGKh, v_PGKh))
    k = _update(k, _store(k_RKh[..., None], -2, k), _indices(entry, 0, 0, 0, column))
    v = _update(v, _store(v_RKh[:, :, None], -1, v), _indices(entry, 0, 0, column, 0))
    return cache.replace(  # type: ignore[attr-defined]
        k=(*cache.k[:stack], k, *cache.k[stack + 1 :]), v=(*cache.v[:stack], v, *cache.v[stack + 1 :])
    )


def _indices(*indices: jax.Array | int) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(index, jnp.int32) for index in indices)


def _update(stack: QuantizedArray, new: QuantizedArray, at: tuple[jax.Array, ...]) -> Any:
    def one(into: jax.Array, leaf: jax.Array) -> jax.Array:
        leaf = leaf if into.ndim == leaf.ndim else leaf[None]
        return jax.lax.dynamic_update_slice(into, leaf, at[-into.ndim :])

    return jax.tree.map(one, stack, new)


def prefix_of(cache: KVCache, stack: int, entry: jax.Array | int) -> tuple[QuantizedArray, QuantizedArray]:
    """Keys [P, K, h, S] and values [P, K, S, h] of one layer's prompts."""
    k, v = cache.prefix_k[stack], cache.prefix_v[stack]
    return (_entry(k, entry), _entry(v, entry)) if k.values.ndim == 5 else (k, v)


def layer_of(cache: KVCache, stack: int, entry: jax.Array | int, window: int) -> tuple[QuantizedArray, QuantizedArray]:
    """Keys [R, K, h, window] and values [R, K, window, h] of one layer's first `window` columns."""
    k, v = cache.k[stack], cache.v[stack]
    return _front(k, entry, window, -1), _front(v, entry, window, -2)


def _front(stack: QuantizedArray, entry: jax.Array | int, window: int, axis: int) -> Any:
    """Entry and window in one cut: of two, XLA for TPU copies all columns out where they are many."""

    def one(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 5:
            return jax.lax.slice_in_dim(leaf, 0, window, axis=axis)
        sizes = [1, *leaf.shape[1:]]
        sizes[axis] = window
        return jax.lax.dynamic_slice(leaf, _indices(entry, 0, 0, 0, 0), sizes)[0]

    return jax.tree.map(one, stack)


def _entry(stack: QuantizedArray, entry: jax.Array | int) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, entry, keepdims=False), stack)


def visible(cache: KVCache) -> tuple[jax.Array, jax.Array]:
    """What this step sees, its own column included: places of the prefix [P, S] and columns [P, T]."""
    S, T = cache.prefix_k[0].values.shape[-1], cache.columns
    prefix_PS = jnp.arange(S)[None, :] < cache.prefix_length_P[:, None]
    age_T = (cache.step - jnp.arange(T)) % T  # steps since the column was written
    own_PT = age_T[None, :] <= (cache.step - cache.start_P)[:, None]
    return prefix_PS, own_PT
