"""Execution accuracy: executes answers, picks the winner of a vote, and averages correctness."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sqlr1_jax.data import answer
from sqlr1_jax.data.example import Example
from sqlr1_jax.sql.answers import submit_answer
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.sql.vote import vote


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One completion and the outcome of its SQL."""

    text: str
    sql: str | None  # None if the completion has no SQL
    outcome: Outcome
    well_formed: bool  # whether the completion keeps the answer form; accuracy does not depend on it

    @property
    def correct(self) -> bool:
        """Whether the result equals the gold result; two empty results are equal."""
        return self.outcome.kind.correct


def execute_candidates(
    executor: Executor,
    examples: Sequence[Example],
    texts: Sequence[Sequence[str]],
    form: str,
    rule: str,
    openings: Sequence[str] | None = None,
) -> list[list[Candidate]]:
    """Executes the SQL of every completion and compares its result with that of the gold query.

    The SQL is whatever the completion holds (`answer.find_sql`), in the answer form or not. It runs exactly as the
    model wrote it; no value of the gold query is copied into it.

    Args:
      executor: an open pool of SQL workers.
      examples: the questions.
      texts: completions, [example][sample].
      form: the answer form, a name in `answer.FORMATS`.
      rule: the comparison, a name in `compare.RULES`.
      openings: `Prompt.opening` of each example's prompt; None: no prompt opens a tag.

    Returns:
      Candidates, [example][sample]. A completion without SQL has an outcome too: no_sql.
    """
    pending = []
    for example, opening, samples in zip(examples, openings or [""] * len(examples), texts, strict=True):
        for text in samples:
            parsed = answer.read_lenient(opening + text, form)
            future = submit_answer(executor, parsed, example.database, example.sql, rule)
            pending.append((text, parsed, future))
    candidates = iter(Candidate(text, a.sql, future.result(), a.well_formed) for text, a, future in pending)
    return [[next(candidates) for _ in samples] for samples in texts]


def vote_winner(candidates: Sequence[Candidate]) -> Candidate:
    """The first candidate of the largest group with equal results; the first candidate if none ran."""
    index = vote([candidate.outcome for candidate in candidates])
    return candidates[index or 0]


def fraction_correct(flags: Iterable[bool]) -> float:
    """The fraction of flags that are True; nan if there are none."""
    values = list(flags)
    return sum(values) / len(values) if values else float("nan")


def breakdown(
    examples: Sequence[Example], correct: Sequence[bool], label: Callable[[Example], str]
) -> dict[str, dict[str, float]]:
    """Accuracy by label: {label: {n, ex}}, sorted by label."""
    groups: dict[str, list[bool]] = collections.defaultdict(list)
    for example, flag in zip(examples, correct, strict=True):
        groups[label(example)].append(flag)
    return {name: {"n": len(flags), "ex": fraction_correct(flags)} for name, flags in sorted(groups.items())}


def accuracy_by_label(examples: Sequence[Example], correct: Sequence[bool]) -> dict[str, Any]:
    """Accuracy over all examples with its 95 % interval by database, and by family, habit, complexity and style."""
    items = {str(i): float(flag) for i, flag in enumerate(correct)}
    _, low, high = clustered_mean(items, {str(i): example.db_id for i, example in enumerate(examples)})
    return {
        "all": {"n": len(correct), "ex": fraction_correct(correct), "interval": [low, high]},
        "by_family": breakdown(examples, correct, lambda e: e.family),
        "by_habit": breakdown(examples, correct, lambda e: e.habit),
        "by_complexity": breakdown(examples, correct, lambda e: e.complexity),
        "by_style": breakdown(examples, correct, lambda e: e.style),
    }


def count_outcomes(outcomes: Iterable[OutcomeKind]) -> dict[str, int]:
    """How many outcomes there are of each kind, sorted by kind."""
    return dict(sorted(collections.Counter(outcomes).items()))


def paired_gain(
    before: Mapping[str, bool], after: Mapping[str, bool], cluster: Mapping[str, str], draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The gain in accuracy on the same items, and the low and high end of its 95 % bootstrap interval.

    Args:
      before: whether each item was correct, by item id.
      after: the same items in the other evaluation.
      cluster: the database of each item. Whole databases are resampled, since items on one database are not
        independent.
      draws: bootstrap samples.
      seed: seed of the bootstrap.

    Raises:
      ValueError: the evaluations have different items.
    """
    if before.keys() != after.keys():
        raise ValueError(f"the evaluations differ in {len(before.keys() ^ after.keys())} items; pair the same ones")
    return clustered_mean({item: int(after[item]) - int(before[item]) for item in before}, cluster, draws, seed)


def clustered_mean(
    values: Mapping[str, float], cluster: Mapping[str, str], draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of values by item id, and its 95 % bootstrap interval; arguments as in `paired_gain`."""
    groups: dict[str, list[float]] = collections.defaultdict(list)
    for item, value in values.items():
        groups[cluster[item]].append(value)
    totals = np.asarray([[sum(group), len(group)] for _, group in sorted(groups.items())], float)
    picks = np.random.default_rng(seed).integers(len(totals), size=(draws, len(totals)))
    sums = totals[picks].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return float(totals[:, 0].sum() / totals[:, 1].sum()), float(low), float(high)


def evaluation_line(
    example: Example, set_name: str, chosen: Candidate, candidates: Sequence[Candidate] = ()
) -> dict[str, Any]:
    """One line of evaluation/<name>/*.jsonl; `candidates` are those of the vote that `chosen` won."""
    line: dict[str, Any] = {
        "id": example.id, "set": set_name, "db_id": example.db_id, "question": example.question, "gold": example.sql,
        "family": example.family, "habit": example.habit, "style": example.style,
        "complexity": example.complexity, "text": chosen.text, "sql": chosen.sql, "outcome": chosen.outcome.kind,
        "well_formed": chosen.well_formed,
    }  # fmt: skip
    if candidates:
        line["candidates"] = [
            {"text": c.text, "sql": c.sql, "outcome": c.outcome.kind, "well_formed": c.well_formed} for c in candidates
        ]
    return line
