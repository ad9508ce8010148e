"""The answer form, written and read in one place (sql-r1.md §2). Reading undoes writing, to the character.

A reasoning answer is `<think>`, the reasoning, `</think>`, `<answer>`, a fenced `sql` block, `</answer>`;
a direct one is its second half. The SQL between the fences is never touched: not stripped, not joined to
one line (a `--` comment ends with its line), not cut at a semicolon.
"""

from __future__ import annotations

import dataclasses
import re

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql.outcome import OutcomeKind

FORMS = ("reasoning", "direct")

_THINK = ("<think>", "</think>")
_ANSWER = ("<answer>", "</answer>")
# A block ends at a fence that begins a line, or at one that ends the answer.
_BLOCK = re.compile(r"```sql(?=\s)(.*?)(?:\n[ \t]*```|```\s*\Z)", re.DOTALL)


class AnswerError(Sqlr1Error):
    """Reasoning or SQL that the form cannot carry, such as SQL which holds `</answer>`."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a completion says. `sql` is None exactly when `problem` names the reason."""

    think: str  # between the think marks; "" in the direct form
    answer: str  # between the answer marks
    sql: str | None
    # BAD_FORMAT: a mark is missing, repeated or out of order. NO_SQL: there is no SQL block, or an empty one.
    problem: OutcomeKind | None = None


def write(reasoning: str, sql: str, form: str) -> str:
    """The completion that says this. Raises `AnswerError` where `read` would not give the same back."""
    answer = f"<answer>\n```sql\n{sql}\n```\n</answer>"
    text = f"<think>\n{reasoning}\n</think>\n{answer}" if form == "reasoning" else answer
    said = read(text, form)
    if said.sql != sql or (form == "reasoning" and said.think != reasoning):
        reason = said.problem or "holds a mark of the form"
        raise AnswerError(f"cannot be written as an answer ({reason}): {sql[:80]!r}")
    return text


def read(text: str, form: str) -> Answer:
    """What the completion says: each mark once, in order, with a block in the answer (sql-r1.md §2)."""
    marks = _marks(form)
    if any(text.count(mark) != 1 for mark in marks):
        return Answer("", "", None, OutcomeKind.BAD_FORMAT)
    places = [text.index(mark) for mark in marks]
    if places != sorted(places):
        return Answer("", "", None, OutcomeKind.BAD_FORMAT)
    think = _between(text, *_THINK) if form == "reasoning" else ""
    answer = _between(text, *_ANSWER)
    block = _BLOCK.search(answer)
    if block is None or not block[1].strip():
        return Answer(think, answer, None, OutcomeKind.NO_SQL)
    return Answer(think, answer, block[1].removeprefix("\n"))


def _marks(form: str) -> tuple[str, ...]:
    if form not in FORMS:
        raise ValueError(f"an answer's form is {' or '.join(FORMS)}, not {form!r}")
    return _THINK + _ANSWER if form == "reasoning" else _ANSWER


def _between(text: str, opening: str, closing: str) -> str:
    """The text between two marks, without the one line end that `write` puts on each side."""
    inner = text[text.index(opening) + len(opening) : text.index(closing)]
    return inner.removeprefix("\n").removesuffix("\n")
