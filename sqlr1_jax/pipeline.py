"""The stages of a run, one method each, with what they share: the run's context and the SQL workers."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax

from sqlr1_jax import malloc, prompt_metadata
from sqlr1_jax.config import Config
from sqlr1_jax.distributed import collectives
from sqlr1_jax.evaluate import run as evaluation
from sqlr1_jax.evaluate import summary
from sqlr1_jax.model import huggingface, lora, peft_folder
from sqlr1_jax.report import page
from sqlr1_jax.rl import grpo
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.synth import generate
from sqlr1_jax.train import sft
from sqlr1_jax.train.context import (
    CheckpointRef,
    RunContext,
    create_context,
    describe_weights,
    find_checkpoint,
    init_params,
    load_params,
    load_trained,
    trains,
)

log = logging.getLogger(__name__)


class Pipeline:
    """A run's stages; each method is named as in config.stages and does nothing if its work is already done.

    A context manager: leaving it ends the SQL workers.
    """

    def __init__(self, config: Config, workdir: Path):
        self.config, self.workdir = config, workdir

    @functools.cached_property
    def context(self) -> RunContext:
        """Created at first use, because it loads the tokenizer that the data stage trains."""
        return create_context(_for_this_platform(self.config, self.workdir), self.workdir)

    @functools.cached_property
    def executor(self) -> Executor:
        """The SQL workers, started at first use."""
        return Executor(self.config.execute).__enter__()

    def data(self) -> None:
        """Generates the embedded data set."""
        collectives.run_on_primary(
            generate.generate, self.config.data.synth, self.config.seed, self.workdir / "data", log.info
        )

    def sft(self) -> None:
        """The cold start: supervised fine-tuning, then an evaluation of its weights if config.stages has one."""
        state = sft.train(self.context)
        if "evaluate" in self.config.stages:
            weights = str(CheckpointRef("sft", int(state.step)))
            params = self.context.full_params(state.params)
            evaluation.evaluate(self.context, "sft", params, weights, self.executor)
        self._remove_stale_evaluation()

    def grpo(self) -> None:
        """GRPO training."""
        grpo.train(self.context, self.executor)
        self._remove_stale_evaluation()

    def evaluate(self) -> None:
        """Evaluates the run's last weights."""
        checkpoint = find_checkpoint(self.context)
        params, weights = load_params(self.context, checkpoint), describe_weights(self.context, checkpoint)
        evaluation.evaluate(self.context, "final", params, weights, self.executor)

    def export(self) -> None:
        """Exports the weights that config.export.step names to <workdir>/export."""
        export_model(self.context, self.workdir / "export")

    def summarize(self, stage: str, seconds: float) -> None:
        """Writes summary.json and report.html after a stage that took `seconds`, and returns the memory it freed."""
        collectives.run_on_primary(summary.write, self.workdir, stage, seconds)
        collectives.run_on_primary(page.write, self.workdir)
        malloc.trim_heap()  # the next stage's programs need blocks of other sizes

    def _remove_stale_evaluation(self) -> None:
        """Removes the final figures unless they are those of the run's last weights."""
        weights = describe_weights(self.context, find_checkpoint(self.context))
        evaluation.discard_stale_figures(self.context, "final", weights)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: Any) -> None:
        if "executor" in self.__dict__:
            self.executor.__exit__(*exception)


def _for_this_platform(config: Config, workdir: Path) -> Config:
    """The config with float32 if a model is only evaluated, on CPU, where bfloat16 is slower and no more exact."""
    if trains(config, workdir) or config.model.dtype == "float32" or jax.default_backend() != "cpu":
        return config
    log.info("on CPU, the model is evaluated in float32 instead of %s", config.model.dtype)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))


def export_model(context: RunContext, folder: Path) -> None:
    """Writes the weights that config.export.step names, unless the folder already holds them.

    They are a Hugging Face model, or with export.form=adapter a PEFT folder of the LoRA adapters alone.

    Raises:
      CheckpointNotFoundError: the last stage with checkpoints has no such step.
    """
    export_config = context.config.export
    checkpoint = find_checkpoint(context, export_config.step)
    weights = describe_weights(context, checkpoint)
    if collectives.broadcast(prompt_metadata.matches(folder, context.config, weights)):
        return
    if export_config.form == "adapter":
        trained = load_trained(context, checkpoint) if checkpoint else init_params(context)
        dtype = export_config.dtype or "float32"
        peft_folder.save(folder, trained[lora.KEY], context.model, context.config.model.path, dtype)
    else:
        params = load_params(context, checkpoint)
        huggingface.save_model(
            folder, params, context.model, context.tokenizer_dir, export_config.dtype, export_config.shard_gigabytes
        )
    collectives.run_on_primary(prompt_metadata.write, folder, context.config, weights)
    log.info("exported %s to %s", weights, folder)
