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
    RunContext,
    abstract_params,
    create_context,
    init_params,
    latest_checkpoint,
    load_params,
)

log = logging.getLogger(__name__)
TRAINED = ("cold_start", "grpo")


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
            weights = f"cold_start, step {int(trained.step)}"
            evaluation.evaluate(self.context, "cold_start", trained.params, weights, self.executor)
        evaluation.forget(self.context, "final", self._weights())

    def grpo(self) -> None:
        """GRPO's steps; figures of weights that they have left behind are forgotten."""
        grpo.run_stage(self.context, self.executor)
        evaluation.forget(self.context, "final", self._weights())

    def evaluate(self) -> None:
        """The run's last weights."""
        params = load_params(self.context, TRAINED)
        evaluation.evaluate(self.context, "final", params, self._weights(), self.executor)

    def _weights(self) -> str:
        """Which weights are the run's last."""
        stage, step = latest_checkpoint(self.context, TRAINED)
        return f"{stage}, step {step}" if stage else self.cfg.model.path

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
    """Writes the run's weights for Hugging Face; `cfg.export` says which step, dtype and shard size."""
    cfg = context.cfg.export
    stage = next((name for name in reversed(TRAINED) if (context.workdir / "checkpoints" / name).exists()), None)
    if stage is None:
        params, source = init_params(context), context.cfg.model.path
    else:
        checkpoints = context.checkpoints(stage)
        step = checkpoints.resolve(cfg.step)
        params, source = checkpoints.load(step, {"params": abstract_params(context)})["params"], f"{stage}, step {step}"
    if hosts.agreed(exported.matches(folder, context.cfg, source)):
        return
    words = huggingface.resolve(context.cfg.model.path) if context.cfg.model.path else context.data_dir / "tokenizer"
    huggingface.save(folder, params, context.model, words, cfg.dtype, cfg.shard_gigabytes)
    hosts.once(exported.write, folder, context.cfg, source)
    log.info("exported %s to %s", source, folder)
