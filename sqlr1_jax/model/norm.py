"""RMS normalization with a gradient of its own, which keeps the input alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float, dtype: str) -> jax.Array:
    """Root mean square normalization, x / √(mean(x²) + eps) · scale over the last axis (Zhang & Sennrich, 2019).

    Computed in at least float32, and then in `dtype`.

    JAX's own gradient keeps the normalized input too.
    """
    normalized_BTD, _ = _normalized(x_BTD, eps)
    return (normalized_BTD * scale_D.astype(normalized_BTD.dtype)[None, None]).astype(dtype)


def _normalized(x_BTD: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """The normalized input, and by what it was multiplied [B, T, 1]."""
    wide_BTD = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    factor_BT1 = jax.lax.rsqrt(jnp.mean(wide_BTD * wide_BTD, axis=-1, keepdims=True) + eps)
    return wide_BTD * factor_BT1, factor_BT1


def _forward(
    x_BTD: jax.Array, scale_D: jax.Array, eps: float, dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rms_norm(x_BTD, scale_D, eps, dtype), (x_BTD, scale_D)


def _backward(
    eps: float, dtype: str, kept: tuple[jax.Array, jax.Array], dy_BTD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTD, scale_D = kept
    normalized_BTD, factor_BT1 = _normalized(x_BTD, eps)
    dy_BTD = dy_BTD.astype(normalized_BTD.dtype)
    slope_BTD = dy_BTD * scale_D.astype(dy_BTD.dtype)[None, None]
    along_BT1 = jnp.mean(slope_BTD * normalized_BTD, axis=-1, keepdims=True)
    dscale_D = (dy_BTD * normalized_BTD).sum((0, 1))
    dx_BTD = factor_BT1 * (slope_BTD - normalized_BTD * along_BT1)
    return dx_BTD.astype(x_BTD.dtype), dscale_D.astype(scale_D.dtype)


rms_norm.defvjp(_forward, _backward)
