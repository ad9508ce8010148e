"""Evaluates weights on every held-out set, greedily and by vote, and writes evaluation/<name>/."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sqlr1_jax.config import SamplingConfig
from sqlr1_jax.data import order
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.evaluate.accuracy import Candidate
from sqlr1_jax.io import atomic_write_text, read_json, write_json, write_jsonl
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.rollout.request import Request
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train.context import RunContext

log = logging.getLogger(__name__)

Figures = dict[str, float]

WEIGHTS = "weights.txt"  # names the weights that were evaluated
FIGURES = "figures.json"  # written last, so its presence means that an evaluation is complete
EVALUATION_STEP = -1 % 2**31  # step number in evaluations' sampling keys; no training step has it


@dataclasses.dataclass(frozen=True)
class HeldoutSet:
    """Questions that no stage trains on, with their prompts. A prompt over the token budget counts as wrong."""

    name: str
    examples: list[Example]
    prompts: list[Prompt]


@dataclasses.dataclass(frozen=True)
class SetEvaluation:
    """The executed answers to one held-out set."""

    heldout: HeldoutSet
    greedy: list[Candidate]  # one per question
    sampled: list[list[Candidate]]  # [question][vote]

    @property
    def winners(self) -> list[Candidate]:
        """The winner of each question's vote."""
        return [accuracy.vote_winner(candidates) for candidates in self.sampled]

    def figures(self, votes: int) -> Figures:
        """The set's entry in figures.json; all values except n are fractions."""
        return {
            "ex_greedy": accuracy.fraction_correct(candidate.correct for candidate in self.greedy),
            f"ex_vote{votes}": accuracy.fraction_correct(candidate.correct for candidate in self.winners),
            f"pass{votes}": accuracy.fraction_correct(any(c.correct for c in group) for group in self.sampled),
            "well_formed": float(np.mean([candidate.well_formed for candidate in self.greedy])),
            "n": len(self.greedy),
        }


def load_heldout_sets(context: RunContext) -> list[HeldoutSet]:
    """The run's held-out sets: "heldout" and "newnames" of the embedded data, only "heldout" of another source."""
    source = context.config.data.evaluate
    names = ["heldout", "newnames"] if source.startswith("synth:") else ["heldout"]
    sets = [(name, context.examples(source, name)) for name in names]
    return [HeldoutSet(name, examples, context.prompts(examples)) for name, examples in sets if examples]


def greedy_accuracy(context: RunContext, engine: Engine, executor: Executor, params: Any, heldout: HeldoutSet) -> float:
    """Greedy execution accuracy on a fixed subset of `evaluate.subset` questions: the curve shown during training."""
    indices = order.subset(len(heldout.examples), context.config.evaluate.subset, context.config.seed)
    prompts, examples = [heldout.prompts[i] for i in indices], [heldout.examples[i] for i in indices]
    texts = sample_texts(context, engine, engine.prepare_weights(params), prompts, 1, 0.0)
    candidates = execute_texts(context, executor, examples, texts)
    return accuracy.fraction_correct(group[0].correct for group in candidates)


def evaluate(context: RunContext, name: str, params: Any, weights_of: str, executor: Executor) -> dict[str, Figures]:
    """Evaluates weights on all held-out sets, writes evaluation/<name>/ and returns the figures by set.

    `weights_of` names the weights, for example "grpo, step 110". If the folder already has figures of the same
    weights, they are returned and nothing is computed.
    """
    discard_stale_figures(context, name, weights_of)
    folder = context.workdir / "evaluation" / name
    done = folder / FIGURES
    existing = collectives.broadcast(read_json(done) if done.exists() else None)
    if existing is not None:
        return existing
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    sets = load_heldout_sets(context)
    engine = context.engine([prompt for heldout in sets for prompt in heldout.prompts])
    weights = engine.prepare_weights(params)
    votes = context.config.evaluate.votes
    evaluations, figures = [], {}
    for heldout in sets:
        evaluation = _evaluate_set(context, engine, weights, executor, heldout)
        evaluations.append(evaluation)
        figures[heldout.name] = evaluation.figures(votes)
        log.info("%s, %s: %s", name, heldout.name, figures[heldout.name])
    if collectives.is_primary():
        _write_answers(folder, evaluations, votes)
        atomic_write_text(folder / WEIGHTS, weights_of)
        write_json(done, figures)
    log.info("evaluated %s in %.1f s", name, time.perf_counter() - begin)
    return figures


def discard_stale_figures(context: RunContext, name: str, weights_of: str) -> None:
    """Removes the figures in evaluation/<name>/ if they belong to weights other than `weights_of`."""
    folder = context.workdir / "evaluation" / name
    evaluated = folder / WEIGHTS
    if not collectives.broadcast(evaluated.exists() and evaluated.read_text() == weights_of):
        collectives.run_on_primary((folder / FIGURES).unlink, True)


def sample_texts(
    context: RunContext, engine: Engine, weights: Any, prompts: Sequence[Prompt], samples: int, temperature: float
) -> list[list[str]]:
    """Completions as text, [prompt][sample], on every process; "" for a prompt over the token budget.

    Each process samples a share of the prompts.
    """
    within_budget = [prompt for prompt in prompts if not prompt.over_budget]
    # Every process must sample the same number of prompts, so the first prompts are repeated at the end and sampled
    # twice. Their second texts are not used.
    processes = collectives.process_count()
    padded_count = -(-len(within_budget) // processes) * processes
    padded = [within_budget[i % len(within_budget)] for i in range(padded_count)]
    local = collectives.local_slice(padded_count)
    local_count = local.stop - local.start
    with tqdm(total=local_count * samples, desc="sampling", unit="sample", leave=False, disable=None) as bar:
        request = evaluation_request(context, padded[local], samples, temperature, local.start, bar.update)
        completions = engine.rollout(weights, request)
    decoded = context.texts([completions.ids(p, g) for p in range(local_count) for g in range(samples)])
    local_texts = [decoded[p * samples : (p + 1) * samples] for p in range(local_count)]
    texts = iter(collectives.allgather_list(local_texts))
    return [[""] * samples if prompt.over_budget else next(texts) for prompt in prompts]


def evaluation_request(
    context: RunContext,
    prompts: Sequence[Prompt],
    samples: int,
    temperature: float,
    prompt_offset: int = 0,
    report_progress: Callable[[int], Any] = lambda count: None,
) -> Request:
    """The engine's request of an evaluation.

    Args:
      context: the run, whose settings for GRPO's sampling give the token limit and the stop texts.
      prompts: this process's prompts.
      samples: completions per prompt.
      temperature: 0 is greedy.
      prompt_offset: index of the first prompt among those of all processes.
      report_progress: called with the number of samples that have finished since its last call.
    """
    training = context.config.grpo.sampling
    sampling = SamplingConfig(temperature=temperature, max_tokens=training.max_tokens, stop=training.stop)
    return dataclasses.replace(
        context.request(prompts, samples, sampling, EVALUATION_STEP),
        index_P=range(prompt_offset, prompt_offset + len(prompts)),
        max_concurrent_prompts=context.config.evaluate.max_concurrent_prompts,
        on_finished=lambda finished: report_progress(len(finished)),
    )


def execute_texts(
    context: RunContext, executor: Executor, examples: Sequence[Example], texts: Sequence[Sequence[str]]
) -> list[list[Candidate]]:
    """Executed completions, [example][sample], on every process; each process executes a share of them."""
    config, local = context.config, collectives.local_slice(len(examples))
    candidates = accuracy.execute_candidates(
        executor, examples[local], texts[local], config.data.form, config.evaluate.rule
    )
    return collectives.allgather_list(candidates)


def _evaluate_set(
    context: RunContext, engine: Engine, weights: Any, executor: Executor, heldout: HeldoutSet
) -> SetEvaluation:
    """Answers a set twice: greedily, and with `evaluate.votes` samples per question."""

    def answer_all(samples: int, temperature: float) -> list[list[Candidate]]:
        texts = sample_texts(context, engine, weights, heldout.prompts, samples, temperature)
        return execute_texts(context, executor, heldout.examples, texts)

    greedy = [group[0] for group in answer_all(1, 0.0)]
    sampled = answer_all(context.config.evaluate.votes, context.config.evaluate.temperature)
    return SetEvaluation(heldout, greedy, sampled)


def _write_answers(folder: Path, evaluations: Sequence[SetEvaluation], votes: int) -> None:
    """Writes greedy.jsonl and vote8.jsonl (one line per question), and accuracy by label in greedy.json, vote8.json."""
    for kind in ("greedy", f"vote{votes}"):
        lines: list[dict[str, Any]] = []
        report = {}
        for evaluation in evaluations:
            heldout = evaluation.heldout
            chosen = evaluation.greedy if kind == "greedy" else evaluation.winners
            candidates = [()] * len(chosen) if kind == "greedy" else evaluation.sampled
            for example, answer, group in zip(heldout.examples, chosen, candidates, strict=True):
                lines.append(accuracy.evaluation_line(example, heldout.name, answer, group))
            report[heldout.name] = accuracy.accuracy_by_label(heldout.examples, [answer.correct for answer in chosen])
            report[heldout.name]["outcomes"] = accuracy.count_outcomes(chosen)
        write_jsonl(folder / f"{kind}.jsonl", lines)
        write_json(folder / f"{kind}.json", report)
