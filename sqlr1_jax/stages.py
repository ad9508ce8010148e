"""The stages by name, and what they share: one run, one pool of SQL workers, one summary."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from sqlr1_jax import config, exported, hosts
from sqlr1_jax.data.synth import generate
from sqlr1_jax.evaluate import stage as evaluation
from sqlr1_jax.evaluate import summary
from sqlr1_jax.model import huggingface
from sqlr1_jax.page import report
from sqlr1_jax.rl import grpo
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import sft
from sqlr1_jax.train.context import (
    CheckpointRef,
    RunContext,
    create_context,
    describe_weights,
    find_checkpoint,
    load_params,
)

log = logging.getLogger(__name__)


class Stages:
    """A context; its methods carry the names that cfg.stages lists. Each does nothing where its work is done."""

    def __init__(self, cfg: config.Config, workdir: Path):
        self.cfg, self.workdir = cfg, workdir

    @functools.cached_property
    def context(self) -> RunContext:
        """Made when a stage first asks for it: the data stage trains the tokenizer that it needs."""
        return create_context(self.cfg, self.workdir)

    @functools.cached_property
    def executor(self) -> Executor:
        return Executor(self.cfg.execute).__enter__()

    def data(self) -> None:
        """The embedded data set."""
        hosts.once(generate.generate, self.cfg.data.synth, self.cfg.seed, self.workdir / "data")

    def cold_start(self) -> None:
        """Supervised steps, and how good they left the model."""
        trained = sft.run_stage(self.context)
        if "evaluate" in self.cfg.stages:
            weights = str(CheckpointRef("cold_start", int(trained.step)))
            evaluation.evaluate(self.context, "cold_start", trained.params, weights, self.executor)
        self._forget_final()

    def grpo(self) -> None:
        """GRPO's steps; figures of weights that they have left behind are forgotten."""
        grpo.run_stage(self.context, self.executor)
        self._forget_final()

    def evaluate(self) -> None:
        """The run's last weights."""
        checkpoint = find_checkpoint(self.context)
        params, weights = load_params(self.context, checkpoint), describe_weights(self.context, checkpoint)
        evaluation.evaluate(self.context, "final", params, weights, self.executor)

    def _forget_final(self) -> None:
        """Removes the final figures where they are not of the run's last weights."""
        weights = describe_weights(self.context, find_checkpoint(self.context))
        evaluation.forget(self.context, "final", weights)

    def export(self) -> None:
        """The weights that cfg.export.step names, as a Hugging Face folder."""
        export(self.context, self.workdir / "export")

    def summarise(self, stage: str, seconds: float) -> None:
        """Writes summary.json and report.html as far as the run has come."""
        hosts.once(summary.write, self.workdir, self.cfg, stage, seconds)
        hosts.once(report.write, self.workdir)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *exception: Any) -> None:
        if "executor" in self.__dict__:
            self.executor.__exit__(*exception)


def export(context: RunContext, folder: Path) -> None:
    """Writes the run's weights for Hugging Face; `cfg.export` says which step, dtype and shard size.

    Raises:
      NoCheckpoint: the last stage with checkpoints has no such step.
    """
    cfg = context.cfg.export
    checkpoint = find_checkpoint(context, cfg.step)
    weights = describe_weights(context, checkpoint)
    if hosts.agreed(exported.matches(folder, context.cfg, weights)):
        return
    params = load_params(context, checkpoint)
    huggingface.save(folder, params, context.model, context.tokenizer_dir, cfg.dtype, cfg.shard_gigabytes)
    hosts.once(exported.write, folder, context.cfg, weights)
    log.info("exported %s to %s", weights, folder)
