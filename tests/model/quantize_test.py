from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sqlr1_jax.model import attention, quantize, qwen2
from sqlr1_jax.model.quantize import QuantizedArray
from testing import tiny_models

pytestmark = pytest.mark.usefixtures("compiles_fast")


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)))
def test_int8_is_within_half_a_quantization_step(x: np.ndarray) -> None:
    made = quantize.quantize_int8(jnp.asarray(x), 0)
    assert made.values.dtype == jnp.int8 and made.scale.shape == (1, 4)
    step = np.abs(x).max(0, keepdims=True) / 127
    assert (np.abs(np.asarray(made.values * made.scale) - x) <= step * 0.501 + 1e-30).all()


def test_matrices_have_a_scale_per_output_channel() -> None:
    params = tiny_models.random_params()
    made = quantize.quantize_layers(params)
    assert made["embed"] is params["embed"] and made["layers"]["q_bias"] is params["layers"]["q_bias"]
    shapes = {name: w.scale.shape for name, w in made["layers"].items() if isinstance(w, QuantizedArray)}
    assert shapes == {
        "q": (2, 1, 4, 4), "k": (2, 1, 2, 4), "v": (2, 1, 2, 4), "o": (2, 1, 1, 16), "gate": (2, 1, 32),
        "up": (2, 1, 32), "down": (2, 1, 16),
    }  # fmt: skip


def test_the_forward_pass_with_int8_equals_that_of_the_dequantized_weights() -> None:
    params = quantize.quantize_layers(tiny_models.random_params())
    wide = {n: w.values * w.scale if isinstance(w, QuantizedArray) else w for n, w in params["layers"].items()}
    tokens_BT = jnp.asarray([[3, 4, 5, 6, 7]])
    mask = attention.causal_mask(tokens_BT, jnp.array([5]))
    ours, theirs = (
        qwen2.forward(tree, tokens_BT, jnp.arange(5)[None], mask, tiny_models.MODEL)[0]
        for tree in (params, {**params, "layers": wide})
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_row_of_zeros_stays_zero() -> None:
    made = quantize.quantize_int8(jnp.zeros((2, 3)), 1)
    assert not np.asarray(made.values).any() and np.isfinite(np.asarray(made.scale)).all()


@pytest.mark.parametrize("axis", [0, -1])
def test_the_largest_value_of_each_scale_is_127(axis: int) -> None:
    x = jax.random.normal(jax.random.key(0), (5, 7))
    made = quantize.quantize_int8(x, axis)
    assert (jnp.abs(made.values).max(axis) == 127).all()
