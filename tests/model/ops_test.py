from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax.model import ops
from sqlr1_jax.model.ops import Transposed
from sqlr1_jax.model.quantize import QuantizedArray
from testing.closeness import assert_close

RNG = np.random.default_rng(0)
X_BTM = RNG.standard_normal((2, 3, 8)).astype(np.float32)


def test_int8_products_are_not_rounded_to_bfloat16() -> None:
    values, scale = RNG.integers(-127, 128, (8, 5)).astype(np.int8), RNG.random((1, 5)).astype(np.float32)
    x_BTM = jnp.asarray(X_BTM, jnp.bfloat16)
    made = np.asarray(ops.matmul(x_BTM, QuantizedArray(jnp.asarray(values), jnp.asarray(scale)), jnp.float32))
    assert_close(made, np.asarray(x_BTM, np.float32) @ (values * scale), 1e-5)
    assert made.dtype == np.float32 and (made.astype(jnp.bfloat16).astype(np.float32) != made).any()


@pytest.mark.parametrize(
    ("name", "shape", "turned"),
    [("q", (8, 2, 5), (2, 5, 8)), ("o", (4, 2, 5), (5, 4, 2)), ("up", (8, 5), (5, 8)), ("down", (8, 5), (5, 8))],
)
def test_a_transposed_matrix_gives_the_same_product(name: str, shape: tuple[int, ...], turned: tuple[int, ...]) -> None:
    w = RNG.standard_normal(shape).astype(np.float32)
    made = ops.transpose_weight(name, jnp.asarray(w))
    assert isinstance(made, Transposed) and made.values.shape == turned
    assert_close(ops.matmul(jnp.asarray(X_BTM), made, jnp.float32), X_BTM @ w.reshape(8, -1), 1e-6)


def test_norms_biases_and_int8_are_not_transposed() -> None:
    scaled = QuantizedArray(jnp.zeros((8, 5), jnp.int8), jnp.ones((1, 5)))
    assert ops.transpose_weight("up", scaled) is scaled
    bias = jnp.zeros((2, 5))
    assert ops.transpose_weight("q_bias", bias) is bias


def test_a_transposed_matrix_is_the_left_operand_without_a_copy() -> None:
    """Else XLA for CPU copies it at each step."""
    program = jax.jit(lambda x, w: ops.matmul(x, w, jnp.float32).sum(1))
    text = program.lower(jnp.zeros((1, 8, 128)), Transposed(jnp.zeros((384, 128)))).compile().as_text() or ""
    touching = [line for line in text.splitlines() if "384,128]" in line]
    assert touching and not [line for line in touching if " copy(" in line or " transpose(" in line]
    (product,) = (line for line in text.splitlines() if " dot(" in line)
    assert "f32[384,8]{1,0} dot(" in product and "lhs_contracting_dims={1}" in product


@pytest.mark.parametrize("width", [5, 12])
def test_gradients_of_a_product_equal_numpys(width: int) -> None:
    x_BTM, w_MN = jnp.asarray(X_BTM), jnp.asarray(RNG.standard_normal((8, width)), jnp.float32)
    dx, dw = jax.grad(lambda x, w: (ops.linear(x, w, jnp.float32) ** 2).sum() / 2, (0, 1))(x_BTM, w_MN)
    y_BTN = X_BTM @ np.asarray(w_MN)
    assert_close(dw, np.einsum("btm,btn->mn", X_BTM, y_BTN), 1e-5)
    assert_close(dx, y_BTN @ np.asarray(w_MN).T, 1e-5)


def test_swiglu_is_the_same_with_transposed_matrices() -> None:
    gate, up, down = (RNG.standard_normal(shape).astype(np.float32) for shape in ((8, 5), (8, 5), (5, 8)))
    weights: list[Any] = [jnp.asarray(w) for w in (gate, up, down)]
    turned = [ops.transpose_weight(name, w) for name, w in zip(("gate", "up", "down"), weights, strict=True)]
    gated = X_BTM @ gate
    expected = (gated / (1 + np.exp(-gated)) * (X_BTM @ up)) @ down
    for w_gate, w_up, w_down in (weights, turned):
        assert_close(ops.swiglu(jnp.asarray(X_BTM), w_gate, w_up, w_down, jnp.float32), expected, 1e-5)


def test_swiglu_gradients_equal_jaxs() -> None:
    def plain(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down

    def swiglu(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return ops.swiglu(x, gate, up, down, jnp.dtype("float64"))

    with jax.enable_x64(True):
        args = [jnp.asarray(RNG.standard_normal(shape)) for shape in ((2, 3, 8), (8, 5), (8, 5), (5, 8))]
        ours = jax.grad(lambda *args: jnp.sin(swiglu(*args)).sum(), (0, 1, 2, 3))(*args)
        theirs = jax.grad(lambda *args: jnp.sin(plain(*args)).sum(), (0, 1, 2, 3))(*args)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, np.asarray(other), 1e-12)


def test_swiglu_saves_two_residuals_of_its_width() -> None:
    gate, up, down = (jnp.ones(shape) for shape in ((8, 24), (8, 24), (24, 8)))
    _, through = jax.vjp(lambda x: ops.swiglu(x, gate, up, down, jnp.dtype("float32")), jnp.ones((2, 3, 8)))
    assert [x.shape for x in jax.tree.leaves(through)].count((2, 3, 24)) == 2
