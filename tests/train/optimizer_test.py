from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.train import optimizer
from testing import closeness, tiny_models

pytestmark = pytest.mark.usefixtures("compiles_fast")

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def _name(path: tuple) -> str:
    return str(path[-1].key)


def _leaves_by_name(tree: Any) -> dict[str, np.ndarray]:
    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _random_gradients(count: int) -> list[Any]:
    return [jax.tree.map(lambda x: x / 10, tiny_models.random_params(seed=100 + i)) for i in range(count)]


def _trajectory(
    optimizer_config: config.OptimizerConfig, gradients: list[Any], steps: int = 10
) -> list[dict[str, np.ndarray]]:
    """The initial weights, and the weights after each gradient."""
    tx = optimizer.make_optimizer(optimizer_config, tiny_models.MODEL, steps)
    params = tiny_models.random_params()
    state, trajectory = tx.init(params), [_leaves_by_name(params)]
    for gradient in gradients:
        changes, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, changes)
        trajectory.append(_leaves_by_name(params))
    return trajectory


def _naive_rate(optimizer_config: config.OptimizerConfig, steps: int, step: int) -> float:
    if step < optimizer_config.warmup_steps:
        return optimizer_config.learning_rate * (step + 1) / optimizer_config.warmup_steps
    done = min(1.0, (step - optimizer_config.warmup_steps) / max(1, steps - optimizer_config.warmup_steps))
    if optimizer_config.schedule == "linear":
        return optimizer_config.learning_rate * (1 - done * (1 - optimizer_config.end_fraction))
    if optimizer_config.schedule == "cosine":
        return optimizer_config.learning_rate * (
            optimizer_config.end_fraction + (1 - optimizer_config.end_fraction) * (1 + math.cos(math.pi * done)) / 2
        )
    return optimizer_config.learning_rate


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 20), st.integers(21, 60), st.floats(0, 1))
def test_schedules_match_their_formulas(name: str, warmup: int, steps: int, end: float) -> None:
    optimizer_config = config.OptimizerConfig(learning_rate=0.5, schedule=name, warmup_steps=warmup, end_fraction=end)
    all_steps = np.arange(65)  # always the same length, so that the schedule compiles once
    expected = [_naive_rate(optimizer_config, steps, step) for step in range(65)]
    np.testing.assert_allclose(optimizer.schedule(optimizer_config, steps)(all_steps), expected, rtol=1e-5, atol=1e-7)


def test_adamw_matches_its_formula_with_clipping_weight_decay_and_schedule() -> None:
    optimizer_config = config.OptimizerConfig(
        learning_rate=0.01, schedule="linear", warmup_steps=2, weight_decay=0.1, clip_norm=0.5, b1=0.8, b2=0.9, eps=1e-3
    )
    gradients = _random_gradients(4)
    trajectory = _trajectory(optimizer_config, gradients)
    params = {name: x.astype(float) for name, x in trajectory[0].items()}
    first: dict[str, Any] = dict.fromkeys(params, 0.0)
    second: dict[str, Any] = dict.fromkeys(params, 0.0)
    for step, tree in enumerate(gradients):
        named = {name: x.astype(float) for name, x in _leaves_by_name(tree).items()}
        norm = math.sqrt(sum((x**2).sum() for x in named.values()))
        assert norm > 0.5
        rate = _naive_rate(optimizer_config, 10, step)
        for name, gradient in named.items():
            gradient = gradient * 0.5 / norm
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            mean, square = first[name] / (1 - 0.8 ** (step + 1)), second[name] / (1 - 0.9 ** (step + 1))
            params[name] = params[name] - rate * (mean / (np.sqrt(square) + 1e-3) + 0.1 * params[name])
            np.testing.assert_allclose(trajectory[step + 1][name], params[name], rtol=1e-5, atol=1e-6)


def _orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Five iterations of Muon's quintic in float64 numpy (Jordan et al. 2024)."""
    x = matrix.astype(float)
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if flip else x


def _as_matrix(name: str, layer: np.ndarray) -> np.ndarray:
    """A layer's weight as a matrix [in, out], D by heads · h or the reverse."""
    return layer.reshape(-1, layer.shape[-1]) if name in ("o", "down") else layer.reshape(layer.shape[0], -1)


def test_muon_orthogonalizes_the_matrices_of_each_layer() -> None:
    optimizer_config = config.OptimizerConfig(name="muon", learning_rate=0.1, clip_norm=0.0)
    [gradient] = _random_gradients(1)
    before, after = _trajectory(optimizer_config, [gradient])
    for name in MATRICES:
        for layer, gradient_of_layer in enumerate(_leaves_by_name(gradient)[name]):
            expected = _orthogonalized(_as_matrix(name, gradient_of_layer))
            expected *= 0.1 * 0.2 * math.sqrt(max(expected.shape))
            change = _as_matrix(name, before[name][layer] - after[name][layer])
            np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-5, err_msg=f"{name}, layer {layer}")


def test_muon_updates_all_other_parameters_with_adam() -> None:
    optimizer_config = config.OptimizerConfig(
        name="muon", learning_rate=0.1, clip_norm=0.0, eps=1e-3, b1=0.8, b2=0.9, weight_decay=0.1
    )
    gradients = _random_gradients(3)
    after = _trajectory(optimizer_config, gradients)[-1]
    tx = optax.adamw(0.1, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.1, nesterov=True)
    params = tiny_models.random_params()
    state = tx.init(params)
    for gradient in gradients:
        changes, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, changes)
    for name, value in _leaves_by_name(params).items():
        if name not in MATRICES:
            np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("frozen", [("embed",), ("q", "final_norm"), ("layers",)])
def test_frozen_parameters_keep_their_values_and_all_others_change(name: str, frozen: tuple[str, ...]) -> None:
    trajectory = _trajectory(
        config.OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.1, frozen=frozen), _random_gradients(2)
    )
    unchanged = frozen if frozen != ("layers",) else tuple(_leaves_by_name(tiny_models.random_params()["layers"]))
    for leaf, value in trajectory[0].items():
        if leaf in unchanged:
            np.testing.assert_array_equal(trajectory[-1][leaf], value)
        else:
            assert (trajectory[-1][leaf] != value).any()


def test_freezing_an_unknown_parameter_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.frozen names \['embedd'\]"):
        optimizer.make_optimizer(config.OptimizerConfig(frozen=("embedd", "q")), tiny_models.MODEL, 1).init(
            tiny_models.random_params()
        )


@pytest.mark.parametrize("clip", [0.0, 0.1, 100.0])
def test_clipping_scales_only_gradients_above_the_norm(clip: float) -> None:
    """Adam's update does not depend on the gradient's scale, so the test reads its first moment."""
    [gradient] = _random_gradients(1)
    norm = float(optax.global_norm(gradient))
    assert 0.1 < norm < 100
    tx = optimizer.make_optimizer(config.OptimizerConfig(clip_norm=clip), tiny_models.MODEL, 1)
    _, state = tx.update(gradient, tx.init(tiny_models.random_params()), tiny_models.random_params())
    scale = 0.1 / norm if clip == 0.1 else 1.0
    moments = optax.tree.get(state, "mu")
    assert closeness.relative_distance(moments, jax.tree.map(lambda x: jnp.asarray(0.1 * scale) * x, gradient)) < 1e-5
