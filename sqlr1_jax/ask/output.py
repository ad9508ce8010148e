"""What `ask` prints: the answer's text while it is sampled, the table of rows, and the JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlr1_jax.sql.outcome import MAX_CHARACTERS_SHOWN, MAX_COLUMNS_SHOWN, Outcome, OutcomeKind
from sqlr1_jax.terminal import display_width, one_line, printable

if TYPE_CHECKING:
    from sqlr1_jax.ask.asker import Reply

Ids = Any  # token ids: a list, or an array of numpy
_INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


class TextStream:
    """Turns the tokens of one answer, as they come, into pieces of text that end between characters."""

    def __init__(self, decode: Callable[[Ids], str], write: Callable[[str], object], opening: str = "") -> None:
        """Writes nothing yet.

        Args:
          decode: the text of token ids.
          write: takes each piece.
          opening: what the prompt began the answer with.
        """
        self._decode, self._write, self._opening = decode, write, opening
        self._written = 0  # characters

    def update(self, ids: Ids) -> None:
        """Writes what is new; `ids` are all tokens so far. The bytes of an unfinished character are held back."""
        self._write_new(self._text(ids).rstrip(_INCOMPLETE))

    def finish(self, ids: Ids) -> None:
        """Writes the rest, once the answer has ended."""
        self._write_new(self._text(ids))

    def _text(self, ids: Ids) -> str:
        return self._opening + self._decode(ids)

    def _write_new(self, text: str) -> None:
        if len(text) > self._written:
            self._write(text[self._written :])
            self._written = len(text)


def show(reply: Reply, streamed: bool = False) -> str:
    """The reply as text for a terminal.

    Args:
      reply: the reply.
      streamed: whether the answer's text has been printed already; then reasoning and SQL are left out.
    """
    answer, outcome = reply.answer, reply.outcome
    if answer.sql is None:
        text = "" if streamed else f"\n\n{reply.text.strip()}"
        return printable(f"The model's answer holds no SQL ({outcome.kind}){':' if text else '.'}{text}")
    if outcome.kind == OutcomeKind.OK:
        result = table(outcome)
    else:
        result = f"{outcome.kind.replace('_', ' ')}: {outcome.message}"
    form = "" if answer.well_formed else "(the answer does not keep the form that the prompt asks for)"
    votes = f"{reply.agreed} of {reply.candidates} candidates gave this result." if reply.candidates > 1 else ""
    said = [] if streamed else [answer.think.strip(), answer.sql.strip()]
    return "\n\n".join(printable(part) for part in (*said, form, result, votes) if part)


def table(outcome: Outcome) -> str:
    """A result as aligned columns, numbers to the right, with the number of rows below.

    An outcome has only the first rows, and of these the first MAX_COLUMNS_SHOWN columns; the last line says so.
    """
    names = outcome.columns[:MAX_COLUMNS_SHOWN]
    columns = list(zip(*outcome.rows, strict=True)) or [()] * len(names)
    texts = [[_cell(cell) for cell in (name, *column)] for name, column in zip(names, columns, strict=True)]
    widths = [max(map(display_width, column)) for column in texts]
    right = [bool(column) and all(isinstance(cell, int | float) for cell in column) for column in columns]
    padded = [[_pad(cell, width, r) for cell in column] for column, width, r in zip(texts, widths, right, strict=True)]
    lines = [" | ".join(row).rstrip() for row in zip(*padded, strict=True)]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join([*lines, _size(outcome)])


def _size(outcome: Outcome) -> str:
    """How many rows the result has, and how many of its rows and columns are shown."""
    parts = [f"{outcome.row_count} row{'s' * (outcome.row_count != 1)}"]
    if outcome.row_count > len(outcome.rows):
        parts.append(f"the first {len(outcome.rows)} shown")
    if len(outcome.columns) > MAX_COLUMNS_SHOWN:
        parts.append(f"the first {MAX_COLUMNS_SHOWN} of {len(outcome.columns)} columns shown")
    return f"({', '.join(parts)})"


def _cell(value: object) -> str:
    """A cell's text on one line; a column's name may be a whole expression, so it is cut like a cell."""
    text = "NULL" if value is None else one_line(str(value))
    return text if len(text) <= MAX_CHARACTERS_SHOWN + 1 else f"{text[:MAX_CHARACTERS_SHOWN]}…"


def _pad(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - display_width(text))
    return blanks + text if right else text + blanks


def as_json(reply: Reply) -> str:
    """The reply as one line of JSON.

    `rows` has the first of `row_count` rows, and `columns` the names of their first cells: those shown of
    `column_count`. Blobs are text such as x'0aff'.
    """
    outcome = reply.outcome
    return json.dumps(
        {
            "sql": reply.answer.sql,
            "columns": outcome.columns[:MAX_COLUMNS_SHOWN],
            "column_count": len(outcome.columns),
            "rows": outcome.rows,
            "row_count": outcome.row_count,
            "outcome": outcome.kind,
            "message": outcome.message,
            "well_formed": reply.answer.well_formed,
            "text": reply.text,
            "votes": {"agreed": reply.agreed, "candidates": reply.candidates},
        }
    )
