"""The KV cache of sampling: keys and values of each prompt, stored once, and of each sample's decode steps.

A slot holds one prompt and its G samples. All slots write the same column at a decode step, so the write is one
dynamic_update_slice; the columns are a ring buffer, and a slot's start step says which of them are its own.
"""

# Slots, columns and the ring, for one layer and key-value head: P = 2 slots, G = 2 samples, S = 6, T = 8, step = 10.
# Numbers are the decode steps at which a column was written: [10] is this step's, in column 10 % 8 = 2; those in () are
# masked for the slot, because they were written before its prompt was inserted.
#
#                             prefix (S)         own columns (T)
#     slot 0, start_P = 5     k k k k . .   s0    8   9  [10] (3) (4)  5   6   7
#       prefix_length_P = 4                 s1    8   9  [10] (3) (4)  5   6   7
#     slot 1, start_P = 9     k k . . . .   s0   (8)  9  [10] (3) (4) (5) (6) (7)
#       prefix_length_P = 2                 s1   (8)  9  [10] (3) (4) (5) (6) (7)
#
# A prompt that enters a slot at step n therefore needs no reset: age(column) = (step - column) % T, and a column is
# visible while its age is at most step - start_P. Samples must end within T steps, before the ring overwrites them.
#
# Arrays have [K, h, time] for keys and [K, time, h] for values. With time last, scores are a plain matrix product of
# [g, h] and [h, time], which halves their time on CPU.

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sqlr1_jax.distributed.sharding import SAMPLE_RULES, constrain
from sqlr1_jax.model.quantize import QuantizedArray, quantize_int8

# Axes: entry (absent with one layer per stack), prompt or sample, key-value head, then h and time in either order.
_AXES = (None, "rows", "kv_heads", None, None)
COLUMN_MULTIPLE = 16  # T is rounded up to this: odd widths cost CPUs a third


@struct.dataclass
class KVCache:
    """Slots for P prompts of G samples each; a sample has T columns for its own decode steps.

    Layers are spread over U stacks: layer i is entry i // U of stack i % U. With one layer per stack there is no
    entry axis, and a step updates the arrays in place. With several, XLA:CPU first copies the layer out. Prompts
    and samples share one axis R = P · G, prompt by prompt; with a separate axis P of size 1, XLA:CPU would copy the
    cache at each step.
    """

    prefix_k: tuple[QuantizedArray, ...]  # per stack [L/U, P, K, h, S], or [P, K, h, S]; int8 scales have 1 for h
    prefix_v: tuple[QuantizedArray, ...]  # per stack [L/U, P, K, S, h]
    prefix_length_P: jax.Array  # cached tokens of each prompt: prompt[:-1]
    k: tuple[QuantizedArray, ...]  # per stack [L/U, R, K, h, T]
    v: tuple[QuantizedArray, ...]  # per stack [L/U, R, K, T, h]
    step: jax.Array  # decode steps since the cache was made; the next one writes column step % T
    start_P: jax.Array  # the step at which each slot's prompt was inserted

    @property
    def columns(self) -> int:
        """T, the columns of each sample."""
        return self.v[0].values.shape[-2]


@struct.dataclass
class SharedPrefix:
    """Keys and values of a text that several prompts begin with, such as a database's schema. Computed once."""

    k_LSKh: jax.Array  # in the model's dtype, also if the cache is int8
    v_LSKh: jax.Array
    length: jax.Array  # int32 scalar: tokens of the text; the others of the S are padding


def shapes(
    layers: tuple[int, int],
    prompts: int,
    samples: int,
    prefix: int,
    steps: int,
    heads: tuple[int, int],
    dtype: jnp.dtype,
) -> KVCache:
    """An abstract cache with jax.ShapeDtypeStruct leaves: for planning, and for `zeros`.

    Args:
      layers: number of stacks, and layers in each.
      prompts: P.
      samples: G.
      prefix: S, tokens of the longest prefix.
      steps: decode steps of the longest sample; T is at least this.
      heads: number of key-value heads, and their size.
      dtype: of keys and values; int8 has float32 scales with it.
    """
    (stacks, depth), (K, h) = layers, heads
    T = -(-steps // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    entries = () if depth == 1 else (depth,)
    prefix_dims, own_dims = (*entries, prompts, K), (*entries, prompts * samples, K)
    numbers_P = jax.ShapeDtypeStruct((prompts,), jnp.int32)

    fields = {
        "prefix_k": (_abstract_array((*prefix_dims, h, prefix), -2, dtype),) * stacks,
        "prefix_v": (_abstract_array((*prefix_dims, prefix, h), -1, dtype),) * stacks,
        "prefix_length_P": numbers_P,
        "k": (_abstract_array((*own_dims, h, T), -2, dtype),) * stacks,
        "v": (_abstract_array((*own_dims, T, h), -1, dtype),) * stacks,
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "start_P": numbers_P,
    }
    return KVCache(**fields)  # type: ignore[arg-type]


def _abstract_array(shape: tuple[int, ...], head_axis: int, dtype: jnp.dtype) -> QuantizedArray:
    values = jax.ShapeDtypeStruct(shape, dtype)
    if dtype != jnp.int8:
        return QuantizedArray(values, None)
    scale_shape = list(shape)
    scale_shape[head_axis] = 1  # one scale per token and head
    return QuantizedArray(values, jax.ShapeDtypeStruct(tuple(scale_shape), jnp.float32))


def _cast_or_quantize(x: jax.Array, head_axis: int, like: QuantizedArray) -> QuantizedArray:
    """Keys or values in the cache's dtype, with scales if the cache is int8."""
    return QuantizedArray(x.astype(like.values.dtype), None) if like.scale is None else quantize_int8(x, head_axis)


def zeros(like: KVCache) -> KVCache:
    """An empty cache of an abstract cache's shapes, sharded for sampling."""
    return _constrain(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))


def _constrain(cache: KVCache) -> KVCache:
    """The cache sharded over prompts and key-value heads, if there is a mesh."""
    stacks = cache.prefix_k, cache.prefix_v, cache.k, cache.v
    stacks = jax.tree.map(lambda leaf: constrain(leaf, _AXES[-leaf.ndim :], SAMPLE_RULES), stacks)
    prefix_k, prefix_v, k, v = stacks
    return cache.replace(prefix_k=prefix_k, prefix_v=prefix_v, k=k, v=v)  # type: ignore[attr-defined]


def insert(
    cache: KVCache,
    prefill_kv: tuple[jax.Array, jax.Array],
    length_R: jax.Array,
    slot_R: jax.Array,
    prefix: SharedPrefix | None = None,
) -> KVCache:
    """The cache with R prefilled prompts in their slots, where their samples start at the next step.

    Args:
      cache: the KV cache.
      prefill_kv: keys and values [L, R, S', K, h] of all layers, with S' at most the cache's S.
      length_R: cached tokens of each prompt, without those of `prefix`.
      slot_R: the slot of each prompt; a prompt whose slot is P or more is dropped.
      prefix: what all R prompts begin with; `prefill_kv` is of the tokens after it.
    """
    if prefix is not None:
        columns = cache.prefix_v[0].values.shape[-2]
        prefill_kv = (
            _join(prefix.k_LSKh, prefill_kv[0], prefix, columns),
            _join(prefix.v_LSKh, prefill_kv[1], prefix, columns),
        )
        length_R = length_R + prefix.length
    k_LRSKh, v_LRSKh = prefill_kv
    k_LRKhS, v_LRKSh = k_LRSKh.transpose(0, 1, 3, 4, 2), v_LRSKh.transpose(0, 1, 3, 2, 4)
    # The layers of stack i are i, i + U, i + 2U, …; without an entry axis only i.
    layers = [slice(i, None, len(cache.k)) if stack.values.ndim == 5 else i for i, stack in enumerate(cache.k)]

    def put(head_axis: int, new: jax.Array, stack: QuantizedArray) -> Any:
        stored = _cast_or_quantize(new, head_axis, stack)
        return jax.tree.map(lambda old, leaf: _set_slots(old, leaf, slot_R), stack, stored)

    inserted = cache.replace(  # type: ignore[attr-defined]
        prefix_k=tuple(put(-2, k_LRKhS[i], stack) for i, stack in zip(layers, cache.prefix_k, strict=True)),
        prefix_v=tuple(put(-1, v_LRKSh[i], stack) for i, stack in zip(layers, cache.prefix_v, strict=True)),
        prefix_length_P=cache.prefix_length_P.at[slot_R].set(length_R, mode="drop"),
        start_P=cache.start_P.at[slot_R].set(cache.step, mode="drop"),
    )
    return _constrain(inserted)


def _join(prefix_LSKh: jax.Array, own_LRSKh: jax.Array, prefix: SharedPrefix, columns: int) -> jax.Array:
    """Keys or values of the prefix's tokens followed directly by each prompt's own, cut to the cache's columns."""
    L, R, S_own, K, h = own_LRSKh.shape
    S = prefix_LSKh.shape[1]
    joined = jnp.broadcast_to(prefix_LSKh[:, None], (L, R, S, K, h))
    joined = jnp.pad(joined, ((0, 0), (0, 0), (0, S_own), (0, 0), (0, 0)))
    # The prompts' own tokens overwrite the prefix's padding.
    return jax.lax.dynamic_update_slice(joined, own_LRSKh, _int32(0, 0, prefix.length, 0, 0))[:, :, :columns]


def _set_slots(old: jax.Array, new: jax.Array, slot_R: jax.Array) -> jax.Array:
    """`old` with the prompts of `new` (axis -4) in their slots; a shorter prefix fills only the first columns."""
    corner = tuple(slice(0, size) for size in new.shape[-3:])
    entries = (slice(None),) * (old.ndim - 4)
    return old.at[(*entries, slot_R, *corner)].set(new, mode="drop")


def write(cache: KVCache, stack: int, entry: jax.Array | int, k_PGKh: jax.Array, v_PGKh: jax.Array) -> KVCache:
    """The cache with one layer's keys and values of this decode step, in column step % T.

    Args:
      cache: the KV cache.
      stack: the layer's stack.
      entry: the layer's index in the stack.
      k_PGKh: one key per sample.
      v_PGKh: one value per sample.
    """
    column = cache.step % cache.columns
    k, v = cache.k[stack], cache.v[stack]
    k_RKh, v_RKh = (x.reshape(-1, *x.shape[2:]) for x in (k_PGKh, v_PGKh))
    k = _update(k, _cast_or_quantize(k_RKh[..., None], -2, k), _int32(entry, 0, 0, 0, column))
    v = _update(v, _cast_or_quantize(v_RKh[:, :, None], -1, v), _int32(entry, 0, 0, column, 0))
    return cache.replace(  # type: ignore[attr-defined]
        k=(*cache.k[:stack], k, *cache.k[stack + 1 :]), v=(*cache.v[:stack], v, *cache.v[stack + 1 :])
    )


def to_slots(y_1NHh: jax.Array, sample_N: jax.Array | None, cache: KVCache) -> jax.Array:
    """Heads of the samples `sample_N` at their places in [P, G, H, h], with zeros for other samples; None: as given."""
    if sample_N is None:
        return y_1NHh
    P, R = cache.start_P.size, cache.v[0].values.shape[-4]
    y_RHh = jnp.zeros((R, *y_1NHh.shape[2:]), y_1NHh.dtype).at[sample_N].set(y_1NHh[0], mode="drop")
    return y_RHh.reshape(P, R // P, *y_RHh.shape[1:])


def from_slots(o_PGHh: jax.Array, sample_N: jax.Array | None) -> jax.Array:
    """The inverse of `to_slots`."""
    if sample_N is None:
        return o_PGHh
    return o_PGHh.reshape(-1, *o_PGHh.shape[2:]).at[sample_N].get(mode="clip")[None]


def _int32(*indices: jax.Array | int) -> tuple[jax.Array, ...]:
    """Indices of one dtype, which dynamic slices need if some of them are traced."""
    return tuple(jnp.asarray(index, jnp.int32) for index in indices)


def _update(stack: QuantizedArray, new: QuantizedArray, start: tuple[jax.Array, ...]) -> Any:
    """A stack with `new` at these indices; a stack without an entry axis ignores the first."""

    def update_leaf(old: jax.Array, leaf: jax.Array) -> jax.Array:
        leaf = leaf if old.ndim == leaf.ndim else leaf[None]
        return jax.lax.dynamic_update_slice(old, leaf, start[-old.ndim :])

    return jax.tree.map(update_leaf, stack, new)


def read_prefix(cache: KVCache, stack: int, entry: jax.Array | int) -> tuple[QuantizedArray, QuantizedArray]:
    """Keys [P, K, h, S] and values [P, K, S, h] of one layer's prefixes."""
    k, v = cache.prefix_k[stack], cache.prefix_v[stack]
    if k.values.ndim < 5:
        return k, v
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, entry, keepdims=False), (k, v))


def read_columns(
    cache: KVCache, stack: int, entry: jax.Array | int, window: int
) -> tuple[QuantizedArray, QuantizedArray]:
    """Keys [R, K, h, window] and values [R, K, window, h] of one layer's first `window` columns."""
    k, v = cache.k[stack], cache.v[stack]
    return _slice_window(k, entry, window, -1), _slice_window(v, entry, window, -2)


def _slice_window(stack: QuantizedArray, entry: jax.Array | int, window: int, axis: int) -> Any:
    def slice_leaf(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 5:
            return jax.lax.slice_in_dim(leaf, 0, window, axis=axis)
        # One slice for entry and window: with two, XLA for TPU copies all columns of the layer to HBM first.
        sizes = [1, *leaf.shape[1:]]
        sizes[axis] = window
        return jax.lax.dynamic_slice(leaf, _int32(entry, 0, 0, 0, 0), sizes)[0]

    return jax.tree.map(slice_leaf, stack)


def visible_positions(cache: KVCache) -> tuple[jax.Array, jax.Array]:
    """What each slot sees at this step, its own column included: prefix positions [P, S] and columns [P, T]."""
    S, T = cache.prefix_k[0].values.shape[-1], cache.columns
    prefix_PS = jnp.arange(S)[None, :] < cache.prefix_length_P[:, None]
    age_T = (cache.step - jnp.arange(T)) % T  # steps since the column was written
    own_PT = age_T[None, :] <= (cache.step - cache.start_P)[:, None]
    return prefix_PS, own_PT
