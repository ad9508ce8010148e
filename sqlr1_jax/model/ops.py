"""Matrix products, SwiGLU and RMSNorm, with custom gradients where JAX's own save or copy more arrays.

A weight has one of four forms: an array that trains, a frozen array with a LoRA adapter (`Adapted`), int8 with scales
(`QuantizedArray`), or transposed for decoding on CPU (`Transposed`). `matmuls`, `matmul` and `swiglu` take all of them.

Shapes are in names: B rows, T time, R = B · T tokens, M inputs, N outputs, D model, F feed-forward.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqlr1_jax.model.quantize import CONTRACTING_AXES, QuantizedArray


class Transposed(NamedTuple):
    """A weight stored outputs first: [N, M] instead of [M, N], so the contracting axes are last.

    It exists for decoding on XLA:CPU, which copies the right operand of a small matmul at each step:

        x [R, M] @ w [M, N]      w is the right operand: XLA copies all of w, then multiplies
        w [N, M] @ x [M, R]      w is the left operand: XLA reads w once, in place

    With R = 8 tokens the first form takes 1.7 times as long; with R = 512 both take the same time, so training keeps
    the usual layout.
    """

    values: Any  # an array, or its shape


class Adapted(NamedTuple):
    """A frozen matrix with a LoRA adapter (lora.py): x @ values + (x @ a) @ b. Only a and b get gradients."""

    values: Any  # [M, N]; M and N may be several axes, here and below
    a: Any  # [M, r], times alpha / r; None: no adapter
    b: Any  # [r, N]; None: no adapter


Weight = jax.Array | QuantizedArray | Transposed | Adapted


def einsum_f32(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum whose result is in float32, or in float64 for operands in float64."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def matmuls(x_BTM: jax.Array, weights: Sequence[Weight], dtype: jnp.dtype) -> list[jax.Array]:
    """Multiplies x by each weight, which share one read of x.

    Args:
      x_BTM: activations [B, T, M].
      weights: matrices whose leading axes multiply to M, in any form; either all are `Transposed` or none is.
      dtype: dtype of the results.

    Returns:
      For each weight x @ w [B, T, N]; the weight's output axes (heads and head size) are flattened into N.
    """
    if any(isinstance(w, Transposed) for w in weights):
        x_MR = _to_columns(x_BTM)
        return [_from_columns(_matmul_transposed(w, x_MR, dtype), x_BTM) for w in weights]
    return [_matmul(x_BTM, w, dtype) for w in weights]


def matmul(x_BTM: jax.Array, w: Weight, dtype: jnp.dtype) -> jax.Array:
    """Multiplies x [B, T, M] by one weight: [B, T, N] in `dtype`; see `matmuls`."""
    return matmuls(x_BTM, [w], dtype)[0]


def swiglu(x_BTD: jax.Array, gate: Weight, up: Weight, down: Weight, dtype: jnp.dtype) -> jax.Array:
    """SwiGLU feed-forward (silu(x @ gate) · (x @ up)) @ down: [B, T, D] in `dtype`.

    The product before `down` is rounded to x's dtype, since it is the input of a matmul. The three weights have the
    same form.
    """
    if isinstance(gate, Transposed):
        # Tokens stay columns through all three matmuls: only x and the result are transposed.
        x_DR = _to_columns(x_BTD)
        gate_FR, up_FR = (_matmul_transposed(w, x_DR, dtype) for w in (gate, up))
        return _from_columns(_matmul_transposed(down, _gated(gate_FR, up_FR, x_BTD.dtype), dtype), x_BTD)
    gate_BTF, up_BTF = matmuls(x_BTD, (gate, up), dtype)
    if isinstance(down, jax.Array):
        return _gated_linear(gate_BTF, up_BTF, down.astype(x_BTD.dtype), dtype)

    def gated_matmul(gate_BTF: jax.Array, up_BTF: jax.Array, down: Weight) -> jax.Array:
        return matmul(_gated(gate_BTF, up_BTF, x_BTD.dtype), down, dtype)

    # For the gradient, only gate and up are saved, as by `_gated_linear`.
    apply = jax.checkpoint(gated_matmul, prevent_cse=False) if isinstance(down, Adapted) else gated_matmul
    return apply(gate_BTF, up_BTF, down)


def _gated(gate: jax.Array, up: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (jax.nn.silu(gate) * up).astype(dtype)


def _matmul(x_BTM: jax.Array, w: Weight, dtype: jnp.dtype) -> jax.Array:
    assert not isinstance(w, Transposed)
    if isinstance(w, Adapted):
        return _adapted_matmul(x_BTM, w, dtype)
    values, scale = w if isinstance(w, QuantizedArray) else (w, None)
    y_BTN = linear(x_BTM, values.astype(x_BTM.dtype).reshape(x_BTM.shape[-1], -1), dtype)
    # A scale belongs to one output channel, so it multiplies the product [B, T, N] instead of the matrix [M, N].
    return y_BTN if scale is None else (y_BTN * scale.reshape(1, 1, -1)).astype(dtype)


def _adapted_matmul(x_BTM: jax.Array, w: Adapted, dtype: jnp.dtype) -> jax.Array:
    y_BTN = _frozen_linear(x_BTM, w.values, dtype, x_BTM.dtype)
    if w.a is None:
        return y_BTN
    a_Mr, b_rN = w.a.reshape(-1, w.a.shape[-1]).astype(x_BTM.dtype), w.b.reshape(len(w.b), -1).astype(x_BTM.dtype)
    x_BTr = linear(x_BTM, a_Mr, dtype).astype(x_BTM.dtype)
    return y_BTN + linear(x_BTr, b_rN, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _frozen_linear(x_BTM: jax.Array, w: jax.Array, dtype: jnp.dtype, x_dtype: jnp.dtype) -> jax.Array:
    """The product x @ w in `dtype`, without a gradient of w: neither x nor a copy of w in another dtype is saved."""
    w_MN = w.reshape(x_BTM.shape[-1], -1).astype(x_dtype)
    return jnp.einsum("btm,mn->btn", x_BTM, w_MN, preferred_element_type=dtype)


def _frozen_linear_forward(
    x_BTM: jax.Array, w: jax.Array, dtype: jnp.dtype, x_dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    return _frozen_linear(x_BTM, w, dtype, x_dtype), w


def _frozen_linear_backward(
    dtype: jnp.dtype, x_dtype: jnp.dtype, w: jax.Array, dy_BTN: jax.Array
) -> tuple[jax.Array, None]:
    del dtype  # dy has it
    return _input_cotangent(dy_BTN, w.reshape(-1, dy_BTN.shape[-1]).astype(x_dtype)), None


_frozen_linear.defvjp(_frozen_linear_forward, _frozen_linear_backward)


def _input_cotangent(dy_BTN: jax.Array, w_MN: jax.Array) -> jax.Array:
    """Cotangent of x [B, T, M] in x @ w, in w's dtype, which is also x's."""
    # Rounded after the product: XLA:CPU multiplies bfloat16 several times faster into float32 than into bfloat16.
    wide_BTM = jnp.einsum("btn,mn->btm", dy_BTN.astype(w_MN.dtype), w_MN, preferred_element_type=dy_BTN.dtype)
    return wide_BTM.astype(w_MN.dtype)


def _to_columns(x_BTM: jax.Array) -> jax.Array:
    """Tokens as columns: [B, T, M] → [M, R]."""
    # Without a barrier, here and in `_from_columns`, XLA folds the transpose into the matmul, and the weight becomes
    # the right operand again.
    return jax.lax.optimization_barrier(x_BTM.reshape(-1, x_BTM.shape[-1]).T)


def _matmul_transposed(w: Weight, x_MR: jax.Array, dtype: jnp.dtype) -> jax.Array:
    assert isinstance(w, Transposed)
    w_NM = w.values.astype(x_MR.dtype).reshape(-1, x_MR.shape[0])
    return jnp.einsum("nm,mr->nr", w_NM, x_MR, preferred_element_type=dtype)


def _from_columns(y_NR: jax.Array, like_BTM: jax.Array) -> jax.Array:
    """The inverse of `_to_columns`, with B and T of `like_BTM`: [N, R] → [B, T, N]."""
    return jax.lax.optimization_barrier(y_NR).T.reshape(*like_BTM.shape[:2], -1)


def transpose_weight(name: str, w: Any) -> Any:
    """One layer's parameter `name`, as `Transposed` if it is a float matrix.

    Norms, biases and int8 matrices are returned unchanged.
    """
    if name not in CONTRACTING_AXES or isinstance(w, QuantizedArray):
        return w
    # CONTRACTING_AXES counts the leading axis of layers, which one layer's weight does not have.
    contracting = tuple(axis - 1 for axis in CONTRACTING_AXES[name])
    return Transposed(jnp.moveaxis(w, contracting, range(-len(contracting), 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x_BTD: jax.Array, w_DF: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The product x @ w [B, T, F] in `dtype`; its gradient dw is computed as [D, F], like w.

    JAX's own gradient computes dw as [F, D] and transposes it, which on CPU costs a strided copy of dy each time.
    """
    return jnp.einsum("btd,df->btf", x_BTD, w_DF, preferred_element_type=dtype)


def _linear_forward(
    x_BTD: jax.Array, w_DF: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x_BTD, w_DF, dtype), (x_BTD, w_DF)


def _linear_backward(
    dtype: jnp.dtype, residuals: tuple[jax.Array, jax.Array], dy_BTF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _matmul_vjp(*residuals, dy_BTF)


linear.defvjp(_linear_forward, _linear_backward)


def _matmul_vjp(x_BTD: jax.Array, w_DF: jax.Array, dy_BTF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cotangents (dx, dw) of x @ w."""
    dx_BTD = _input_cotangent(dy_BTF, w_DF)
    dy_BTF = dy_BTF.astype(x_BTD.dtype)
    # XLA:CPU transposes the first operand of the product that gives dw, so the narrower one comes first.
    if w_DF.shape[0] <= w_DF.shape[1]:
        return dx_BTD, jnp.einsum("btd,btf->df", x_BTD, dy_BTF)
    return dx_BTD, jnp.einsum("btf,btd->fd", dy_BTF, x_BTD).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _gated_linear(gate_BTF: jax.Array, up_BTF: jax.Array, w_FD: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The product (silu(gate) · up) @ w in `dtype`, with two arrays [B, T, F] as residuals instead of JAX's six."""
    return linear(_gated(gate_BTF, up_BTF, w_FD.dtype), w_FD, dtype)


def _gated_linear_forward(
    gate_BTF: jax.Array, up_BTF: jax.Array, w_FD: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    # Arrays [B, T, F] are the widest of a layer, so as few as possible are saved. Sigmoid, silu and the gated product
    # are elementwise: to compute them again from gate and up costs little.
    return _gated_linear(gate_BTF, up_BTF, w_FD, dtype), (gate_BTF, up_BTF, w_FD)


def _gated_linear_backward(
    dtype: jnp.dtype, residuals: tuple[jax.Array, jax.Array, jax.Array], dy_BTD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    gate_BTF, up_BTF, w_FD = residuals
    sigmoid_BTF = jax.nn.sigmoid(gate_BTF)
    silu_BTF = gate_BTF * sigmoid_BTF
    dgated_BTF, dw_FD = _matmul_vjp((silu_BTF * up_BTF).astype(w_FD.dtype), w_FD, dy_BTD)
    dgated_BTF = dgated_BTF.astype(gate_BTF.dtype)
    silu_derivative_BTF = sigmoid_BTF + silu_BTF * (1 - sigmoid_BTF)
    return dgated_BTF * up_BTF * silu_derivative_BTF, dgated_BTF * silu_BTF, dw_FD


_gated_linear.defvjp(_gated_linear_forward, _gated_linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float, dtype: str) -> jax.Array:
    """RMSNorm: x / √(mean(x²) + eps) · scale over the last axis (Zhang & Sennrich, 2019).

    It is computed in at least float32 and returned [B, T, D] in `dtype`. Its gradient saves only x and the scale;
    JAX's own also saves the normalized x, a second array of the model's width.
    """
    normalized_BTD, _ = _normalize(x_BTD, eps)
    return (normalized_BTD * scale_D.astype(normalized_BTD.dtype)[None, None]).astype(dtype)


def _normalize(x_BTD: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """The normalized x [B, T, D] and the factor 1 / √(mean(x²) + eps) [B, T, 1]."""
    # A sum of D squares in bfloat16 would lose most of its digits.
    wide_BTD = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    factor_BT1 = jax.lax.rsqrt(jnp.mean(wide_BTD * wide_BTD, axis=-1, keepdims=True) + eps)
    return wide_BTD * factor_BT1, factor_BT1


def _rms_norm_forward(
    x_BTD: jax.Array, scale_D: jax.Array, eps: float, dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rms_norm(x_BTD, scale_D, eps, dtype), (x_BTD, scale_D)


def _rms_norm_backward(
    eps: float, dtype: str, residuals: tuple[jax.Array, jax.Array], dy_BTD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTD, scale_D = residuals
    normalized_BTD, factor_BT1 = _normalize(x_BTD, eps)
    dy_BTD = dy_BTD.astype(normalized_BTD.dtype)
    dnormalized_BTD = dy_BTD * scale_D.astype(dy_BTD.dtype)[None, None]
    # The output does not depend on the magnitude of x (except through eps), so dx has no component along the
    # normalized x.
    along_BT1 = jnp.mean(dnormalized_BTD * normalized_BTD, axis=-1, keepdims=True)
    dscale_D = (dy_BTD * normalized_BTD).sum((0, 1))
    dx_BTD = factor_BT1 * (dnormalized_BTD - normalized_BTD * along_BT1)
    return dx_BTD.astype(x_BTD.dtype), dscale_D.astype(scale_D.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)
