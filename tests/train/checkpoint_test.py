from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.distributed import sharding
from sqlr1_jax.train import batch, context, sft, state
from sqlr1_jax.train.checkpoint import CheckpointDamagedError, CheckpointNotFoundError, Checkpoints
from testing import tiny_models, training_data


def _tree(step: int) -> dict[str, Any]:
    return {"params": {"w": jnp.full(4, step, jnp.float32)}, "optimizer": (jnp.int32(step), {"m": jnp.ones(2)})}


def _assert_same_bits(tree: Any, other: Any) -> None:
    def assert_same_leaf(a: Any, b: Any) -> None:
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()

    jax.tree.map(assert_same_leaf, tree, other)


def _save(folder: Path, step: int, trees: dict[str, Any]) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, trees)
    checkpoints.wait()


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("frozen", [(), ("embed",)])
def test_a_training_state_is_restored_bit_for_bit(tmp_path: Path, name: str, frozen: tuple[str, ...]) -> None:
    spec = state.UpdateSpec(tiny_models.MODEL, config.OptimizerConfig(name=name, frozen=frozen), 10)
    saved = state.create_state(tiny_models.random_params(), spec)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(0.1).astype(x.dtype), saved.opt_state)
    saved = dataclasses.replace(saved, opt_state=opt_state)
    trees = {"params": saved.params, "optimizer": (saved.step, saved.opt_state)}
    _save(tmp_path, 3, trees)
    like = state.create_state(tiny_models.random_params(seed=1), spec)
    loaded = Checkpoints(tmp_path).load(3, {"params": like.params, "optimizer": (like.step, like.opt_state)})
    structure: Any = jax.tree.structure(loaded)
    assert structure == jax.tree.structure(trees)
    _assert_same_bits(loaded, trees)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int32"])
def test_every_dtype_is_restored(tmp_path: Path, dtype: str) -> None:
    tree = {"params": {"w": jnp.asarray([1.5, -0.0, 3e30]).astype(dtype)}}
    _save(tmp_path, 1, tree)
    _assert_same_bits(Checkpoints(tmp_path).load(1, tree), tree)


def test_one_of_the_saved_trees_can_be_loaded_without_the_others(tmp_path: Path) -> None:
    _save(tmp_path, 1, _tree(1))
    loaded = Checkpoints(tmp_path).load(1, {"params": _tree(0)["params"]})
    assert list(loaded) == ["params"]
    np.testing.assert_array_equal(loaded["params"]["w"], np.ones(4))


def test_weights_are_loaded_with_the_requested_sharding(tmp_path: Path) -> None:
    """Saved on one device, loaded on eight."""
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2))
    values = jnp.arange(32.0).reshape(8, 4)
    _save(tmp_path, 1, {"params": values})
    eight_devices = sharding.named_sharding(mesh, ("embed", "heads"), sharding.TRAIN_RULES, (8, 4))
    loaded = Checkpoints(tmp_path).load(
        1, {"params": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=eight_devices)}
    )
    assert loaded["params"].sharding.is_equivalent_to(eight_devices, 2)
    np.testing.assert_array_equal(loaded["params"], values)


@pytest.mark.parametrize("shape", [(2, 2), pytest.param((8, 1), marks=pytest.mark.nightly)])
def test_a_state_goes_on_on_another_mesh(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Saved on one device: the restored weights have the same bits, and the next loss is the same up to rounding."""
    groups = training_data.random_groups(8, 2)
    layout = packing.smallest_layout(groups)
    spec = state.UpdateSpec(tiny_models.MODEL, config.OptimizerConfig(learning_rate=0.01), 10, layout)
    rows_config = config.RowsConfig(per_microbatch=2)

    def next_step(mesh: jax.sharding.Mesh, before: state.TrainState) -> tuple[state.TrainState, float]:
        rows = batch.pack_groups(groups, layout, rows_config)
        rows = rows._replace(weight=batch.loss_weights(rows, "token"))
        with jax.set_mesh(mesh):
            one_batch = batch.assemble_batch(rows, mesh, batch.microbatches(len(groups), rows_config, mesh))
            after, sums = state.update(before, one_batch, sft.sft_loss, None, spec)
        return after, state.mean_metrics(sums)["loss"]

    one_device = tiny_models.one_device()
    saved, _ = next_step(one_device, state.create_state(tiny_models.random_params(), spec))
    _save(tmp_path, 1, {"params": saved.params, "optimizer": (saved.step, saved.opt_state)})
    kept = jax.device_get(saved.params)
    _, expected_loss = next_step(one_device, saved)

    mesh = sharding.make_mesh(config.MeshConfig(fsdp=shape[0], tensor=shape[1]), jax.devices()[: shape[0] * shape[1]])
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding),
        context.abstract_params(tiny_models.MODEL, mesh),
    )
    with jax.set_mesh(mesh):
        like = state.create_state(zeros, spec)
    loaded = Checkpoints(tmp_path).load(1, {"params": like.params, "optimizer": (like.step, like.opt_state)})
    _assert_same_bits(loaded["params"], kept)
    step, opt_state = loaded["optimizer"]
    _, loss = next_step(mesh, state.TrainState(step, loaded["params"], opt_state))
    assert loss == pytest.approx(expected_loss, abs=1e-6)


def test_the_latest_the_best_and_pinned_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, pinned=(0, 3))
    for step, accuracy in enumerate([None, 0.1, 0.9, None, 0.2, None, None, 0.3]):
        checkpoints.save(step, _tree(step), accuracy)
    assert checkpoints.steps() == [0, 2, 3, 6, 7]
    assert (checkpoints.latest(), checkpoints.best()) == (7, 2)
    assert [checkpoints.resolve(which) for which in ("best", "last", "3")] == [2, 7, 3]
    np.testing.assert_array_equal(Checkpoints(tmp_path).load(2, _tree(0))["params"]["w"], np.full(4, 2))


def test_of_equally_accurate_checkpoints_the_best_is_the_one_that_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in range(5):
        checkpoints.save(step, _tree(step), 0.5 if step in (1, 2) else 0.1)
    assert checkpoints.best() in checkpoints.steps()
    assert checkpoints.best() == 2


def test_without_an_evaluation_the_latest_checkpoint_is_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, _tree(step))
    assert checkpoints.resolve("best") == 2


def test_the_stored_key_of_the_accuracy_is_score(tmp_path: Path) -> None:
    """A part of the file format: with another key, a resumed run would forget its best checkpoint."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _tree(1), 0.25)
    checkpoints.wait()
    assert json.loads((tmp_path / "1" / "metrics" / "metrics").read_text()) == {"score": 0.25}


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    """As a run does that was killed between a step's checkpoint and the next."""
    _save(tmp_path, 1, _tree(1))
    _save(tmp_path, 1, _tree(7))
    np.testing.assert_array_equal(Checkpoints(tmp_path).load(1, _tree(0))["params"]["w"], np.full(4, 7))


def test_saved_buffers_may_be_donated_at_once(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    for step in range(3):
        tree = {"params": {f"w{i}": jnp.full((512, 1024), step + i, jnp.float32) for i in range(8)}}
        checkpoints.save(step, tree)
        jax.block_until_ready([overwrite(leaf) for leaf in tree["params"].values()])
        loaded = checkpoints.load(step, {"params": {f"w{i}": jnp.zeros((512, 1024)) for i in range(8)}})
        assert [float(leaf.mean()) for leaf in loaded["params"].values()] == [float(step + i) for i in range(8)]


def test_reading_steps_waits_for_the_pending_save(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": {"w": jnp.ones((2048, 2048))}}, accuracy=0.5)
    assert (checkpoints.latest(), checkpoints.best(), checkpoints.steps()) == (1, 1, [1])
    checkpoints.save(2, {"params": {"w": jnp.ones((2048, 2048))}})
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [1, 2]


def test_a_half_written_checkpoint_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _tree(1))
    checkpoints.wait()
    half_written = tmp_path / "2.orbax-checkpoint-tmp"
    half_written.mkdir()
    (half_written / "params").mkdir()
    reopened = Checkpoints(tmp_path)
    assert reopened.steps() == [1]
    reopened.save(2, _tree(2))
    reopened.wait()
    assert Checkpoints(tmp_path).steps() == [1, 2]


def test_errors_name_the_folder_and_its_steps(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    with pytest.raises(CheckpointNotFoundError, match="holds no checkpoint yet; run the stage first"):
        checkpoints.resolve("best")
    checkpoints.save(4, _tree(4))
    with pytest.raises(CheckpointNotFoundError, match=rf"{tmp_path} has no step 5; it has \[4\]"):
        checkpoints.load(5, _tree(0))


def _data_files(folder: Path) -> list[Path]:
    """The files that hold values, largest first."""
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def _like() -> dict[str, Any]:
    return {"params": {"w": jnp.zeros((64, 64))}}


def _save_random(folder: Path) -> None:
    _save(folder, 1, {"params": {"w": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)}})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_the_values_is_never_loaded(tmp_path: Path, share: float) -> None:
    _save_random(tmp_path)
    path = _data_files(tmp_path / "1" / "params")[0]
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=r"/1.*Remove|/1 cannot be read"):
        Checkpoints(tmp_path).load(1, _like())


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_checkpoint_without_all_of_its_bytes_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    _save_random(tmp_path)
    path = _data_files(tmp_path / "1" / "params")[0]
    path.write_bytes(path.read_bytes()[:100]) if damage == "truncated" else path.unlink()
    with pytest.raises(CheckpointDamagedError, match=r"/1 cannot be read .*remove the folder"):
        Checkpoints(tmp_path).load(1, _like())


def test_a_checkpoint_of_an_earlier_version_without_checksums_is_loaded(tmp_path: Path) -> None:
    _save_random(tmp_path)
    shutil.rmtree(tmp_path / "1" / "params_checksums")
    assert Checkpoints(tmp_path).load(1, _like())["params"]["w"].any()
