from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.distributed import sharding
from sqlr1_jax.train import state
from sqlr1_jax.train.checkpoint import CheckpointNotFoundError, Checkpoints
from testing import tiny_models


def _tree(step: int) -> dict[str, Any]:
    return {"params": {"w": jnp.full(4, step, jnp.float32)}, "optimizer": (jnp.int32(step), {"m": jnp.ones(2)})}


def _same_bits(tree: Any, other: Any) -> None:
    def one(a: Any, b: Any) -> None:
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()

    jax.tree.map(one, tree, other)


def _saved(folder: Path, step: int, trees: dict[str, Any]) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, trees)
    checkpoints.wait()


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("frozen", [(), ("embed",)])
def test_a_training_state_is_restored_bit_for_bit(tmp_path: Path, name: str, frozen: tuple[str, ...]) -> None:
    program = state.UpdateSpec(tiny_models.MODEL, config.OptimizerConfig(name=name, frozen=frozen), 10)
    at = state.create_state(tiny_models.random_params(), program)
    at = dataclasses.replace(at, opt_state=jax.tree.map(lambda x: x + jnp.asarray(0.1).astype(x.dtype), at.opt_state))
    trees = {"params": at.params, "optimizer": (at.step, at.opt_state)}
    _saved(tmp_path, 3, trees)
    like = state.create_state(tiny_models.random_params(seed=1), program)
    loaded = Checkpoints(tmp_path).load(3, {"params": like.params, "optimizer": (like.step, like.opt_state)})
    assert jax.tree.structure(loaded) == jax.tree.structure(trees)  # type: ignore[operator]
    _same_bits(loaded, trees)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int32"])
def test_every_dtype_is_restored(tmp_path: Path, dtype: str) -> None:
    tree = {"params": {"w": jnp.asarray([1.5, -0.0, 3e30]).astype(dtype)}}
    _saved(tmp_path, 1, tree)
    _same_bits(Checkpoints(tmp_path).load(1, tree), tree)


def test_a_part_of_a_checkpoint_can_be_loaded_alone(tmp_path: Path) -> None:
    _saved(tmp_path, 1, _tree(1))
    loaded = Checkpoints(tmp_path).load(1, {"params": _tree(0)["params"]})
    assert list(loaded) == ["params"]
    np.testing.assert_array_equal(loaded["params"]["w"], np.ones(4))


def test_weights_load_into_the_requested_sharding(tmp_path: Path) -> None:
    """Saved from one device, read by eight."""
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2))
    values = jnp.arange(32.0).reshape(8, 4)
    _saved(tmp_path, 1, {"params": values})
    layout = sharding.named_sharding(mesh, ("embed", "heads"), sharding.TRAIN_RULES, (8, 4))
    loaded = Checkpoints(tmp_path).load(1, {"params": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=layout)})
    assert loaded["params"].sharding.is_equivalent_to(layout, 2)
    np.testing.assert_array_equal(loaded["params"], values)


def test_the_last_the_best_and_the_pinned_steps_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, always=(0, 3))
    for step, score in enumerate([None, 0.1, 0.9, None, 0.2, None, None, 0.3]):
        checkpoints.save(step, _tree(step), score)
    assert checkpoints.steps() == [0, 2, 3, 6, 7]
    assert (checkpoints.latest(), checkpoints.best()) == (7, 2)
    assert [checkpoints.resolve(which) for which in ("best", "last", "3")] == [2, 7, 3]
    np.testing.assert_array_equal(Checkpoints(tmp_path).load(2, _tree(0))["params"]["w"], np.full(4, 2))


def test_the_latest_of_equal_scores_is_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in range(5):
        checkpoints.save(step, _tree(step), 0.5 if step in (1, 2) else 0.1)
    assert checkpoints.best() in checkpoints.steps()
    assert checkpoints.best() == 2


def test_without_scores_the_last_step_is_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, _tree(step))
    assert checkpoints.resolve("best") == 2


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    """As a run does that was killed between a step's checkpoint and the next."""
    _saved(tmp_path, 1, _tree(1))
    _saved(tmp_path, 1, _tree(7))
    np.testing.assert_array_equal(Checkpoints(tmp_path).load(1, _tree(0))["params"]["w"], np.full(4, 7))


def test_saved_arrays_may_be_donated_immediately(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    for step in range(3):
        tree = {"params": {f"w{i}": jnp.full((512, 1024), step + i, jnp.float32) for i in range(8)}}
        checkpoints.save(step, tree)
        jax.block_until_ready([overwrite(leaf) for leaf in tree["params"].values()])
        loaded = checkpoints.load(step, {"params": {f"w{i}": jnp.zeros((512, 1024)) for i in range(8)}})
        assert [float(leaf.mean()) for leaf in loaded["params"].values()] == [float(step + i) for i in range(8)]


def test_queries_wait_until_a_checkpoint_is_complete(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": {"w": jnp.ones((2048, 2048))}}, score=0.5)
    assert (checkpoints.latest(), checkpoints.best(), checkpoints.steps()) == (1, 1, [1])
    checkpoints.save(2, {"params": {"w": jnp.ones((2048, 2048))}})
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [1, 2]


def test_a_half_written_checkpoint_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _tree(1))
    checkpoints.wait()
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "params").mkdir()
    again = Checkpoints(tmp_path)
    assert again.steps() == [1]
    again.save(2, _tree(2))
    again.wait()
    assert Checkpoints(tmp_path).steps() == [1, 2]


def test_errors_name_the_folder_and_the_existing_steps(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    with pytest.raises(CheckpointNotFoundError, match="holds no checkpoint yet; run the stage first"):
        checkpoints.resolve("best")
    checkpoints.save(4, _tree(4))
    with pytest.raises(CheckpointNotFoundError, match=rf"{tmp_path} has no step 5; it has \[4\]"):
        checkpoints.load(5, _tree(0))
