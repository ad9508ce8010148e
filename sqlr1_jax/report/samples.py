"""A few rollouts to look at: questions whose samples differ most, each with its best sample and its worst."""

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
    title: str
    reasoning: str
    sql: Markup  # difference from gold marked; empty when the answer has none
    text: str  # the whole completion, where it holds no SQL
    outcome: str
    message: str
    rows: Sequence[Sequence[Any]]
    parts: Sequence[tuple[str, str]]  # of the reward, as shown
    total: str
    advantage: str


@dataclasses.dataclass(frozen=True)
class Question:
    question: str
    db_id: str
    gold: Markup
    gold_rows: Sequence[Sequence[Any]]
    outcomes: Sequence[tuple[str, str]]  # of every sample: kind, total reward
    samples: Sequence[Sample]  # best and worst


@dataclasses.dataclass(frozen=True)
class StepSamples:
    step: int
    count: int  # questions of the step
    questions: Sequence[Question]


def samples(record: RunRecord, each: int = 3) -> list[StepSamples]:
    """Of the first and the last step, `each` questions; mixed groups first, those with most kinds of outcomes ahead."""
    form = record.setting("data.form", "reasoning")
    found = []
    for step, lines in reversed(record.rollouts):
        ranked = sorted(lines, key=_rank)
        found.append(StepSamples(step, len(lines), [_question(line, form) for line in ranked[:each]]))
    return found


def total(sample: Line) -> float:
    """A sample's whole reward."""
    return sum(sample["reward"].values())


def _rank(line: Line) -> tuple[bool, int, float]:
    kinds = {sample["outcome"] for sample in line["samples"]}
    right = sum(sample["outcome"] == OutcomeKind.MATCH for sample in line["samples"])
    return not (0 < right < len(line["samples"])), -len(kinds), abs(right - len(line["samples"]) / 2)


def _question(line: Line, form: str) -> Question:
    ranked = sorted(line["samples"], key=total, reverse=True)
    equal = total(ranked[0]) == total(ranked[-1])
    chosen = {"All are paid alike": ranked[0]} if equal else {"Best": ranked[0], "Worst": ranked[-1]}
    return Question(
        line["question"], line["db_id"], sql_text.highlight(line["gold"]), line["gold_rows"],
        [(sample["outcome"], number(total(sample))) for sample in line["samples"]],
        [_sample(title, sample, line["gold"], form) for title, sample in chosen.items()],
    )  # fmt: skip


def _sample(title: str, sample: Line, gold: str, form: str) -> Sample:
    said = answer.read(sample["text"], form)
    sql = sample["sql"]
    return Sample(
        title, said.think, sql_text.compared(sql, gold) if sql else Markup(""), "" if sql else sample["text"],
        sample["outcome"], sample["message"], sample["rows"],
        [(name, signed(value)) for name, value in sample["reward"].items()], signed(total(sample)),
        signed(sample["advantage"]),
    )  # fmt: skip


def signed(value: float) -> str:
    """With its sign: +1, −2, 0."""
    text = f"{value:+.2f}".rstrip("0").rstrip(".")
    return "0" if float(text) == 0 else text.replace("-", "−")
