"""GRPO for text-to-SQL: sample groups of completions, execute their SQL, reinforce those that beat their group.

`train_step` is the whole algorithm. Its formulas, constants and departures from the paper are in docs/method.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sqlr1_jax.data.packing import PackedRows
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.evaluate import run as evaluation
from sqlr1_jax.evaluate.heldout import load_heldout_sets
from sqlr1_jax.model import flops
from sqlr1_jax.rl import reward, rollout_log, scoring
from sqlr1_jax.rl.advantage import compute_advantages
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rl.scoring import Rewards, StepTimer
from sqlr1_jax.rl.setup import STAGE, GrpoSetup, add_logprobs, compile_programs, prepare
from sqlr1_jax.rollout.request import Completions, FinishedSample
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import batch, loop
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.loop import StepResult
from sqlr1_jax.train.state import TrainState, update


def train(context: RunContext, executor: Executor) -> TrainState:
    """Trains to the stage's last step, from its last checkpoint if there is one; returns the final state."""
    heldout = load_heldout_sets(context)[0]
    with jax.set_mesh(context.mesh):
        setup, initial_state = prepare(context, executor, heldout)
        return loop.run_steps(
            context,
            STAGE,
            context.config.grpo.steps,
            initial_state,
            step_fn=functools.partial(train_step, setup),
            evaluate_fn=lambda state: evaluation.greedy_accuracy(
                context, setup.engine, executor, context.full_params(state.params), heldout
            ),
            on_resume=lambda step: rollout_log.truncate(context.workdir, step),
            compile_fn=functools.partial(compile_programs, setup),
        )


def train_step(setup: GrpoSetup, state: TrainState, step: int) -> StepResult:
    """One step of GRPO: sample, execute, reward, advantage, pack, update.

    Each process samples, executes and packs its own share of the prompts; rewards are exchanged between processes.
    """
    context, grpo_config, timer = setup.context, setup.context.config.grpo, StepTimer()
    examples, prompts, batch_ids = setup.prompt_set.batch(grpo_config.prompts, context.config.seed, step)

    # Sample. The engine hands over each completion as it ends, so its SQL executes while others are still sampled.
    openings = [prompt.opening for prompt in prompts]
    execution = scoring.CompletionExecutor(context, setup.executor, examples, grpo_config.samples, openings)
    params = context.full_params(state.params)
    completions = sample(setup, params, prompts, step, on_finished=execution.submit)
    timer.lap("rollout")

    # Pack rows while the last queries execute; then wait for the outcomes and compute the rewards.
    with collectives.sync_errors():
        rows = batch.pack_groups(
            scoring.completion_groups(prompts, completions), setup.update_spec.layout, setup.rows_config
        )
        timer.lap("pack")
        outcomes = execution.wait()
        rewards = scoring.compute_rewards(context, examples, completions, execution.answers, outcomes)
    global_rewards = collectives.allgather_arrays(rewards)
    setup.learning_check.watch(global_rewards, execution.texts)
    timer.lap("reward_wait")

    # Advantages are relative to the group. Groups that teach nothing are dropped before the update.
    adv_PG, keep_P = local_advantages(setup, global_rewards, step)
    kept_rows = drop_filtered(rows, keep_P)
    update_batch = make_batch(setup, params, kept_rows, adv_PG)
    state, sums = update(state, update_batch, grpo_loss, grpo_config, setup.update_spec, context.frozen_params)
    timer.lap("update")

    rollout_log.write(context.workdir, step + 1, examples, execution, outcomes, rewards, adv_PG, grpo_config.reward)
    metrics = scoring.step_metrics(
        global_rewards, reward.part_names(grpo_config.reward), timer, execution, setup.executor
    )
    metrics["flops"] = step_flops(setup, rows, kept_rows)
    return StepResult(state, sums, metrics, batch_ids)


def sample(
    setup: GrpoSetup,
    params: Any,
    prompts: Sequence[Prompt],
    step: int,
    on_finished: Callable[[Sequence[FinishedSample]], None],
) -> Completions:
    """G completions of each of this process's prompts under `params`."""
    grpo_config = setup.context.config.grpo
    request = dataclasses.replace(
        setup.context.request(prompts, grpo_config.samples, grpo_config.sampling, step),
        prefix_length_P=None,  # prompts of a step are on different databases; and no program may compile in training
        index_P=range(grpo_config.prompts)[collectives.local_slice(grpo_config.prompts)],
        on_finished=on_finished,
    )
    weights = setup.engine.prepare_weights(params)  # freed on return: the update needs their memory
    return setup.engine.rollout(weights, request)


def local_advantages(setup: GrpoSetup, global_rewards: Rewards, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Advantages [P, G] of this process's completions, and which of its groups are kept, bool [P].

    Computed from the rewards of all processes, since some normalizations span the whole batch.
    """
    grpo_config = setup.context.config.grpo
    key = jax.random.fold_in(jax.random.key(setup.context.config.seed), step)
    rewards_PGR, correct_PG, gold_ran_P, *_ = global_rewards
    weights_R = reward.part_weights(grpo_config.reward)
    adv_PG, keep_P = jax.device_get(
        compute_advantages(rewards_PGR, correct_PG, gold_ran_P, weights_R, key, grpo_config.advantage)
    )
    local = collectives.local_slice(grpo_config.prompts)
    return adv_PG[local], keep_P[local]


def drop_filtered(rows: PackedRows, keep_P: np.ndarray) -> PackedRows:
    """Sets the loss weights of dropped groups to 0, and removes rows in which every group was dropped."""
    weight = rows.weight * keep_P[rows.prompt]
    has_loss = weight.any(axis=1)
    return PackedRows(*(field[has_loss] for field in rows._replace(weight=weight)))


def make_batch(setup: GrpoSetup, params: Any, rows: PackedRows, adv_PG: np.ndarray) -> Batch:
    """Microbatches on the mesh, with advantages, loss weights and the log-probabilities that the loss compares."""
    grpo_config = setup.context.config.grpo
    rows = rows._replace(weight=batch.loss_weights(rows, grpo_config.aggregation, grpo_config.sampling.max_tokens))
    update_batch = batch.assemble_batch(
        rows, setup.context.mesh, grpo_config.rows.per_microbatch, setup.max_microbatches, adv_PG
    )
    return add_logprobs(setup, params, update_batch)


def step_flops(setup: GrpoSetup, sampled_rows: PackedRows, trained_rows: PackedRows) -> float:
    """Useful floating-point operations of a step on all processes: one forward pass per sampled token, and the update.

    An update is three forward passes, or two if the weights are frozen; the reference's and the old policy's
    log-probabilities are one each.
    """
    model = setup.context.model
    passes = (
        flops.update_passes(model)
        + (setup.reference_params is not None)
        + (setup.context.config.grpo.old_logprobs == "trainer")
    )
    sampling_flops = batch.forward_flops(sampled_rows, model)
    return collectives.global_sum(sampling_flops + passes * batch.forward_flops(trained_rows, model))
