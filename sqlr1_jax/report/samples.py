"""Rollouts to show: the questions whose samples differ most, each with its best and its worst sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from sqlr1_jax.data import answer
from sqlr1_jax.report import sql_text
from sqlr1_jax.report.charts import number
from sqlr1_jax.report.run_record import Line, RunRecord
from sqlr1_jax.sql.outcome import OutcomeKind


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample of a question, as text for the page."""

    title: str
    reasoning: str
    sql: Markup  # with the difference from the gold query marked; empty if the answer has no SQL
    text: str  # the whole completion if it has no SQL, else ""
    outcome: str
    message: str
    rows: Sequence[Sequence[Any]]
    parts: Sequence[tuple[str, str]]  # reward by part
    total: str  # reward
    advantage: str


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a step, with the samples to show."""

    question: str
    db_id: str
    gold: Markup
    gold_rows: Sequence[Sequence[Any]]
    outcomes: Sequence[tuple[str, str]]  # (kind, total reward) of every sample
    samples: Sequence[Sample]  # best and worst


@dataclasses.dataclass(frozen=True)
class StepSamples:
    """The questions to show of one step."""

    step: int
    count: int  # all questions of the step
    questions: Sequence[Question]


def choose_samples(record: RunRecord, per_step: int = 3) -> list[StepSamples]:
    """Samples of the last and the first step: mixed groups first, and of those the ones with most kinds of outcomes."""
    form = record.setting("data.form", "reasoning")
    steps = []
    for step, lines in reversed(record.rollouts):
        chosen = sorted(lines, key=_rank)[:per_step]
        steps.append(StepSamples(step, len(lines), [_question(line, form) for line in chosen]))
    return steps


def total_reward(sample: Line) -> float:
    """The sum of a sample's weighted reward parts."""
    return sum(sample["reward"].values())


def signed(value: float) -> str:
    """A number with its sign: +1, −2, 0."""
    text = f"{value:+.2f}".rstrip("0").rstrip(".")
    return "0" if float(text) == 0 else text.replace("-", "−")


def _rank(line: Line) -> tuple[bool, int, float]:
    """Sort key of a question; smaller is shown first."""
    count = len(line["samples"])
    kinds = {sample["outcome"] for sample in line["samples"]}
    matches = sum(sample["outcome"] == OutcomeKind.MATCH for sample in line["samples"])
    return not (0 < matches < count), -len(kinds), abs(matches - count / 2)


def _question(line: Line, form: str) -> Question:
    ranked = sorted(line["samples"], key=total_reward, reverse=True)
    all_equal = total_reward(ranked[0]) == total_reward(ranked[-1])
    chosen = {"All have the same reward": ranked[0]} if all_equal else {"Best": ranked[0], "Worst": ranked[-1]}
    return Question(
        line["question"],
        line["db_id"],
        sql_text.highlight(line["gold"]),
        line["gold_rows"],
        [(sample["outcome"], number(total_reward(sample))) for sample in line["samples"]],
        [_sample(title, sample, line["gold"], form) for title, sample in chosen.items()],
    )


def _sample(title: str, sample: Line, gold: str, form: str) -> Sample:
    sql = sample["sql"]
    return Sample(
        title=title,
        reasoning=answer.read_lenient(sample["text"], form).think,
        sql=sql_text.highlight_difference(sql, gold) if sql else Markup(""),
        text="" if sql else sample["text"],
        outcome=sample["outcome"],
        message=sample["message"],
        rows=sample["rows"],
        parts=[(name, signed(value)) for name, value in sample["reward"].items()],
        total=signed(total_reward(sample)),
        advantage=signed(sample["advantage"]),
    )
