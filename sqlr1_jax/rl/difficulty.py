"""Chooses GRPO's questions by how often the stage's initial weights answer them right.

A group whose completions are all right, or all wrong, teaches nothing. Before step 0, `grpo.difficulty.samples`
completions of each question are sampled as in training and executed; questions outside `min_right` … `max_right` are
left out. The counts are kept in <workdir>/difficulty.jsonl with a key of what decided them; a stop loses at most the
chunk at work (evaluate/chunks.py), and the counts are the same bytes as without a stop.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sqlr1_jax.config import Config
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.evaluate.chunks import answer_in_chunks, concurrent_prompts, count_prompts, local_share
from sqlr1_jax.evaluate.content_key import key_of
from sqlr1_jax.evaluate.heldout import Question, choose_positions
from sqlr1_jax.evaluate.partial_results import PartialResults
from sqlr1_jax.evaluate.run import EVALUATION_STEP
from sqlr1_jax.io import read_jsonl, write_jsonl
from sqlr1_jax.progress import Progress
from sqlr1_jax.rl import reward
from sqlr1_jax.rl.prompt_set import PromptSet
from sqlr1_jax.rl.scoring import CompletionExecutor
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.rollout.request import FinishedSample
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train.context import RunContext

log = logging.getLogger(__name__)

FILE = "difficulty.jsonl"  # first line: the key; then a line for each question that was looked at
PARTIAL = "difficulty.partial.jsonl"  # the counts so far
DIFFICULTY_STEP = EVALUATION_STEP - 1  # step number in the sampling keys; neither training nor evaluation has it
SET_NAME = "grpo"


def select_prompts(context: RunContext, executor: Executor, params: Any, prompt_set: PromptSet) -> PromptSet:
    """The questions that `params` answer right in `min_right` to `max_right` of `samples` completions.

    Args:
      context: the run.
      executor: an open pool of SQL workers.
      params: the stage's initial weights.
      prompt_set: the stage's questions; returned as it is if grpo.difficulty.samples is 0.

    Raises:
      ConfigError: no question is left, or the run has trained on a choice that would change now.
    """
    settings = context.config.grpo.difficulty
    if not settings.samples:
        return prompt_set
    positions = choose_positions(prompt_set.examples, 0, settings.limit, context.config.seed)
    questions = [Question(SET_NAME, example, prompt, i) for i, example, prompt in prompt_set.at(positions)]
    counts = _right_counts(context, executor, params, questions)
    low, high = settings.min_right, settings.max_right or settings.samples - 1
    kept = [question for question, right in zip(questions, counts, strict=True) if low <= right <= high]
    too_easy, too_hard = sum(right > high for right in counts), sum(right < low for right in counts)
    summary = (
        f"of {len(questions)} questions, {len(kept)} are right in {low} to {high} of {settings.samples} completions, "
        f"{too_easy} in more (too easy), {too_hard} in fewer (too hard)"
    )
    log.info("difficulty: %s", summary)
    if not kept:
        raise ConfigError(
            f"config.grpo.difficulty leaves no question to train on: {summary}. Widen grpo.difficulty.min_right and "
            "max_right, raise grpo.difficulty.samples or limit, or put an SFT stage before GRPO (config.stages)."
        )
    return PromptSet([question.example for question in kept], [question.prompt for question in kept])


def _right_counts(context: RunContext, executor: Executor, params: Any, questions: Sequence[Question]) -> Sequence[int]:
    """Right completions of each question: those on disk if their key is the same, else counted and written."""
    file, key = context.workdir / FILE, key_of(params, questions, _settings(context.config))
    saved_key, *lines = collectives.broadcast([*read_jsonl(file)] if file.exists() else []) or [{}]
    if saved_key == key:
        return [line["right"] for line in lines]
    _refuse_after_training(context, saved_key, key)
    partial = PartialResults(context.workdir / PARTIAL, key)
    count_chunk = functools.partial(_count_chunk, context, executor)
    counts = answer_in_chunks(context, "measuring difficulty", params, questions, partial, count_chunk)
    samples = context.config.grpo.difficulty.samples
    lines = [
        {"id": question.example.id, "db_id": question.example.db_id, "right": right, "samples": samples}
        for question, right in zip(questions, counts, strict=True)
    ]
    collectives.run_on_primary(write_jsonl, file, [key, *lines])
    collectives.run_on_primary(partial.delete)
    return counts


def _settings(config: Config) -> list[Any]:
    """The settings that decide the counts; `min_right` and `max_right` are applied to the counts."""
    grpo = config.grpo
    return [
        grpo.difficulty.samples,
        grpo.sampling,
        [grpo.reward.rule, grpo.reward.empty_match, grpo.reward.open_answer, config.data.form],
        dataclasses.replace(config.execute, workers=0, gold_cache_dir=""),  # these two change no result
        [config.rollout, config.evaluate.max_concurrent_prompts],
        [config.seed, config.model.dtype, config.model.activation_dtype, jax.default_backend()],
    ]


def _refuse_after_training(context: RunContext, saved_key: Mapping[str, str], key: Mapping[str, str]) -> None:
    """Raises ConfigError if the run has trained on questions that other counts, or counts now lost, have chosen."""
    trained = max(collectives.broadcast(context.checkpoints("grpo").steps()), default=0)
    changed = [part for part, digest in key.items() if saved_key.get(part) != digest]
    if trained:
        fault = f"was made with other {' and '.join(changed)}" if saved_key else "is missing"
        raise ConfigError(
            f"{context.workdir / FILE} {fault}, and the run has trained {trained} steps on the questions that it "
            "chose. Restore what changed, or choose another --workdir."
        )
    if saved_key:
        log.info("%s was made with other %s: measuring again", context.workdir / FILE, " and ".join(changed))


def _count_chunk(
    context: RunContext, executor: Executor, engine: Engine, weights: Any, chunk: Sequence[Question], progress: Progress
) -> list[int]:
    """Samples completions of a chunk's questions as training does; returns how many of each are right."""
    grpo, local = context.config.grpo, local_share(chunk)
    examples, prompts = [question.example for question in local], [question.prompt for question in local]
    openings, samples = [prompt.opening for prompt in prompts], grpo.difficulty.samples
    execution = CompletionExecutor(context, executor, examples, samples, openings)
    count = count_prompts(len(local), samples, progress)

    def on_finished(finished: Sequence[FinishedSample]) -> None:
        execution.submit(finished)
        count(finished)

    request = dataclasses.replace(
        context.request(prompts, samples, grpo.sampling, DIFFICULTY_STEP),
        index_P=[question.number for question in local],
        max_concurrent_prompts=concurrent_prompts(context),
        on_finished=on_finished,
    )
    engine.rollout(weights, request)
    with collectives.sync_errors():
        outcomes = execution.wait()
    right = [sum(reward.correct(outcome, grpo.reward) for outcome in group) for group in outcomes]
    return collectives.allgather_list(right)[: len(chunk)]
