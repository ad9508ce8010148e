"""Evaluates weights on every held-out set, greedily and by vote, and writes evaluation/<name>/.

Questions are answered in chunks (evaluate/chunks.py): a question's greedy answer and all candidates of its vote come
from one prefill, and an interrupted evaluation goes on with the next chunk.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sqlr1_jax.config import SamplingConfig
from sqlr1_jax.data import answer, order, templates
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.evaluate.accuracy import Candidate
from sqlr1_jax.evaluate.chunks import answer_in_chunks, concurrent_prompts, count_prompts, local_share
from sqlr1_jax.evaluate.content_key import content_key
from sqlr1_jax.evaluate.heldout import HeldoutSet, Question, load_heldout_sets, prompt_settings
from sqlr1_jax.evaluate.partial_results import PartialResults
from sqlr1_jax.io import atomic_write_text, read_json, write_json, write_jsonl
from sqlr1_jax.model import tokenizer
from sqlr1_jax.progress import Progress
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.rollout.request import Request
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.train.context import RunContext

log = logging.getLogger(__name__)

Figures = dict[str, float]
Line = dict[str, Any]  # of greedy.jsonl or of the vote's file

WEIGHTS = "weights.txt"  # names the weights that were evaluated
KEY = "key.json"  # digests of what decided the results
PARTIAL = "partial.jsonl"  # the answers so far
FIGURES = "figures.json"  # written last, so its presence means that an evaluation is complete
EVALUATION_STEP = -1 % 2**31  # step number in evaluations' sampling keys; no training step has it


class Answers(NamedTuple):
    """The lines of one question in the two files of answers."""

    greedy: Line
    vote: Line


def evaluate(context: RunContext, name: str, params: Any, weights_of: str, executor: Executor) -> dict[str, Figures]:
    """Evaluates weights on all held-out sets, writes evaluation/<name>/ and returns the figures by set.

    If the folder already has figures of the same weights, questions and settings, by content, they are returned and
    nothing is computed.

    Args:
      context: the run.
      name: of the folder.
      params: the weights.
      weights_of: names the weights, for example "grpo, step 110".
      executor: an open pool of SQL workers.
    """
    folder, sets = context.workdir / "evaluation" / name, load_heldout_sets(context)
    key = content_key(context, params, sets)
    existing = collectives.broadcast(_existing_figures(folder, key))
    if existing is not None:
        collectives.run_on_primary(atomic_write_text, folder / WEIGHTS, weights_of)
        return existing
    collectives.run_on_primary(_remove_figures, folder)
    start, partial = time.perf_counter(), PartialResults(folder / PARTIAL, key)
    answers = _answer_questions(context, name, params, executor, sets, partial)
    figures = {heldout.name: _figures(answers[heldout.name], context.config.evaluate.votes) for heldout in sets}
    if collectives.is_primary():
        _write_answers(folder, sets, answers, context.config.evaluate.votes)
        atomic_write_text(folder / WEIGHTS, weights_of)
        write_json(folder / KEY, key)
        write_json(folder / FIGURES, figures)
        partial.delete()
    for set_name, set_figures in figures.items():
        log.info("%s, %s: %s", name, set_name, set_figures)
    log.info("evaluated %s in %.1f s", name, time.perf_counter() - start)
    return figures


def _existing_figures(folder: Path, key: Mapping[str, str]) -> dict[str, Figures] | None:
    if not (folder / FIGURES).exists() or not (folder / KEY).exists():
        return None
    changed = [part for part, digest in read_json(folder / KEY).items() if key.get(part) != digest]
    if changed:
        log.info("%s holds results of other %s: evaluating again", folder, " and ".join(changed))
        return None
    figures: dict[str, Figures] = read_json(folder / FIGURES)
    return figures


def _remove_figures(folder: Path) -> None:
    """Removes the figures of an earlier evaluation: a kill must not leave them next to new answers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (FIGURES, KEY):
        (folder / name).unlink(missing_ok=True)


def discard_stale_figures(context: RunContext, name: str, weights_of: str) -> None:
    """Removes the figures in evaluation/<name>/ if they belong to weights other than `weights_of`."""
    folder = context.workdir / "evaluation" / name
    evaluated = folder / WEIGHTS
    if not collectives.broadcast(evaluated.exists() and evaluated.read_text() == weights_of):
        collectives.run_on_primary((folder / FIGURES).unlink, True)


def _answer_questions(
    context: RunContext,
    name: str,
    params: Any,
    executor: Executor,
    sets: Sequence[HeldoutSet],
    partial: PartialResults,
) -> dict[str, list[Answers]]:
    """All answers by set, in the order of its questions; those in `partial` are not computed again."""
    settings = context.config.evaluate
    temperatures = (settings.temperature,) * settings.votes + (0.0,)
    questions = [question for heldout in sets for question in heldout.questions]

    def answer_chunk(engine: Engine, weights: Any, chunk: Sequence[Question], progress: Progress) -> list[Answers]:
        return _answer_chunk(context, engine, weights, executor, chunk, temperatures, progress)

    lines = iter(answer_in_chunks(context, f"evaluating {name}", params, questions, partial, answer_chunk))
    return {heldout.name: [Answers(*next(lines)) for _ in heldout.examples] for heldout in sets}


def _answer_chunk(
    context: RunContext,
    engine: Engine,
    weights: Any,
    executor: Executor,
    chunk: Sequence[Question],
    temperatures: tuple[float, ...],
    progress: Progress,
) -> list[Answers]:
    """Samples and executes the answers to a chunk's questions; the last temperature is the greedy answer's."""
    examples, prompts = [q.example for q in chunk], [q.prompt for q in chunk]
    texts = sample_texts(context, engine, weights, prompts, temperatures, [q.number for q in chunk], progress)
    candidates = execute_texts(context, executor, examples, prompts, texts)
    answers = []
    for question, (*votes, greedy) in zip(chunk, candidates, strict=True):
        winner = accuracy.vote_winner(votes)
        answers.append(
            Answers(
                accuracy.evaluation_line(question.example, question.set_name, greedy),
                accuracy.evaluation_line(question.example, question.set_name, winner, votes),
            )
        )
    return answers


def greedy_accuracy(context: RunContext, engine: Engine, executor: Executor, params: Any, heldout: HeldoutSet) -> float:
    """Greedy execution accuracy on a fixed subset of `evaluate.subset` questions: the curve shown during training."""
    indices = order.subset(len(heldout.examples), context.config.evaluate.subset, context.config.seed)
    prompts, examples = [heldout.prompts[i] for i in indices], [heldout.examples[i] for i in indices]
    with Progress("evaluating the subset", len(indices), "question") as progress:
        weights = engine.prepare_weights(params)
        texts = sample_texts(context, engine, weights, prompts, (0.0,), range(len(prompts)), progress)
    candidates = execute_texts(context, executor, examples, prompts, texts)
    return accuracy.fraction_correct(group[0].correct for group in candidates)


def sample_texts(
    context: RunContext,
    engine: Engine,
    weights: Any,
    prompts: Sequence[Prompt],
    temperatures: tuple[float, ...],
    indices: Sequence[int],
    progress: Progress,
) -> list[list[str]]:
    """Completions as text, [prompt][sample], on every process; "" for a prompt over the token budget.

    Each process samples a share of the prompts.

    Args:
      context: the run.
      engine: sized for the prompts.
      weights: from `engine.prepare_weights`.
      prompts: of all processes.
      temperatures: one for each sample of a prompt; 0 is greedy.
      indices: each prompt's number, which its random numbers depend on.
      progress: counts prompts as their samples end.
    """
    samples = len(temperatures)
    within_budget = [(prompt, i) for prompt, i in zip(prompts, indices, strict=True) if not prompt.over_budget]
    progress.update(len(prompts) - len(within_budget))
    local = local_share(within_budget)
    request = evaluation_request(context, [p for p, _ in local], temperatures, [i for _, i in local], progress)
    completions = engine.rollout(weights, request)
    decoded = context.texts([completions.ids(p, g) for p in range(len(local)) for g in range(samples)])
    local_texts = [decoded[p * samples : (p + 1) * samples] for p in range(len(local))]
    texts = iter(collectives.allgather_list(local_texts))
    return [[""] * samples if prompt.over_budget else next(texts) for prompt in prompts]


def evaluation_request(
    context: RunContext,
    prompts: Sequence[Prompt],
    temperatures: tuple[float, ...],
    indices: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Request:
    """The engine's request of an evaluation.

    Args:
      context: the run; `config.evaluate` gives the token limit, the stop texts and top_p.
      prompts: this process's prompts.
      temperatures: one for each sample of a prompt.
      indices: each prompt's number, which its random numbers depend on; None: its position.
      progress: counts prompts as their samples end.
    """
    settings, training = context.config.evaluate, context.config.grpo.sampling
    data = prompt_settings(context)
    one_block = templates.asks_for_one_block(data.prompt, data.form)
    limit = templates.ONE_BLOCK_TOKENS if one_block else training.max_tokens
    sampling = SamplingConfig(
        temperature=temperatures[0],
        top_p=settings.top_p,
        max_tokens=settings.max_tokens or min(training.max_tokens, limit),
        stop=settings.stop or training.stop,
    )
    request = context.request(prompts, len(temperatures), sampling, EVALUATION_STEP)
    if one_block and not sampling.stop:
        request = dataclasses.replace(request, stop_fn=tokenizer.StopMatcher(context.tokenizer, answer.block_is_closed))
    return dataclasses.replace(
        request,
        index_P=indices,
        temperatures=temperatures if len(set(temperatures)) > 1 else (),
        max_concurrent_prompts=concurrent_prompts(context),
        on_finished=count_prompts(len(prompts), len(temperatures), progress),
    )


def execute_texts(
    context: RunContext,
    executor: Executor,
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
) -> list[list[Candidate]]:
    """Executed completions, [example][sample], on every process; each process executes a share of them."""
    local, rule = collectives.local_slice(len(examples)), context.config.evaluate.rule
    openings = [prompt.opening for prompt in prompts[local]]
    form = prompt_settings(context).form
    candidates = accuracy.execute_candidates(executor, examples[local], texts[local], form, rule, openings)
    return collectives.allgather_list(candidates)


def _figures(answers: Sequence[Answers], votes: int) -> Figures:
    """A set's entry in figures.json; all values except n are fractions."""

    def right(line: Mapping[str, Any]) -> bool:
        return OutcomeKind(line["outcome"]).correct

    return {
        "ex_greedy": accuracy.fraction_correct(right(line.greedy) for line in answers),
        f"ex_vote{votes}": accuracy.fraction_correct(right(line.vote) for line in answers),
        f"pass{votes}": accuracy.fraction_correct(any(map(right, line.vote["candidates"])) for line in answers),
        "well_formed": float(np.mean([line.greedy["well_formed"] for line in answers])),
        "n": len(answers),
    }


def _write_answers(
    folder: Path, sets: Sequence[HeldoutSet], answers: Mapping[str, Sequence[Answers]], votes: int
) -> None:
    """Writes greedy.jsonl and vote8.jsonl (one line per question), and accuracy by label in greedy.json, vote8.json."""
    for column, kind in enumerate(("greedy", f"vote{votes}")):
        lines: list[Line] = []
        report = {}
        for heldout in sets:
            chosen = [lines_of[column] for lines_of in answers[heldout.name]]
            outcomes = [OutcomeKind(line["outcome"]) for line in chosen]
            lines += chosen
            report[heldout.name] = accuracy.accuracy_by_label(heldout.examples, [kind.correct for kind in outcomes])
            report[heldout.name]["outcomes"] = accuracy.count_outcomes(outcomes)
        write_jsonl(folder / f"{kind}.jsonl", lines)
        write_json(folder / f"{kind}.json", report)
