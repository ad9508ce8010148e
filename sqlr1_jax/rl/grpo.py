"""GRPO for text-to-SQL: sample groups of completions, execute their SQL, reinforce those that beat their group.

`train_step` is the whole algorithm. Its formulas, constants and departures from the paper are in docs/method.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from sqlr1_jax.data.packing import PackedRows
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.evaluate import run as evaluation
from sqlr1_jax.evaluate.heldout import HeldoutSet, load_heldout_sets
from sqlr1_jax.model import flops
from sqlr1_jax.rl import reward, rollout_log, scoring
from sqlr1_jax.rl.advantage import compute_advantages, fill_batch, kept_groups
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rl.scoring import Rewards, Round, StepTimer
from sqlr1_jax.rl.setup import STAGE, GrpoSetup, add_logprobs, compile_programs, prepare
from sqlr1_jax.rollout.request import Completions, FinishedSample
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import batch, loop
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.loop import StepResult
from sqlr1_jax.train.state import TrainState, update

Arrays = TypeVar("Arrays", Rewards, PackedRows)


def train(context: RunContext, executor: Executor) -> TrainState:
    """Trains to the stage's last step, from its last checkpoint if there is one; returns the final state."""
    heldout = load_heldout_sets(context)[0] if context.config.evaluate.every else None
    with jax.set_mesh(context.mesh):
        setup, initial_state = prepare(context, executor, heldout)
        return loop.run_steps(
            context,
            STAGE,
            context.config.grpo.steps,
            initial_state,
            step_fn=functools.partial(train_step, setup),
            evaluate_fn=functools.partial(heldout_accuracy, setup, heldout) if heldout else None,
            on_resume=lambda step: rollout_log.truncate(context.workdir, step),
            compile_fn=functools.partial(compile_programs, setup),
        )


def heldout_accuracy(setup: GrpoSetup, heldout: HeldoutSet, state: TrainState) -> float:
    """Greedy accuracy of the state's weights on a subset of the held-out questions."""
    assert setup.evaluation_engine is not None
    params = setup.context.full_params(state.params)
    return evaluation.greedy_accuracy(setup.context, setup.evaluation_engine, setup.executor, params, heldout)


def train_step(setup: GrpoSetup, state: TrainState, step: int) -> StepResult:
    """One step of GRPO: sample, execute, reward, advantage, pack, update.

    Each process samples, executes and packs its own share of the prompts; rewards are exchanged between processes.
    """
    context, grpo_config, timer = setup.context, setup.context.config.grpo, StepTimer()

    # Sample and execute: one round of P prompts, or with grpo.refill more, until P groups teach something.
    params = context.full_params(state.params)
    rounds = sample_rounds(setup, params, step, timer)
    rows = concatenate(round_.rows for round_ in rounds)
    global_rewards = concatenate(round_.global_rewards for round_ in rounds)
    setup.learning_check.watch(global_rewards, [group for round_ in rounds for group in round_.execution.texts])

    # Advantages are relative to the group. Groups that teach nothing are dropped before the update.
    adv_NG, keep_N = batch_advantages(setup, global_rewards, step)
    kept_rows = drop_filtered(rows, keep_N)
    if grpo_config.refill:
        kept_rows = balance(kept_rows)
    update_batch = make_batch(setup, params, kept_rows, adv_NG)
    state, sums = update(state, update_batch, grpo_loss, grpo_config, setup.update_spec, context.frozen_params)
    timer.lap("update")

    rollout_log.write(context.workdir, step + 1, rounds, adv_NG, grpo_config.reward)
    execute_seconds = sum(round_.execution.seconds for round_ in rounds)
    part_names = reward.part_names(grpo_config.reward)
    metrics = scoring.step_metrics(global_rewards, part_names, timer, execute_seconds, setup.executor)
    metrics |= {"groups/rounds": float(len(rounds)), "groups/trained": float(keep_N.sum())}
    metrics["flops"] = step_flops(setup, rows, kept_rows)
    return StepResult(state, sums, metrics, [name for round_ in rounds for name in round_.ids])


def sample_rounds(setup: GrpoSetup, params: Any, step: int, timer: StepTimer) -> list[Round]:
    """Samples and executes rounds of P prompts until P groups are kept, at most 1 + grpo.refill rounds.

    Which prompts a round has, and its random numbers, depend on seed, step and round alone. All processes see the
    same rewards, so all of them sample equally many rounds.
    """
    grpo_config = setup.context.config.grpo
    rounds: list[Round] = []
    kept = 0
    while len(rounds) <= grpo_config.refill and kept < grpo_config.prompts:
        rounds.append(sample_round(setup, params, step, len(rounds), timer))
        rewards_PGR, correct_PG, gold_ran_P, *_ = rounds[-1].global_rewards
        kept += int(kept_groups(rewards_PGR, correct_PG, gold_ran_P, grpo_config.advantage.keep).sum())
    return rounds


def sample_round(setup: GrpoSetup, params: Any, step: int, number: int, timer: StepTimer) -> Round:
    """Samples G completions of each prompt of round `number` (from 0) of a step, and executes and rewards them."""
    context, grpo_config = setup.context, setup.context.config.grpo
    P, rounds_per_step = grpo_config.prompts, 1 + grpo_config.refill
    # Every step has P positions of the data order for each round that it may need, so that the position of a step does
    # not depend on the rounds that earlier steps needed, and a resumed run does not have to know them.
    position, next_step = step * rounds_per_step + number, (step + 1) * rounds_per_step
    examples, prompts, ids = setup.prompt_set.batch(P, context.config.seed, position)
    for later in {min(position + 1, next_step), next_step}:
        setup.prompt_set.render_ahead(P, context.config.seed, later)

    # Sample. The engine hands over each completion as it ends, so its SQL executes while others are still sampled.
    indices = range(number * P, (number + 1) * P)[collectives.local_slice(P)]
    openings = [prompt.opening for prompt in prompts]
    execution = scoring.CompletionExecutor(context, setup.executor, examples, grpo_config.samples, openings)
    completions = sample(setup, params, prompts, step, indices, on_finished=execution.submit)
    timer.lap("rollout")

    # Pack rows while the last queries execute; then wait for the outcomes and compute the rewards.
    with collectives.sync_errors():
        groups = scoring.completion_groups(prompts, completions, indices.start)
        rows = batch.pack_groups(groups, setup.update_spec.layout, setup.rows_config)
        timer.lap("pack")
        outcomes = execution.wait()
        rewards = scoring.compute_rewards(context, examples, completions, execution.answers, outcomes)
    global_rewards = collectives.allgather_arrays(rewards)
    timer.lap("reward_wait")
    return Round(ids, examples, execution, outcomes, rewards, global_rewards, rows)


def sample(
    setup: GrpoSetup,
    params: Any,
    prompts: Sequence[Prompt],
    step: int,
    indices: Sequence[int],
    on_finished: Callable[[Sequence[FinishedSample]], None],
) -> Completions:
    """G completions of each of this process's prompts under `params`; `indices` number the prompts within the step."""
    grpo_config = setup.context.config.grpo
    request = dataclasses.replace(
        setup.context.request(prompts, grpo_config.samples, grpo_config.sampling, step),
        prefix_length_P=None,  # prompts of a step are on different databases; and no program may compile in training
        index_P=indices,
        on_finished=on_finished,
    )
    weights = setup.engine.prepare_weights(params)  # freed on return: the update needs their memory
    return setup.engine.rollout(weights, request)


def batch_advantages(setup: GrpoSetup, global_rewards: Rewards, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Advantages [N, G] of the step's N groups on all processes, and which of them are trained on, bool [N].

    Computed from the P groups of the batch, since some normalizations span it; all other groups have advantages of 0.
    """
    grpo_config = setup.context.config.grpo
    key = jax.random.fold_in(jax.random.key(setup.context.config.seed), step)
    rewards_NGR, correct_NG, gold_ran_N, *_ = global_rewards
    weights_R = reward.part_weights(grpo_config.reward)
    kept_N = kept_groups(rewards_NGR, correct_NG, gold_ran_N, grpo_config.advantage.keep)
    in_batch = fill_batch(kept_N, grpo_config.prompts)
    adv_NG, trained_N = np.zeros(correct_NG.shape, np.float32), np.zeros(len(kept_N), bool)
    adv_NG[in_batch], trained_N[in_batch] = jax.device_get(
        compute_advantages(
            rewards_NGR[in_batch], correct_NG[in_batch], gold_ran_N[in_batch], weights_R, key, grpo_config.advantage
        )
    )
    return adv_NG, trained_N


def drop_filtered(rows: PackedRows, keep_N: np.ndarray) -> PackedRows:
    """Sets the loss weights of dropped groups to 0, and removes rows in which every group was dropped."""
    weight = rows.weight * keep_N[rows.prompt]
    has_loss = weight.any(axis=1)
    return PackedRows(*(field[has_loss] for field in rows._replace(weight=weight)))


def balance(rows: PackedRows) -> PackedRows:
    """This process's share of the rows of all processes. Collective.

    Further rounds may give one process more kept groups than its part of P, for which the update was compiled.
    """
    global_rows = concatenate(collectives.allgather_objects(rows))
    local = collectives.local_slice(len(global_rows.tokens))
    return PackedRows(*(field[local] for field in global_rows))


def concatenate(parts: Iterable[Arrays]) -> Arrays:
    """One tuple of arrays from several, each array concatenated along its first axis."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def make_batch(setup: GrpoSetup, params: Any, rows: PackedRows, adv_NG: np.ndarray) -> Batch:
    """Microbatches on the mesh, with advantages, loss weights and the log-probabilities that the loss compares."""
    grpo_config = setup.context.config.grpo
    rows = rows._replace(weight=batch.loss_weights(rows, grpo_config.aggregation, grpo_config.sampling.max_tokens))
    update_batch = batch.assemble_batch(rows, setup.context.mesh, setup.microbatches, adv_NG)
    return add_logprobs(setup, params, update_batch)


def step_flops(setup: GrpoSetup, sampled_rows: PackedRows, trained_rows: PackedRows) -> float:
    """Useful floating-point operations of a step on all processes: one forward pass per sampled token, and the update.

    An update is three forward passes, or two if the weights are frozen; the reference's and the old policy's
    log-probabilities are one each.
    """
    model = setup.context.model
    passes = flops.update_passes(model) + (setup.reference_params is not None)
    passes += setup.context.config.grpo.old_logprobs == "trainer"
    sampling_flops = batch.forward_flops(sampled_rows, model)
    return collectives.global_sum(sampling_flops + passes * batch.forward_flops(trained_rows, model))
