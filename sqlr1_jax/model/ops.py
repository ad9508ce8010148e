"""Products of rows with a weight, by the weight's form: as trained, quantized, or turned for few rows on CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqlr1_jax.model.quantize import CONTRACTING_AXES, QuantizedArray


class Transposed(NamedTuple):
    """A matrix whose summed axes stand last: [N, M] for a product of rows [.., M] with a matrix [M, N].

    XLA for CPU reads such a matrix once where it is the left operand, and copies one on the right before it multiplies:
    at 8 rows that takes 1.7 times as long, at 512 nothing more.
    """

    values: Any


Weight = jax.Array | QuantizedArray | Transposed


def matmuls(x_BTM: jax.Array, weights: Sequence[Weight], dtype: jnp.dtype) -> list[jax.Array]:
    """Rows [B, T, M] times each matrix, whose first axes make M → [B, T, N], its other axes as one, in `dtype`."""
    if any(isinstance(w, Transposed) for w in weights):
        x_MR = _columns(x_BTM)
        return [_rows(_product_of_turned(w, x_MR, dtype), x_BTM) for w in weights]
    return [_product(x_BTM, w, dtype) for w in weights]


def matmul(x_BTM: jax.Array, w: Weight, dtype: jnp.dtype) -> jax.Array:
    """`products` with one."""
    return matmuls(x_BTM, [w], dtype)[0]


def swiglu(x_BTD: jax.Array, gate: Weight, up: Weight, down: Weight, dtype: jnp.dtype) -> jax.Array:
    """silu(x gate) · (x up), rounded to x's own type, times `down`: a feed-forward [B, T, D] in `dtype`."""
    if isinstance(gate, Transposed):
        x_DR = _columns(x_BTD)
        gate_FR, up_FR = (_product_of_turned(w, x_DR, dtype) for w in (gate, up))
        return _rows(_product_of_turned(down, _gated(gate_FR, up_FR, x_BTD.dtype), dtype), x_BTD)
    gate_BTF, up_BTF = matmuls(x_BTD, (gate, up), dtype)
    if isinstance(down, jax.Array):
        return _gated_linear(gate_BTF, up_BTF, down.astype(x_BTD.dtype), dtype)
    return matmul(_gated(gate_BTF, up_BTF, x_BTD.dtype), down, dtype)


def _gated(gate: jax.Array, up: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (jax.nn.silu(gate) * up).astype(dtype)


def _product(x_BTM: jax.Array, w: Weight, dtype: jnp.dtype) -> jax.Array:
    assert not isinstance(w, Transposed)
    values, scale = w if isinstance(w, QuantizedArray) else (w, None)
    y_BTN = linear(x_BTM, values.astype(x_BTM.dtype).reshape(x_BTM.shape[-1], -1), dtype)
    return y_BTN if scale is None else (y_BTN * scale.reshape(1, 1, -1)).astype(dtype)


def _columns(x_BTM: jax.Array) -> jax.Array:
    """Rows as columns [M, R]. Barriers, here and in `_rows`, keep XLA from folding the turn into the product."""
    return jax.lax.optimization_barrier(x_BTM.reshape(-1, x_BTM.shape[-1]).T)


def _product_of_turned(w: Weight, x_MR: jax.Array, dtype: jnp.dtype) -> jax.Array:
    assert isinstance(w, Transposed)
    w_NM = w.values.astype(x_MR.dtype).reshape(-1, x_MR.shape[0])
    return jnp.einsum("nm,mr->nr", w_NM, x_MR, preferred_element_type=dtype)


def _rows(y_NR: jax.Array, like_BTM: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(y_NR).T.reshape(*like_BTM.shape[:2], -1)


def transpose_weight(name: str, w: Any) -> Any:
    """One layer's weight of that name, turned where it is a matrix."""
    if name not in CONTRACTING_AXES or isinstance(w, QuantizedArray):
        return w
    summed = tuple(axis - 1 for axis in CONTRACTING_AXES[name])  # there is no axis of layers here
    return Transposed(jnp.moveaxis(w, summed, range(-len(summed), 0)))


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
    return _through(*kept, dy_BTF)


linear.defvjp(_linear_forward, _linear_backward)


def _through(x_BTD: jax.Array, w_DF: jax.Array, dy_BTF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of x and w. XLA for CPU turns the first operand of w's: it is given the narrower one."""
    dy_BTF = dy_BTF.astype(x_BTD.dtype)
    dx_BTD = jnp.einsum("btf,df->btd", dy_BTF, w_DF)
    if w_DF.shape[0] <= w_DF.shape[1]:
        return dx_BTD, jnp.einsum("btd,btf->df", x_BTD, dy_BTF)
    return dx_BTD, jnp.einsum("btf,btd->fd", dy_BTF, x_BTD).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _gated_linear(gate_BTF: jax.Array, up_BTF: jax.Array, w_FD: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The product silu(gate) up @ w in `dtype`. For the gradient its arguments are kept, of JAX's six arrays."""
    return linear(_gated(gate_BTF, up_BTF, w_FD.dtype), w_FD, dtype)


def _gated_linear_forward(
    gate_BTF: jax.Array, up_BTF: jax.Array, w_FD: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _gated_linear(gate_BTF, up_BTF, w_FD, dtype), (gate_BTF, up_BTF, w_FD)


def _gated_linear_backward(
    dtype: jnp.dtype, kept: tuple[jax.Array, jax.Array, jax.Array], dy_BTD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    gate_BTF, up_BTF, w_FD = kept
    sigmoid_BTF = jax.nn.sigmoid(gate_BTF)
    silu_BTF = gate_BTF * sigmoid_BTF
    slope_BTF, dw_FD = _through((silu_BTF * up_BTF).astype(w_FD.dtype), w_FD, dy_BTD)
    slope_BTF = slope_BTF.astype(gate_BTF.dtype)
    slope_of_silu_BTF = sigmoid_BTF + silu_BTF * (1 - sigmoid_BTF)
    return slope_BTF * up_BTF * slope_of_silu_BTF, slope_BTF * silu_BTF, dw_FD


_gated_linear.defvjp(_gated_linear_forward, _gated_linear_backward)
