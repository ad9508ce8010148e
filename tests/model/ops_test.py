from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax.model import ops
from sqlr1_jax.model.ops import Transposed, rms_norm
from sqlr1_jax.model.quantize import QuantizedArray
from testing.closeness import assert_close

RNG = np.random.default_rng(0)
X_BTM = RNG.standard_normal((2, 3, 8)).astype(np.float32)
SCALE_M, EPS = RNG.standard_normal(8), 1e-3


def test_an_int8_product_is_not_rounded_to_bfloat16() -> None:
    values, scale = RNG.integers(-127, 128, (8, 5)).astype(np.int8), RNG.random((1, 5)).astype(np.float32)
    x_BTM = jnp.asarray(X_BTM, jnp.bfloat16)
    product = np.asarray(ops.matmul(x_BTM, QuantizedArray(jnp.asarray(values), jnp.asarray(scale)), jnp.float32))
    assert_close(product, np.asarray(x_BTM, np.float32) @ (values * scale), 1e-5)
    assert product.dtype == np.float32 and (product.astype(jnp.bfloat16).astype(np.float32) != product).any()


@pytest.mark.parametrize(
    ("name", "shape", "transposed_shape"),
    [("q", (8, 2, 5), (2, 5, 8)), ("o", (4, 2, 5), (5, 4, 2)), ("up", (8, 5), (5, 8)), ("down", (8, 5), (5, 8))],
)
def test_a_transposed_weight_gives_the_same_product(
    name: str, shape: tuple[int, ...], transposed_shape: tuple[int, ...]
) -> None:
    w = RNG.standard_normal(shape).astype(np.float32)
    transposed = ops.transpose_weight(name, jnp.asarray(w))
    assert isinstance(transposed, Transposed) and transposed.values.shape == transposed_shape
    assert_close(ops.matmul(jnp.asarray(X_BTM), transposed, jnp.float32), X_BTM @ w.reshape(8, -1), 1e-6)


def test_biases_and_int8_weights_are_not_transposed() -> None:
    quantized = QuantizedArray(jnp.zeros((8, 5), jnp.int8), jnp.ones((1, 5)))
    assert ops.transpose_weight("up", quantized) is quantized
    bias = jnp.zeros((2, 5))
    assert ops.transpose_weight("q_bias", bias) is bias


def test_a_transposed_weight_is_the_left_operand_of_xlas_dot() -> None:
    """As the right operand, XLA:CPU would copy it at each step."""
    program = jax.jit(lambda x, w: ops.matmul(x, w, jnp.float32).sum(1))
    text = program.lower(jnp.zeros((1, 8, 128)), Transposed(jnp.zeros((384, 128)))).compile().as_text() or ""
    weight_lines = [line for line in text.splitlines() if "384,128]" in line]
    assert weight_lines and not [line for line in weight_lines if " copy(" in line or " transpose(" in line]
    (dot,) = (line for line in text.splitlines() if " dot(" in line)
    assert "f32[384,8]{1,0} dot(" in dot and "lhs_contracting_dims={1}" in dot


@pytest.mark.parametrize("width", [5, 12])
def test_gradients_of_a_product_equal_numpys(width: int) -> None:
    x_BTM, w_MN = jnp.asarray(X_BTM), jnp.asarray(RNG.standard_normal((8, width)), jnp.float32)
    dx, dw = jax.grad(lambda x, w: (ops.linear(x, w, jnp.float32) ** 2).sum() / 2, (0, 1))(x_BTM, w_MN)
    y_BTN = X_BTM @ np.asarray(w_MN)
    assert_close(dw, np.einsum("btm,btn->mn", X_BTM, y_BTN), 1e-5)
    assert_close(dx, y_BTN @ np.asarray(w_MN).T, 1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_gradient_of_a_bfloat16_input_is_a_float32_product_rounded_once(adapted: bool) -> None:
    """XLA:CPU multiplies bfloat16 into float32 several times faster than into bfloat16."""
    x_BTM, w_MN = jnp.asarray(X_BTM, jnp.bfloat16), jnp.asarray(RNG.standard_normal((8, 5)), jnp.bfloat16)
    w = ops.Adapted(w_MN, None, None) if adapted else w_MN
    gradient = jax.grad(lambda x: ops.matmul(x, w, jnp.dtype("float32")).sum())
    products = [line for line in jax.jit(gradient).lower(x_BTM).as_text().splitlines() if "dot_general" in line]
    assert products and all(line.endswith("xf32>") for line in products), products
    expected = np.asarray(w_MN, np.float32).sum(1)
    assert_close(gradient(x_BTM).astype(np.float32), np.broadcast_to(expected, (2, 3, 8)), 2.0**-8)


def test_swiglu_is_the_same_with_transposed_weights() -> None:
    gate, up, down = (RNG.standard_normal(shape).astype(np.float32) for shape in ((8, 5), (8, 5), (5, 8)))
    weights: list[Any] = [jnp.asarray(w) for w in (gate, up, down)]
    transposed = [ops.transpose_weight(name, w) for name, w in zip(("gate", "up", "down"), weights, strict=True)]
    gate_BTF = X_BTM @ gate
    expected = (gate_BTF / (1 + np.exp(-gate_BTF)) * (X_BTM @ up)) @ down
    for w_gate, w_up, w_down in (weights, transposed):
        assert_close(ops.swiglu(jnp.asarray(X_BTM), w_gate, w_up, w_down, jnp.dtype("float32")), expected, 1e-5)


def test_gradients_of_swiglu_equal_those_that_jax_derives() -> None:
    def plain(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down

    def swiglu(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return ops.swiglu(x, gate, up, down, jnp.dtype("float64"))

    with jax.enable_x64(True):
        args = [jnp.asarray(RNG.standard_normal(shape)) for shape in ((2, 3, 8), (8, 5), (8, 5), (5, 8))]
        ours = jax.grad(lambda *args: jnp.sin(swiglu(*args)).sum(), (0, 1, 2, 3))(*args)
        jaxs = jax.grad(lambda *args: jnp.sin(plain(*args)).sum(), (0, 1, 2, 3))(*args)
        for our_gradient, jax_gradient in zip(ours, jaxs, strict=True):
            assert_close(our_gradient, np.asarray(jax_gradient), 1e-12)


def test_swiglu_saves_two_arrays_of_the_feed_forward_width() -> None:
    gate, up, down = (jnp.ones(shape) for shape in ((8, 24), (8, 24), (24, 8)))
    _, vjp = jax.vjp(lambda x: ops.swiglu(x, gate, up, down, jnp.dtype("float32")), jnp.ones((2, 3, 8)))
    assert [x.shape for x in jax.tree.leaves(vjp)].count((2, 3, 24)) == 2


def plain_rms_norm(x_BTM: Any, scale_M: Any) -> Any:
    return x_BTM / jnp.sqrt((x_BTM**2).mean(-1, keepdims=True) + EPS) * scale_M[None, None]


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x_BTM, scale_M = (jnp.asarray(x, jnp.float32) for x in (3 * X_BTM, SCALE_M))
    assert_close(rms_norm(x_BTM, scale_M, EPS, "float32"), np.asarray(plain_rms_norm(3 * X_BTM, SCALE_M)), 1e-6)


def test_gradients_of_rms_norm_equal_those_that_jax_derives() -> None:
    with jax.enable_x64(True):
        args = jnp.asarray(3 * X_BTM, jnp.float64), jnp.asarray(SCALE_M)
        ours = jax.grad(lambda x, scale: jnp.sin(rms_norm(x, scale, EPS, "float64")).sum(), (0, 1))(*args)
        jaxs = jax.grad(lambda x, scale: jnp.sin(plain_rms_norm(x, scale)).sum(), (0, 1))(*args)
        for our_gradient, jax_gradient in zip(ours, jaxs, strict=True):
            assert_close(our_gradient, np.asarray(jax_gradient), 1e-12)


def test_rms_norm_of_bfloat16_is_computed_in_float32_and_has_a_bfloat16_gradient() -> None:
    x_BTM, scale_M = jnp.asarray(3 * X_BTM, jnp.bfloat16), jnp.asarray(SCALE_M, jnp.float32)
    y_BTM, vjp = jax.vjp(lambda x, scale: rms_norm(x, scale, EPS, "float32"), x_BTM, scale_M)
    assert_close(y_BTM, np.asarray(plain_rms_norm(np.asarray(x_BTM, np.float64), SCALE_M)), 1e-6)
    assert [cotangent.dtype for cotangent in vjp(y_BTM)] == [jnp.bfloat16, jnp.float32]


def test_rms_norm_saves_only_its_arguments() -> None:
    _, vjp = jax.vjp(lambda x: rms_norm(x, jnp.ones(8), EPS, "float32"), jnp.zeros((2, 3, 8)))
    assert sorted(x.shape for x in jax.tree.leaves(vjp)) == [(2, 3, 8), (8,)]
