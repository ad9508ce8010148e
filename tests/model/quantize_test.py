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
def test_int8_error_is_at_most_half_a_step(x: np.ndarray) -> None:
    quantized = quantize.quantize_int8(jnp.asarray(x), 0)
    assert quantized.values.dtype == jnp.int8 and quantized.scale.shape == (1, 4)
    step = np.abs(x).max(0, keepdims=True) / 127
    assert (np.abs(np.asarray(quantized.values * quantized.scale) - x) <= step * 0.501 + 1e-30).all()


def test_layer_matrices_have_a_scale_per_output_channel() -> None:
    params = tiny_models.random_params()
    quantized = quantize.quantize_layers(params)
    assert quantized["embed"] is params["embed"] and quantized["layers"]["q_bias"] is params["layers"]["q_bias"]
    shapes = {name: w.scale.shape for name, w in quantized["layers"].items() if isinstance(w, QuantizedArray)}
    assert shapes == {
        "q": (2, 1, 4, 4), "k": (2, 1, 2, 4), "v": (2, 1, 2, 4), "o": (2, 1, 1, 16), "gate": (2, 1, 32),
        "up": (2, 1, 32), "down": (2, 1, 16),
    }  # fmt: skip


def test_forward_with_int8_weights_equals_forward_with_the_dequantized_weights() -> None:
    params = quantize.quantize_layers(tiny_models.random_params())
    dequantized = {n: w.values * w.scale if isinstance(w, QuantizedArray) else w for n, w in params["layers"].items()}
    tokens_BT = jnp.asarray([[3, 4, 5, 6, 7]])
    mask = attention.causal_mask(tokens_BT, jnp.array([5]))
    int8, expected = (
        qwen2.forward(tree, tokens_BT, jnp.arange(5)[None], mask, tiny_models.MODEL)[0]
        for tree in (params, {**params, "layers": dequantized})
    )
    np.testing.assert_allclose(int8, expected, rtol=1e-4, atol=1e-4)


def test_a_slice_of_zeros_stays_zero() -> None:
    quantized = quantize.quantize_int8(jnp.zeros((2, 3)), 1)
    assert not np.asarray(quantized.values).any() and np.isfinite(np.asarray(quantized.scale)).all()


@pytest.mark.parametrize("axis", [0, -1])
def test_the_largest_value_of_each_slice_becomes_127(axis: int) -> None:
    x = jax.random.normal(jax.random.key(0), (5, 7))
    quantized = quantize.quantize_int8(x, axis)
    assert (jnp.abs(quantized.values).max(axis) == 127).all()
