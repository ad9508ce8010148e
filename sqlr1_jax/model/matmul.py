"""Products of rows with a weight, by the weight's form: as trained, quantised, or turned for few rows on CPU."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqlr1_jax.model.quantize import SUMMED, Scaled


class Turned(NamedTuple):
    """A matrix whose summed axes stand last: [N, M] for a product of rows [.., M] with a matrix [M, N].

    XLA for CPU reads such a matrix once where it is the left operand, and copies one on the right before it multiplies: at
    8 rows that takes 1.7 times as long, at 512 nothing more.
    """

    values: Any


Weight = jax.Array | Scaled | Turned


def product(x_BTM: jax.Array, w: Weight, dtype: jnp.dtype) -> jax.Array:
    """Rows [B, T, M] times a matrix whose first axes make M → [B, T, N], its other axes as one, in `dtype`."""
    if isinstance(w, Turned):
        return _product_of_turned(x_BTM, w, dtype)
    values, scale = w if isinstance(w, Scaled) else (w, None)
    y_BTN = linear(x_BTM, values.astype(x_BTM.dtype).reshape(x_BTM.shape[-1], -1), dtype)
    return y_BTN if scale is None else (y_BTN * scale.reshape(1, 1, -1)).astype(dtype)


def turn(name: str, w: Any) -> Any:
    """One layer's weight of that name, turned where it is a matrix."""
    if name not in SUMMED or isinstance(w, Scaled):
        return w
    summed = tuple(axis - 1 for axis in SUMMED[name])  # there is no axis of layers here
    return Turned(jnp.moveaxis(w, summed, range(-len(summed), 0)))


def _product_of_turned(x_BTM: jax.Array, w: Turned, dtype: jnp.dtype) -> jax.Array:
    """The barriers keep XLA from folding the small transposes into the product, whose operands would change sides."""
    B, T, M = x_BTM.shape
    x_MR = jax.lax.optimization_barrier(x_BTM.reshape(B * T, M).T)
    y_NR = jnp.einsum("nm,mr->nr", w.values.astype(x_BTM.dtype).reshape(-1, M), x_MR, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(y_NR).T.reshape(B, T, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x_BTD: jax.Array, w_DF: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The product x @ w in `dtype`, whose gradient of w is made in w's own orientation.

    Differentiated by JAX it comes transposed, which on CPU costs a strided copy of the output's gradient each time.
    """
    return jnp.einsum("btd,df->btf", x_BTD, w_DF, preferred_element_type=dtype)


def _linear_forward(
    x_BTD: jax.Array, w_DF: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x_BTD, w_DF, dtype), (x_BTD, w_DF)


def _linear_backward(
    dtype: jnp.dtype, kept: tuple[jax.Array, jax.Array], dy_BTF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTD, w_DF = kept
    dy_BTF = dy_BTF.astype(x_BTD.dtype)
    return jnp.einsum("btf,df->btd", dy_BTF, w_DF), jnp.einsum("btd,btf->df", x_BTD, dy_BTF)


linear.defvjp(_linear_forward, _linear_backward)
