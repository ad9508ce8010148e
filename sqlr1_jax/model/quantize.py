"""int8 for sampling: of the layers' weights a scale for each output, of keys and values one for each token's head."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_MOST = 127.0

# Of each of a layer's matrices, stacked [L, …]: the axes that its product sums over.
CONTRACTING_AXES = {"q": (1,), "k": (1,), "v": (1,), "o": (1, 2), "gate": (1,), "up": (1,), "down": (1,)}


class QuantizedArray(NamedTuple):
    """values · scale; without a scale the values themselves."""

    values: Any  # arrays, or their shapes
    scale: Any  # float32, 1 along the axes that share it; or None


def quantize_int8(x: jax.Array, axes: int | tuple[int, ...]) -> QuantizedArray:
    """The nearest of 255 steps between ± the largest absolute value along `axes`."""
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axes, keepdims=True) / _MOST, jnp.finfo(jnp.float32).tiny)
    return QuantizedArray(jnp.round(wide / scale).astype(jnp.int8), scale)


def quantize_layers(params: Any) -> Any:
    """The parameters with their layers' matrices in int8; embeddings, norms and biases as they are."""
    made = {
        name: quantize_int8(w, CONTRACTING_AXES[name]) if name in CONTRACTING_AXES else w
        for name, w in params["layers"].items()
    }
    return {**params, "layers": made}
