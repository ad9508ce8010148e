"""int8 weights with per-output-channel scales; int8 KV cache with per-token, per-head scales. For sampling only."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_INT8_MAX = 127.0  # symmetric: -128 is not used

# The axes that a matmul with each matrix sums over, counted on the stacked parameter [L, …]: q is [L, D, H, h] and
# sums over D; o is [L, H, h, D] and sums over H and h.
CONTRACTING_AXES = {"q": (1,), "k": (1,), "v": (1,), "o": (1, 2), "gate": (1,), "up": (1,), "down": (1,)}


class QuantizedArray(NamedTuple):
    """An array stored as values · scale; with scale None the values are the array itself."""

    values: Any  # an array, or its shape
    scale: Any  # float32, with size 1 along the axes that share a scale; or None


def quantize_int8(x: jax.Array, axes: int | tuple[int, ...]) -> QuantizedArray:
    """Rounds x to int8 with one scale per slice along `axes`.

    Args:
      x: float array.
      axes: the axes that share a scale.

    Returns:
      values: int8, x's shape; the largest absolute value along `axes` becomes 127.
      scale: float32, x's shape with 1 along `axes`; positive, so a slice of zeros stays zero.
    """
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axes, keepdims=True) / _INT8_MAX, jnp.finfo(jnp.float32).tiny)
    return QuantizedArray(jnp.round(wide / scale).astype(jnp.int8), scale)


def quantize_layers(params: Any) -> Any:
    """The parameters with the layers' matrices in int8; embeddings, norms and biases are unchanged."""
    # A scale is shared over the contracting axes, so each output channel has one, and it can multiply the output.
    layers = {
        name: quantize_int8(w, CONTRACTING_AXES[name]) if name in CONTRACTING_AXES else w
        for name, w in params["layers"].items()
    }
    return {**params, "layers": layers}
