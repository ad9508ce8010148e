"""Execution accuracy: greedy, by vote of n, pass@n, what the outcomes were, and the gain between two evaluations."""

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
from sqlr1_jax.sql.outcome import Outcome
from sqlr1_jax.sql.vote import vote


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One completion, judged."""

    text: str
    sql: str | None
    outcome: Outcome

    @property
    def right(self) -> bool:
        return self.outcome.kind.correct


def execute_candidates(
    executor: Executor, examples: Sequence[Example], texts: Sequence[Sequence[str]], form: str, rule: str
) -> list[list[Candidate]]:
    """Runs the SQL of every completion and of its gold query; an answer that cannot be read has an outcome too.

    Nothing of the gold reaches the prediction: what runs is what the completion says, to the character (defect 12).
    """
    pending = []
    for example, group in zip(examples, texts, strict=True):
        for text in group:
            said = answer.read(text, form)
            pending.append((text, said.sql, submit_answer(executor, said, example.database, example.sql, rule)))
    judged = iter(Candidate(text, sql, future.result()) for text, sql, future in pending)
    return [[next(judged) for _ in group] for group in texts]


def vote_winner(candidates: Sequence[Candidate]) -> Candidate:
    """The vote's answer: the largest group of equal results, its first member; the first candidate if none ran."""
    place = vote([candidate.outcome for candidate in candidates])
    return candidates[place or 0]


def fraction_correct(flags: Iterable[bool]) -> float:
    """The fraction that is True; nan of nothing."""
    values = list(flags)
    return sum(values) / len(values) if values else float("nan")


def breakdown(
    examples: Sequence[Example], right: Sequence[bool], by: Callable[[Example], str]
) -> dict[str, dict[str, float]]:
    """{name: {n, ex}} of the examples grouped by a label."""
    groups: dict[str, list[bool]] = collections.defaultdict(list)
    for example, flag in zip(examples, right, strict=True):
        groups[by(example)].append(flag)
    return {name: {"n": len(flags), "ex": fraction_correct(flags)} for name, flags in sorted(groups.items())}


def accuracy_by_label(examples: Sequence[Example], right: Sequence[bool]) -> dict[str, Any]:
    """Accuracy over all, and by family, habit, complexity and style."""
    return {
        "all": {"n": len(right), "ex": fraction_correct(right)},
        "by_family": breakdown(examples, right, lambda e: e.family),
        "by_habit": breakdown(examples, right, lambda e: e.habit),
        "by_complexity": breakdown(examples, right, lambda e: e.complexity),
        "by_style": breakdown(examples, right, lambda e: e.style),
    }


def count_outcomes(candidates: Iterable[Candidate]) -> dict[str, int]:
    """How often each outcome came."""
    return dict(sorted(collections.Counter(candidate.outcome.kind for candidate in candidates).items()))


def paired_gain(
    before: Mapping[str, bool], after: Mapping[str, bool], cluster: Mapping[str, str], draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean gain in accuracy and its 95 % interval, resampling whole databases.

    Args:
      before: right or wrong by item id.
      after: the same items, later or by another way.
      cluster: the database of each item; items of one database are not independent.
      draws: bootstrap samples.
      seed: of the bootstrap.
    """
    if before.keys() != after.keys():
        raise ValueError(f"the evaluations differ in {len(before.keys() ^ after.keys())} items; pair the same ones")
    return clustered_mean({item: int(after[item]) - int(before[item]) for item in before}, cluster, draws, seed)


def clustered_mean(
    values: Mapping[str, float], cluster: Mapping[str, str], draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of values by item id and its 95 % bootstrap interval, resampling whole databases as `paired_gain`."""
    groups: dict[str, list[float]] = collections.defaultdict(list)
    for item, value in values.items():
        groups[cluster[item]].append(value)
    totals = np.asarray([[sum(group), len(group)] for _, group in sorted(groups.items())], float)
    picks = np.random.default_rng(seed).integers(len(totals), size=(draws, len(totals)))
    sums = totals[picks].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return float(totals[:, 0].sum() / totals[:, 1].sum()), float(low), float(high)


def evaluation_line(
    example: Example, name: str, chosen: Candidate, candidates: Sequence[Candidate] = ()
) -> dict[str, Any]:
    """One line of evaluation/<stage>/*.jsonl."""
    line: dict[str, Any] = {
        "id": example.id, "set": name, "db_id": example.db_id, "question": example.question, "gold": example.sql,
        "family": example.family, "habit": example.habit, "style": example.style,
        "complexity": example.complexity, "text": chosen.text, "sql": chosen.sql, "outcome": chosen.outcome.kind,
    }  # fmt: skip
    if candidates:
        line["candidates"] = [{"text": c.text, "sql": c.sql, "outcome": c.outcome.kind} for c in candidates]
    return line
