"""What GRPO prepares before its first step: prompts, sampler, row layout, reference model, compiled programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from sqlr1_jax import config, hosts
from sqlr1_jax.data.packing import Layout
from sqlr1_jax.evaluate import stage as evaluation
from sqlr1_jax.evaluate.stage import HeldOut
from sqlr1_jax.rl import experience
from sqlr1_jax.rl.experience import Problems
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import batch, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.context import CheckpointRef, RunContext, find_checkpoint, load_params
from sqlr1_jax.train.state import Program, TrainState

STAGE = "grpo"


@dataclasses.dataclass(frozen=True)
class GrpoSetup:
    """What stays the same from step to step."""

    context: RunContext
    executor: Executor
    prompt_set: Problems
    engine: Engine
    update_spec: Program
    reference_params: Any  # the model that the KL term pulls toward; None without a KL term
    rows_config: config.Rows
    max_microbatches: int  # of one update


def prepare(context: RunContext, executor: Executor, heldout: HeldOut) -> tuple[GrpoSetup, TrainState]:
    """The stage's setup, and its state at step 0: the SFT stage's last weights, or the run's initial ones."""
    grpo_config = context.cfg.grpo
    prompt_set = experience.load_problems(context)
    engine = context.engine([*prompt_set.prompts, *heldout.prompts])
    update_spec = Program(
        context.model,
        grpo_config.optimizer,
        grpo_config.steps,
        row_layout(grpo_config, engine),
        grpo_config.sampling.temperature,
        grpo_config.rows.buckets,
    )
    sft_checkpoint = find_checkpoint(context, stages=("cold_start",))
    initial_state = state.create(load_params(context, sft_checkpoint), update_spec)
    longest_group = engine.prompt_tokens + grpo_config.samples * grpo_config.sampling.max_tokens
    setup = GrpoSetup(
        context,
        executor,
        prompt_set,
        engine,
        update_spec,
        load_reference(context, initial_state),
        batch.with_length(grpo_config.rows, longest_group),
        batch.microbatches(grpo_config.prompts, grpo_config.rows, hosts.count()),
    )
    return setup, initial_state


def row_layout(grpo_config: config.Grpo, engine: Engine) -> Layout | None:
    """The layout of shared-prefix rows, with room for any prompt and completion; None if rows are packed.

    One layout serves the whole stage, so that the update compiles once.
    """
    rows_config = grpo_config.rows
    if rows_config.layout == "packed":
        return None
    return Layout(
        rows_config.prefix or engine.prompt_tokens,
        grpo_config.samples,
        rows_config.segment or grpo_config.sampling.max_tokens,
    )


def load_reference(context: RunContext, initial_state: TrainState) -> Any:
    """The weights at the stage's step 0: loaded from its checkpoint on resume, else copied from the initial state.

    A copy, because each update donates the buffers of the state's own weights.
    """
    if not context.cfg.grpo.kl:
        return None
    if hosts.agreed(0 in context.checkpoints(STAGE).steps()):
        return load_params(context, CheckpointRef(STAGE, 0))
    return jax.tree.map(lambda leaf: leaf.copy(), initial_state.params)


def compile_programs(setup: GrpoSetup, train_state: TrainState) -> TrainState:
    """Compiles every program of the stage, so that no later step stops to compile; returns an equal state."""
    context, grpo_config = setup.context, setup.context.cfg.grpo
    weights, local = setup.engine.weights(train_state.params), hosts.share(grpo_config.prompts)
    any_prompts = setup.prompt_set.prompts[:1] * (local.stop - local.start)
    setup.engine.compile(weights, context.request(any_prompts, grpo_config.samples, grpo_config.sampling, 0))
    if context.cfg.evaluate.every:
        setup.engine.compile(weights, evaluation.request(context, any_prompts, 1, 0.0))
    del weights  # the update needs their memory
    no_rows = batch.to_rows([], setup.update_spec.layout, setup.rows_config)
    no_advantages_PG = np.zeros((1, grpo_config.samples), np.float32)
    empty_batch = batch.assemble(
        no_rows, context.mesh, grpo_config.rows.per_microbatch, setup.max_microbatches, no_advantages_PG
    )
    empty_batch = add_logprobs(setup, train_state.params, empty_batch)
    return state.warm(train_state, empty_batch, grpo_loss, grpo_config, setup.update_spec)


def add_logprobs(setup: GrpoSetup, params: Any, update_batch: Batch) -> Batch:
    """The batch with the reference's log-probabilities and, with old_logprobs=trainer, those of `params`."""
    if setup.reference_params is not None:
        reference_MBT = state.score(setup.reference_params, update_batch, setup.update_spec)
        update_batch = dataclasses.replace(update_batch, reference_MBT=reference_MBT)
    if setup.context.cfg.grpo.old_logprobs == "trainer":
        old_MBT = state.score(params, update_batch, setup.update_spec)
        update_batch = dataclasses.replace(update_batch, old_MBT=old_MBT)
    return update_batch
