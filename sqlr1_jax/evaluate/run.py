"""Evaluates weights on every held-out set, greedy and by vote, and leaves the figures in evaluation/<stage>/."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence
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
from sqlr1_jax.io import atomic_write_text
from sqlr1_jax.rollout.engine import Engine, Request
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train.context import RunContext

log = logging.getLogger(__name__)
WEIGHTS = "weights.txt"  # of an evaluation's folder: which weights its figures are of
EVALUATION_STEP = -1 % 2**31  # the step in the sampling keys of evaluations: none of training's


@dataclasses.dataclass(frozen=True)
class HeldoutSet:
    """A set of questions that no stage trains on, with prompts; one over the budget is asked nothing and is wrong."""

    name: str
    examples: list[Example]
    prompts: list[Prompt]


def load_heldout_sets(context: RunContext) -> list[HeldoutSet]:
    """The run's sets: of the embedded data heldout and newnames, of any other source its one set as heldout."""
    spec = context.config.data.evaluate
    names = ["heldout", "newnames"] if spec.startswith("synth:") else ["heldout"]
    sets = [(name, context.examples(spec, name)) for name in names]
    return [HeldoutSet(name, examples, context.prompts(examples)) for name, examples in sets if examples]


def sample_texts(
    context: RunContext, engine: Engine, weights: Any, prompts: Sequence[Prompt], samples: int, temperature: float
) -> list[list[str]]:
    """Texts [prompt][sample]; "" for a prompt over its budget. evaluate.max_concurrent_prompts are sampled at once."""
    asked = [prompt for prompt in prompts if not prompt.over_budget]
    # As many for each host: the first ones twice, whose second answers are dropped.
    even = [
        asked[i % len(asked)]
        for i in range(-(-len(asked) // collectives.process_count()) * collectives.process_count())
    ]
    mine = collectives.local_slice(len(even))
    with tqdm(total=len(even[mine]) * samples, desc="sampling", unit="sample", leave=False, disable=None) as bar:
        made = engine.rollout(
            weights, evaluation_request(context, even[mine], samples, temperature, mine.start, bar.update)
        )
    decoded = context.texts([made.ids(p, g) for p in range(len(even[mine])) for g in range(samples)])
    texts = collectives.allgather_list([decoded[p * samples : (p + 1) * samples] for p in range(len(even[mine]))])
    answered = iter(texts)
    return [[""] * samples if prompt.over_budget else next(answered) for prompt in prompts]


def evaluation_request(
    context: RunContext,
    prompts: Sequence[Prompt],
    samples: int,
    temperature: float,
    first: int = 0,
    tell: Callable[[int], Any] = lambda ended: None,
) -> Request:
    """What an evaluation asks the sampler; `tell` is told how many samples have ended since."""
    sampled = context.config.grpo.sampling
    settings = SamplingConfig(temperature=temperature, max_tokens=sampled.max_tokens, stop=sampled.stop)
    return dataclasses.replace(
        context.request(prompts, samples, settings, EVALUATION_STEP),
        prompt_offset=first, max_concurrent_prompts=context.config.evaluate.max_concurrent_prompts,
        on_finished=lambda ended: tell(len(ended)),
    )  # fmt: skip


def greedy_accuracy(context: RunContext, engine: Engine, executor: Executor, params: Any, held: HeldoutSet) -> float:
    """Greedy execution accuracy on the fixed subset that GRPO is watched by."""
    chosen = order.subset(len(held.examples), context.config.evaluate.subset, context.config.seed)
    prompts, examples = [held.prompts[i] for i in chosen], [held.examples[i] for i in chosen]
    texts = sample_texts(context, engine, engine.prepare_weights(params), prompts, 1, 0.0)
    judged = _judge(context, executor, examples, texts)
    return accuracy.fraction_correct(group[0].right for group in judged)


def evaluate(
    context: RunContext, name: str, params: Any, weights_of: str, executor: Executor
) -> dict[str, dict[str, float]]:
    """Evaluates weights as evaluation/<name>/ and returns {set: figures}.

    `weights_of` says which weights they are, as in "grpo, step 110": figures of those very weights are only read.
    """
    discard_stale_figures(context, name, weights_of)
    folder = context.workdir / "evaluation" / name
    done = folder / "figures.json"
    there = collectives.broadcast(json.loads(done.read_text()) if done.exists() else None)
    if there is not None:
        return there
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    sets = load_heldout_sets(context)
    engine = context.engine([prompt for held in sets for prompt in held.prompts])
    weights = engine.prepare_weights(params)
    votes = context.config.evaluate.votes
    figures, greedy_lines, vote_lines = {}, [], []
    reports: dict[str, dict[str, Any]] = {"greedy": {}, f"vote{votes}": {}}
    for held in sets:
        greedy = _judged(context, engine, weights, executor, held, 1, 0.0)
        sampled = _judged(context, engine, weights, executor, held, votes, context.config.evaluate.temperature)
        winners = [accuracy.vote_winner(group) for group in sampled]
        figures[held.name] = _figures(greedy, winners, sampled, votes)
        for report, chosen in zip(reports.values(), ([group[0] for group in greedy], winners), strict=True):
            report[held.name] = accuracy.accuracy_by_label(held.examples, [candidate.right for candidate in chosen])
            report[held.name]["outcomes"] = accuracy.count_outcomes(chosen)
        greedy_lines += [
            accuracy.evaluation_line(e, held.name, g[0]) for e, g in zip(held.examples, greedy, strict=True)
        ]
        vote_lines += [
            accuracy.evaluation_line(e, held.name, w, g)
            for e, w, g in zip(held.examples, winners, sampled, strict=True)
        ]
        log.info("%s, %s: %s", name, held.name, figures[held.name])
    if collectives.is_primary():
        for kind, lines in zip(reports, (greedy_lines, vote_lines), strict=True):
            atomic_write_text(folder / f"{kind}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            atomic_write_text(folder / f"{kind}.json", json.dumps(reports[kind], indent=1))
        atomic_write_text(folder / WEIGHTS, weights_of)
        atomic_write_text(done, json.dumps(figures, indent=1))
    log.info("evaluated %s in %.1f s", name, time.perf_counter() - begin)
    return figures


def discard_stale_figures(context: RunContext, name: str, weights_of: str) -> None:
    """Removes the figures of evaluation/<name>/ where they are of other weights."""
    folder = context.workdir / "evaluation" / name
    of = folder / WEIGHTS
    if not collectives.broadcast(of.exists() and of.read_text() == weights_of):
        collectives.run_on_primary((folder / "figures.json").unlink, True)


def _judged(
    context: RunContext,
    engine: Engine,
    weights: Any,
    executor: Executor,
    held: HeldoutSet,
    samples: int,
    temperature: float,
) -> list[list[Candidate]]:
    texts = sample_texts(context, engine, weights, held.prompts, samples, temperature)
    return _judge(context, executor, held.examples, texts)


def _judge(
    context: RunContext, executor: Executor, examples: Sequence[Example], texts: Sequence[Sequence[str]]
) -> list[list[Candidate]]:
    """Every host runs its share of the queries, and learns of all."""
    mine, cfg = collectives.local_slice(len(examples)), context.config
    judged = accuracy.execute_candidates(executor, examples[mine], texts[mine], cfg.data.form, cfg.evaluate.rule)
    return collectives.allgather_list(judged)


def _figures(
    greedy: list[list[Candidate]], winners: list[Candidate], sampled: list[list[Candidate]], votes: int
) -> dict[str, float]:
    formed = [group[0].outcome.kind.well_formed for group in greedy]
    return {
        "ex_greedy": accuracy.fraction_correct(group[0].right for group in greedy),
        f"ex_vote{votes}": accuracy.fraction_correct(candidate.right for candidate in winners),
        f"pass{votes}": accuracy.fraction_correct(any(c.right for c in group) for group in sampled),
        "well_formed": float(np.mean(formed)),
        "n": len(greedy),
    }
