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
from sqlr1_jax.train import run as runs
from sqlr1_jax.train import sft

log = logging.getLogger(__name__)
TRAINED = ("cold_start", "grpo")


class Stages:
    """A context; its methods carry the names that cfg.stages lists. Each does nothing where its work is done."""

    def __init__(self, cfg: config.Config, workdir: Path):
        self.cfg, self.workdir = cfg, workdir

    @functools.cached_property
    def run(self) -> runs.Run:
        """Made when a stage first asks for it: the data stage trains the tokenizer that it needs."""
        return runs.start(self.cfg, self.workdir)

    @functools.cached_property
    def executor(self) -> Executor:
        return Executor(self.cfg.execute).__enter__()

    def data(self) -> None:
        """The embedded data set."""
        hosts.once(generate.generate, self.cfg.data.synth, self.cfg.seed, self.workdir / "data")

    def cold_start(self) -> None:
        """Supervised steps, and how good they left the model."""
        trained = sft.run_stage(self.run)
        if "evaluate" in self.cfg.stages:
            weights = f"cold_start, step {int(trained.step)}"
            evaluation.evaluate(self.run, "cold_start", trained.params, weights, self.executor)
        evaluation.forget(self.run, "final", self._weights())

    def grpo(self) -> None:
        """GRPO's steps; figures of weights that they have left behind are forgotten."""
        grpo.run_stage(self.run, self.executor)
        evaluation.forget(self.run, "final", self._weights())

    def evaluate(self) -> None:
        """The run's last weights."""
        params = runs.parameters(self.run, TRAINED)
        evaluation.evaluate(self.run, "final", params, self._weights(), self.executor)

    def _weights(self) -> str:
        """Which weights are the run's last."""
        stage, step = runs.newest(self.run, TRAINED)
        return f"{stage}, step {step}" if stage else self.cfg.model.path

    def export(self) -> None:
        """The weights that cfg.export.step names, as a Hugging Face folder."""
        export(self.run, self.workdir / "export")

    def summarise(self, stage: str, seconds: float) -> None:
        """Writes summary.json and report.html as far as the run has come."""
        hosts.once(summary.write, self.workdir, self.cfg, stage, seconds)
        hosts.once(report.write, self.workdir)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *exception: Any) -> None:
        if "executor" in self.__dict__:
            self.executor.__exit__(*exception)


def export(run: runs.Run, folder: Path) -> None:
    """Writes the run's weights for Hugging Face; `cfg.export` says which step, dtype and shard size."""
    cfg = run.cfg.export
    stage = next((name for name in reversed(TRAINED) if (run.workdir / "checkpoints" / name).exists()), None)
    if stage is None:
        params, source = runs.initial(run), run.cfg.model.path
    else:
        checkpoints = run.checkpoints(stage)
        step = checkpoints.resolve(cfg.step)
        params, source = checkpoints.load(step, {"params": runs.abstract(run)})["params"], f"{stage}, step {step}"
    if hosts.agreed(exported.matches(folder, run.cfg, source)):
        return
    words = huggingface.resolve(run.cfg.model.path) if run.cfg.model.path else run.data / "tokenizer"
    huggingface.save(folder, params, run.model, words, cfg.dtype, cfg.shard_gigabytes)
    hosts.once(exported.write, folder, run.cfg, source)
    log.info("exported %s to %s", source, folder)
