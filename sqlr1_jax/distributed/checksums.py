"""Checksums of arrays, computed where the arrays are: the same on any mesh, and no array is copied to the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def checksums(tree: Any) -> Any:
    """For each array of the tree two sums, uint32 [2], of a hash of each element's bits and position.

    A changed, swapped or moved element changes them. Equal arrays have equal sums however they are sharded.
    """
    return jax.tree.map(_checksum, tree)


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    bits = _bits(x)
    position = jnp.zeros((1,) * bits.ndim, jnp.uint32)
    for axis in range(bits.ndim):  # index along each axis, so that no flat copy of a sharded array is made
        position = _mix(position * 31 + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis))
    first = _mix(bits ^ position)
    return jnp.stack([first.sum(dtype=jnp.uint32), _mix(first + position).sum(dtype=jnp.uint32)])


def _bits(x: jax.Array) -> jax.Array:
    """The elements' bits as uint32; 64-bit elements get a last axis of two."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
