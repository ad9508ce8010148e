"""Checkpoints of a stage in <workdir>/checkpoints/<stage>/<step>; the only module that knows Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from sqlr1_jax.distributed.checksums import checksums
from sqlr1_jax.errors import Sqlr1Error

_CHECKSUMS = "_checksums"  # after a pytree's name, the name of its checksums; part of the file format
ACCURACY_KEY = "score"  # key of the accuracy in a checkpoint's metadata; part of the file format


class CheckpointNotFoundError(Sqlr1Error):
    """The requested checkpoint does not exist; the message lists those that do."""


class CheckpointDamagedError(Sqlr1Error):
    """A checkpoint cannot be read, or does not hold what was saved; the message names its folder."""


class Checkpoints:
    """The checkpoints of a stage.

    Keeps the last `keep`, the one with the highest accuracy, and the steps in `pinned`; deletes all others.
    """

    def __init__(self, folder: Path, keep: int = 2, pinned: tuple[int, ...] = ()):
        policies = ocp.training.preservation_policies
        self.folder = folder
        self._pending_save: Any = None  # Orbax's handle of a save that may not be on disk yet
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False),
                    policies.CustomSteps(list(pinned)),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, trees: dict[str, Any], accuracy: float | None = None) -> None:
        """Saves named pytrees as the checkpoint of `step`; the checkpoint appears once all of them are on disk.

        Returns once they are copied to the host, so the caller may donate their buffers. The write to disk continues in
        the background; every other method waits for it and raises its errors.

        Args:
          step: completed steps; an existing checkpoint of this step is replaced.
          trees: pytrees of arrays by name.
          accuracy: higher is better; ranks the checkpoint for `best`. None: it was not evaluated.
        """
        self.wait()
        if jax.default_backend() == "cpu":  # here the host copy aliases the device buffer, which the caller may donate
            trees = jax.tree.map(jnp.copy, trees)
        metrics = None if accuracy is None else {ACCURACY_KEY: accuracy}
        trees = trees | {name + _CHECKSUMS: checksums(tree) for name, tree in trees.items()}
        self._pending_save = self._checkpointer.save_checkpointables_async(
            step, trees, force=True, overwrite=True, metrics=metrics
        )

    def wait(self) -> None:
        """Blocks until the last save is on disk."""
        pending, self._pending_save = self._pending_save, None
        if pending is not None:
            pending.result()

    def load(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Loads the pytrees that `like` names, with the shapes, dtypes and shardings of its arrays.

        Raises:
          CheckpointNotFoundError: there is no such step; the message lists the existing ones.
          CheckpointDamagedError: a file is missing or cut short, or a value is not the one that was saved.
        """
        if step not in self.steps():
            raise CheckpointNotFoundError(f"{self.folder} has no step {step}; it has {self.steps() or 'none'}.")
        path = self.folder / str(step)
        checked = [name for name in like if (path / (name + _CHECKSUMS)).exists()]  # older checkpoints have none
        abstract = {name: jax.tree.map(_abstract, tree) for name, tree in like.items()}
        abstract |= {name + _CHECKSUMS: jax.tree.map(_abstract_sums, abstract[name]) for name in checked}
        try:
            loaded = self._checkpointer.load_checkpointables(step, abstract)
        except Exception as error:  # Orbax and TensorStore raise many types for files that are damaged
            reason = str(error).splitlines()[0] if str(error) else ""
            raise CheckpointDamagedError(
                f"{path} cannot be read ({type(error).__name__}: {reason[:300]}). If its files are damaged, remove the "
                "folder; the run then goes on from the checkpoint before it."
            ) from error
        for name in checked:
            _check(path / name, loaded[name], loaded.pop(name + _CHECKSUMS))
        return loaded

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(checkpoint.step for checkpoint in self._completed())

    def latest(self) -> int | None:
        """The last step with a checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the highest accuracy (on a tie, the later one); the latest step if none was evaluated."""
        evaluated = [(_accuracy(c.metrics), c.step) for c in self._completed() if c.metrics]
        return max(evaluated)[1] if evaluated else self.latest()

    def resolve(self, which: str) -> int:
        """The step that 'best', 'last' or a number stands for. A number is not checked; `load` does.

        Raises:
          CheckpointNotFoundError: the stage has no checkpoint at all.
        """
        step = self.best() if which == "best" else self.latest() if which == "last" else int(which)
        if step is None:
            raise CheckpointNotFoundError(f"{self.folder} holds no checkpoint yet; run the stage first.")
        return step

    def close(self) -> None:
        """Waits for the last save and frees Orbax's resources."""
        self.wait()
        self._checkpointer.close()

    def _completed(self) -> Any:
        self.wait()
        return self._checkpointer.checkpoints


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _abstract_sums(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The checksum of an array, on every device that holds a part of the array."""
    spread = isinstance(leaf.sharding, jax.sharding.NamedSharding)
    sharding = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec()) if spread else leaf.sharding
    return jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=sharding)


def _check(path: Path, tree: Any, saved: Any) -> None:
    """Raises CheckpointDamagedError for the first array whose checksum is not the one that was saved with it."""
    found, expected = jax.device_get((checksums(tree), saved))
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (location, sums), expected_sums in pairs:
        if (sums != expected_sums).any():
            raise CheckpointDamagedError(
                f"{path}: the values of {jax.tree_util.keystr(location)} are not those that were saved; the files are "
                "damaged. Remove the step's folder; the run then goes on from the checkpoint before it."
            )


def _accuracy(metrics: Any) -> float:
    return float(metrics[ACCURACY_KEY]) if metrics and ACCURACY_KEY in metrics else float("-inf")
