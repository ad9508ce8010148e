from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.model.norm import rms_norm
from testing.closeness import assert_close

RNG = np.random.default_rng(0)
X_BTD, SCALE_D, EPS = 3 * RNG.standard_normal((2, 3, 8)), RNG.standard_normal(8), 1e-3


def plain(x_BTD: Any, scale_D: Any) -> Any:
    """By the definition, in JAX or numpy."""
    return x_BTD / ((x_BTD**2).mean(-1, keepdims=True) + EPS) ** 0.5 * scale_D[None, None]


def test_rms_norm_equals_the_definition() -> None:
    x_BTD, scale_D = (jnp.asarray(x, jnp.float32) for x in (X_BTD, SCALE_D))
    assert_close(rms_norm(x_BTD, scale_D, EPS, "float32"), plain(X_BTD, SCALE_D), 1e-6)


def test_gradients_equal_jaxs() -> None:
    with jax.enable_x64(True):
        args = jnp.asarray(X_BTD), jnp.asarray(SCALE_D)
        ours = jax.grad(lambda x, scale: jnp.sin(rms_norm(x, scale, EPS, "float64")).sum(), (0, 1))(*args)
        theirs = jax.grad(lambda x, scale: jnp.sin(plain(x, scale)).sum(), (0, 1))(*args)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, np.asarray(other), 1e-12)


def test_bfloat16_input_is_normalized_in_float32_with_a_bfloat16_gradient() -> None:
    x_BTD, scale_D = jnp.asarray(X_BTD, jnp.bfloat16), jnp.asarray(SCALE_D, jnp.float32)
    made, through = jax.vjp(lambda x, scale: rms_norm(x, scale, EPS, "float32"), x_BTD, scale_D)
    assert_close(made, plain(np.asarray(x_BTD, np.float64), SCALE_D), 1e-6)
    assert [slope.dtype for slope in through(made)] == [jnp.bfloat16, jnp.float32]


def test_only_the_input_is_saved_for_the_gradient() -> None:
    _, through = jax.vjp(lambda x: rms_norm(x, jnp.ones(8), EPS, "float32"), jnp.zeros((2, 3, 8)))
    assert sorted(x.shape for x in jax.tree.leaves(through)) == [(2, 3, 8), (8,)]
