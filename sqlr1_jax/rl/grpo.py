"""GRPO. A step is one sentence: prompts → rollout → completions → execute → outcomes → reward → advantage → update."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sqlr1_jax import config, hosts
from sqlr1_jax.data import order
from sqlr1_jax.data.packing import Layout, Rows
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.evaluate import stage as evaluation
from sqlr1_jax.rl import experience, reward, rollouts
from sqlr1_jax.rl.advantage import advantage
from sqlr1_jax.rl.experience import Judged, Problems
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rollout.engine import Completions, Engine
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import batch, loop, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.context import CheckpointRef, RunContext, find_checkpoint, load_params
from sqlr1_jax.train.state import Program, TrainState

STAGE = "grpo"


@dataclasses.dataclass(frozen=True)
class Stage:
    """What does not change from step to step."""

    context: RunContext
    executor: Executor
    problems: Problems
    engine: Engine
    program: Program
    reference: Any  # weights that KL is taken to; None where it costs nothing
    rows: config.Rows
    microbatches: int


def run_stage(context: RunContext, executor: Executor) -> TrainState:
    """Trains from the cold start's weights (or the run's first) to the stage's last step."""
    cfg = context.cfg.grpo
    problems = experience.load_problems(context)
    held = evaluation.held_out(context)[0]
    engine = context.engine([*problems.prompts, *held.prompts])
    layout = rows_layout(context, engine)
    program = Program(context.model, cfg.optimizer, cfg.steps, layout, cfg.sampling.temperature, cfg.rows.buckets)
    with jax.set_mesh(context.mesh):
        start = find_checkpoint(context, stages=("cold_start",))
        first = state.create(load_params(context, start), program)
        microbatches = batch.microbatches(cfg.prompts, cfg.rows, hosts.count())
        longest = batch.with_length(cfg.rows, engine.prompt_tokens + cfg.samples * cfg.sampling.max_tokens)
        stage = Stage(
            context, executor, problems, engine, program, reference_params(context, first), longest, microbatches
        )
        return loop.train(
            context, STAGE, cfg.steps, first,
            take=lambda at, step: take(stage, at, step),
            evaluate=lambda at: evaluation.greedy_accuracy(context, engine, executor, at.params, held),
            rewind=lambda step: rollouts.cut(context.workdir, step),
            prepare=lambda at: compile_ahead(stage, at),
        )  # fmt: skip


def compile_ahead(stage: Stage, first: TrainState) -> TrainState:
    """The same state, with all that the stage will run compiled: nothing compiles once steps are on their way."""
    context, cfg = stage.context, stage.context.cfg.grpo
    weights, mine = stage.engine.weights(first.params), hosts.share(cfg.prompts)
    like = stage.problems.prompts[:1] * (mine.stop - mine.start)
    stage.engine.compile(weights, context.request(like, cfg.samples, cfg.sampling, 0))
    if context.cfg.evaluate.every:
        stage.engine.compile(weights, evaluation.request(context, like, 1, 0.0))
    del weights
    rows, advantage_PG = batch.to_rows([], stage.program.layout, stage.rows), np.zeros((1, cfg.samples), np.float32)
    nothing = batch.assemble(rows, stage.context.mesh, cfg.rows.per_microbatch, stage.microbatches, advantage_PG)
    return state.warm(first, _with_logprobs(stage, first.params, nothing), grpo_loss, cfg, stage.program)


def take(stage: Stage, at: TrainState, step: int) -> loop.Step:
    """One step of GRPO."""
    context, cfg, clock = stage.context, stage.context.cfg.grpo, experience.Clock()
    chosen = order.take(len(stage.problems.examples), cfg.prompts, context.cfg.seed, step)
    mine = hosts.share(cfg.prompts)
    examples, prompts = stage.problems.pick(chosen[mine])
    scoring = experience.Scoring(context, stage.executor, examples, cfg.samples)
    completions = _sample(stage, at.params, prompts, step, scoring)
    clock.lap("rollout")

    with hosts.together():
        rows = batch.to_rows(experience.groups(prompts, completions), stage.program.layout, stage.rows)
        sampling_flops = batch.forward_flops(rows, context.model)
        clock.lap("pack")
        outcomes = scoring.outcomes()
        judged = experience.judge(context, examples, completions, scoring.answers, outcomes)
    every = hosts.rows(judged)  # some advantages are relative to the whole batch
    clock.lap("reward_wait")

    adv_PG, keep_P = _advantages(stage, every, step)
    adv_PG, rows = adv_PG[mine], drop_filtered(rows, keep_P[mine])
    rows = rows._replace(weight=batch.place_weights(rows, cfg.aggregation, cfg.sampling.max_tokens))
    fed = batch.assemble(rows, context.mesh, cfg.rows.per_microbatch, stage.microbatches, adv_PG)
    fed = _with_logprobs(stage, at.params, fed)
    at, sums = state.update(at, fed, grpo_loss, cfg, stage.program)
    clock.lap("update")

    parts = reward.names(cfg.reward)
    texts, answers = scoring.texts, scoring.answers
    rollouts.write(context.workdir, step + 1, examples, texts, answers, outcomes, parts, judged.rewards_PGR, adv_PG)
    values = experience.measure(every, parts, clock, scoring, stage.executor)
    passes = 3 + (stage.reference is not None) + (cfg.old_logprobs == "trainer")
    values["flops"] = hosts.total(sampling_flops + passes * batch.forward_flops(rows, context.model))
    return loop.Step(at, sums, values, [stage.problems.examples[i].id for i in chosen])


def _sample(
    stage: Stage, params: Any, prompts: Sequence[Prompt], step: int, scoring: experience.Scoring
) -> Completions:
    """Completions under these weights; each one's SQL begins to run as soon as it ends."""
    context, cfg = stage.context, stage.context.cfg.grpo
    asked = context.request(prompts, cfg.samples, cfg.sampling, step)
    asked = dataclasses.replace(asked, first=hosts.share(cfg.prompts).start, finished=scoring.finished)
    weights = stage.engine.weights(params)  # freed when this returns: the update needs their memory
    return stage.engine.rollout(weights, asked)


def _advantages(stage: Stage, judged: Judged, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Advantages [P, G] and which groups count [P], of the prompts of all hosts."""
    cfg = stage.context.cfg
    key = jax.random.fold_in(jax.random.key(cfg.seed), step)
    weights_R, (rewards_PGR, correct_PG, sound_P, *_) = reward.weights(cfg.grpo.reward), judged
    return jax.device_get(advantage(rewards_PGR, correct_PG, sound_P, weights_R, key, cfg.grpo.advantage))


def drop_filtered(rows: Rows, keep_P: np.ndarray) -> Rows:
    """Rows whose groups count; those of filtered groups weigh nothing, and a row of nothing else is not computed."""
    weight = rows.weight * keep_P[rows.prompt]
    alive = weight.any(axis=1)
    return Rows(*(field[alive] for field in rows._replace(weight=weight)))


def _with_logprobs(stage: Stage, params: Any, fed: Batch) -> Batch:
    """The batch with log-probabilities of the reference, and of the old policy where they are recomputed."""
    if stage.reference is not None:
        fed = dataclasses.replace(fed, reference_MBT=state.score(stage.reference, fed, stage.program))
    if stage.context.cfg.grpo.old_logprobs == "trainer":
        fed = dataclasses.replace(fed, old_MBT=state.score(params, fed, stage.program))
    return fed


def rows_layout(context: RunContext, engine: Engine) -> Layout | None:
    """Strided rows take any prompt and any completion: one shape for the whole stage."""
    cfg = context.cfg.grpo
    if cfg.rows.layout == "packed":
        return None
    return Layout(cfg.rows.prefix or engine.prompt_tokens, cfg.samples, cfg.rows.segment or cfg.sampling.max_tokens)


def reference_params(context: RunContext, first: TrainState) -> Any:
    """The weights where the stage began: read back on resume, copied when it begins (the state's own are donated)."""
    if not context.cfg.grpo.kl:
        return None
    if hosts.agreed(0 in context.checkpoints(STAGE).steps()):
        return load_params(context, CheckpointRef(STAGE, 0))
    return jax.tree.map(lambda leaf: leaf.copy(), first.params)
