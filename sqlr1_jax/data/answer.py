"""Writes and parses the answer format of completions (docs/method.md, section 3).

Parsing recovers exactly what was written.

A reasoning answer is `<think>`, the reasoning, `</think>`, `<answer>`, a fenced `sql` block, `</answer>`. A direct
answer has only the part from `<answer>` on. The SQL between the fences is never changed: it is not stripped, not joined
to one line (a `--` comment ends with its line) and not cut at a semicolon.
"""

from __future__ import annotations

import dataclasses
import re

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql.outcome import OutcomeKind

FORMATS = ("reasoning", "direct")  # values of the setting data.form

_THINK = ("<think>", "</think>")
_ANSWER = ("<answer>", "</answer>")
# A block ends at a fence at the start of a line, or at a fence that ends the answer.
_SQL_BLOCK = re.compile(r"```sql(?=\s)(.*?)(?:\n[ \t]*```|```\s*\Z)", re.DOTALL)


class AnswerError(Sqlr1Error):
    """Reasoning or SQL that the format cannot hold, such as SQL with `</answer>` in it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A parsed completion. `sql` is None if and only if `problem` is set."""

    think: str  # the text between the think tags; "" in the direct format
    answer: str  # the text between the answer tags
    sql: str | None
    # BAD_FORMAT: a tag is missing, repeated or out of order. NO_SQL: there is no SQL block, or it is empty.
    problem: OutcomeKind | None = None


def write(reasoning: str, sql: str, answer_format: str) -> str:
    """The completion with this reasoning and SQL.

    Raises:
      AnswerError: `read` would not return the same reasoning and SQL.
      ValueError: there is no such format.
    """
    answer = f"<answer>\n```sql\n{sql}\n```\n</answer>"
    text = f"<think>\n{reasoning}\n</think>\n{answer}" if answer_format == "reasoning" else answer
    parsed = read(text, answer_format)
    if parsed.sql != sql or (answer_format == "reasoning" and parsed.think != reasoning):
        reason = parsed.problem or "it contains a tag or fence of the format"
        raise AnswerError(f"cannot be written as an answer ({reason}): {sql[:80]!r}")
    return text


def read(text: str, answer_format: str) -> Answer:
    """Parses a completion: it must have each tag once, in order, and an SQL block between the answer tags.

    Text outside the tags is allowed. If there are several SQL blocks, the first one counts.

    Raises:
      ValueError: there is no such format.
    """
    if answer_format not in FORMATS:
        raise ValueError(f"an answer's format is {' or '.join(FORMATS)}, not {answer_format!r}")
    tags = _THINK + _ANSWER if answer_format == "reasoning" else _ANSWER
    positions = [text.find(tag) for tag in tags]
    if any(text.count(tag) != 1 for tag in tags) or positions != sorted(positions):
        return Answer("", "", None, OutcomeKind.BAD_FORMAT)
    think = _between(text, *_THINK) if answer_format == "reasoning" else ""
    answer = _between(text, *_ANSWER)
    block = _SQL_BLOCK.search(answer)
    if block is None or not block[1].strip():
        return Answer(think, answer, None, OutcomeKind.NO_SQL)
    return Answer(think, answer, block[1].removeprefix("\n"))


def _between(text: str, opening: str, closing: str) -> str:
    """The text between two tags, without the one newline that `write` puts at each end."""
    inner = text[text.index(opening) + len(opening) : text.index(closing)]
    return inner.removeprefix("\n").removesuffix("\n")
