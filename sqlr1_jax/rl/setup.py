"""What GRPO prepares before its first step: prompts, sampler, row layout, reference model, compiled programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from sqlr1_jax import config
from sqlr1_jax.data.packing import RowLayout
from sqlr1_jax.distributed import collectives
from sqlr1_jax.evaluate import run as evaluation
from sqlr1_jax.evaluate.heldout import HeldoutSet
from sqlr1_jax.model import lora
from sqlr1_jax.rl import difficulty
from sqlr1_jax.rl.learning_check import LearningCheck
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rl.prompt_set import PromptSet, load_prompts
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import batch, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.context import CheckpointRef, RunContext, find_checkpoint, load_params
from sqlr1_jax.train.state import TrainState, UpdateSpec

STAGE = "grpo"


@dataclasses.dataclass(frozen=True)
class GrpoSetup:
    """What stays the same from step to step."""

    context: RunContext
    executor: Executor
    prompt_set: PromptSet
    engine: Engine  # for the training prompts
    evaluation_engine: Engine | None  # the same with room for the longest held-out prompt; None: no evaluation
    update_spec: UpdateSpec
    reference_params: Any  # the model that the KL term pulls toward; None without a KL term
    rows_config: config.RowsConfig
    microbatches: batch.Microbatches
    learning_check: LearningCheck


def prepare(context: RunContext, executor: Executor, heldout: HeldoutSet | None) -> tuple[GrpoSetup, TrainState]:
    """The stage's setup, and its state at step 0: the SFT stage's last weights, or the run's initial ones.

    `heldout` is what the stage evaluates on; None: it does not.
    """
    grpo_config = context.config.grpo
    prompt_set = load_prompts(context)
    params = load_params(context, find_checkpoint(context, stages=("sft",)))
    prompt_set = difficulty.select_prompts(context, executor, params, prompt_set)
    engine = context.engine(prompt_set.prompts, prompt_set.max_tokens)
    update_spec = UpdateSpec(
        context.model,
        grpo_config.optimizer,
        grpo_config.steps,
        row_layout(grpo_config, engine),
        grpo_config.sampling.temperature,
        batch.row_buckets(grpo_config.rows),
    )
    initial_state = state.create_state(lora.split(params)[0], update_spec)
    longest_group = engine.prompt_tokens + grpo_config.samples * grpo_config.sampling.max_tokens
    setup = GrpoSetup(
        context,
        executor,
        prompt_set,
        engine,
        context.engine([*prompt_set.prompts, *heldout.prompts], prompt_set.max_tokens) if heldout else None,
        update_spec,
        load_reference(context, initial_state),
        batch.with_row_length(grpo_config.rows, longest_group),
        batch.microbatches(grpo_config.prompts, grpo_config.rows, context.mesh),
        LearningCheck(grpo_config.idle_steps),
    )
    return setup, initial_state


def row_layout(grpo_config: config.GrpoConfig, engine: Engine) -> RowLayout | None:
    """The layout of shared-prefix rows, which fits every prompt and completion; None if rows are packed.

    One layout serves the whole stage, so that the update compiles once.
    """
    rows_config = grpo_config.rows
    if rows_config.layout == "packed":
        return None
    return RowLayout(
        rows_config.prefix or engine.prompt_tokens,
        grpo_config.samples,
        rows_config.segment or grpo_config.sampling.max_tokens,
    )


def load_reference(context: RunContext, initial_state: TrainState) -> Any:
    """The weights at the stage's step 0: loaded from its checkpoint on resume, else copied from the initial state.

    They are copied because each update donates the buffers of the state's own weights. Frozen weights are not copied.
    """
    if not context.config.grpo.kl:
        return None
    if collectives.broadcast(0 in context.checkpoints(STAGE).steps()):
        return load_params(context, CheckpointRef(STAGE, 0))
    return context.full_params(jax.tree.map(lambda leaf: leaf.copy(), initial_state.params))


def compile_programs(setup: GrpoSetup, train_state: TrainState) -> TrainState:
    """Compiles every program of the stage, so that no later step stops to compile; returns an equal state."""
    context, grpo_config = setup.context, setup.context.config.grpo
    params = context.full_params(train_state.params)
    weights = setup.engine.prepare_weights(params)
    _, any_prompts, _ = setup.prompt_set.batch(grpo_config.prompts, context.config.seed, 0)
    setup.engine.compile(weights, context.request(any_prompts, grpo_config.samples, grpo_config.sampling, 0))
    if setup.evaluation_engine:
        setup.evaluation_engine.compile(weights, evaluation.evaluation_request(context, any_prompts, (0.0,)))
    del weights  # the update needs their memory
    no_rows = batch.pack_groups([], setup.update_spec.layout, setup.rows_config)
    empty_batch = batch.assemble_batch(no_rows, context.mesh, setup.microbatches)
    empty_batch = add_logprobs(setup, params, empty_batch)
    frozen = context.frozen_params
    return state.compile_update(train_state, empty_batch, grpo_loss, grpo_config, setup.update_spec, frozen)


def add_logprobs(setup: GrpoSetup, params: Any, update_batch: Batch) -> Batch:
    """The batch with the reference's log-probabilities and, with old_logprobs=trainer, those of `params`."""
    if setup.reference_params is not None:
        reference_MBT = state.compute_logprobs(setup.reference_params, update_batch, setup.update_spec)
        update_batch = dataclasses.replace(update_batch, reference_MBT=reference_MBT)
    if setup.context.config.grpo.old_logprobs == "trainer":
        old_MBT = state.compute_logprobs(params, update_batch, setup.update_spec)
        update_batch = dataclasses.replace(update_batch, old_MBT=old_MBT)
    return update_batch
