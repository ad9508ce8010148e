"""Checkpoints by Orbax, one folder a stage: <workdir>/checkpoints/<stage>/<step>. Nothing else here knows Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from sqlr1_jax.errors import Sqlr1Error


class CheckpointNotFoundError(Sqlr1Error):
    """A step that was asked for and is not there; the message lists those there are."""


class Checkpoints:
    """A stage's checkpoints: the last `keep`, the best by `score`, and each step in `always` are kept."""

    def __init__(self, folder: Path, keep: int = 2, always: tuple[int, ...] = ()):
        policies = ocp.training.preservation_policies
        self.folder = folder
        self._writing: Any = None  # what Orbax has not finished
        self._manager = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
                    policies.CustomSteps(list(always)),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, trees: dict[str, Any], score: float | None = None) -> None:
        """Writes named pytrees under `step`, all or none; `score` (higher is better) ranks the step for best().

        Returns once they are copied to the host, so that they may be donated; the disk gets them meanwhile, and `wait`
        or whatever asks for a step waits for it. An error of the disk is raised there.
        """
        self.wait()
        if jax.default_backend() == "cpu":  # there the host's copy would be the array itself
            trees = jax.tree.map(jnp.copy, trees)
        metrics = None if score is None else {"score": score}
        self._writing = self._manager.save_checkpointables_async(
            step, trees, force=True, overwrite=True, metrics=metrics
        )

    def wait(self) -> None:
        """Until all that was saved is on disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Those of the pytrees saved under `step` that `like` names, in its shapes, dtypes and shardings.

        Raises:
          CheckpointNotFoundError: there is no such step; the message lists those there are.
        """
        if step not in self.steps():
            raise CheckpointNotFoundError(f"{self.folder} has no step {step}; it has {self.steps() or 'none'}.")
        return self._manager.load_checkpointables(step, jax.tree.map(_abstract, like))

    def steps(self) -> list[int]:
        return sorted(c.step for c in self._whole())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the highest score, of equals the latest (which is kept); the latest if none is scored."""
        scored = [(_score(c.metrics), c.step) for c in self._whole() if c.metrics]
        return max(scored)[1] if scored else self.latest()

    def resolve(self, which: str) -> int:
        """The step that 'best', 'last' or a number stands for.

        Raises:
          CheckpointNotFoundError: the stage has no checkpoint at all.
        """
        step = self.best() if which == "best" else self.latest() if which == "last" else int(which)
        if step is None:
            raise CheckpointNotFoundError(f"{self.folder} holds no checkpoint yet; run the stage first.")
        return step

    def _whole(self) -> Any:
        self.wait()
        return self._manager.checkpoints

    def close(self) -> None:
        self.wait()
        self._manager.close()


def _score(metrics: Any) -> float:
    return float(metrics["score"]) if metrics and "score" in metrics else float("-inf")


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
