"""What `ask` prints: the answer's text while it is sampled, the table of rows, and the JSON object."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from sqlr1_jax.ask import Reply

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


def printable(text: str) -> str:
    """The text without control characters, which could move a terminal's cursor or change its state.

    Newlines and tabs stay.
    """
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


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
    """A result as aligned columns, numbers to the right, with the number of rows below."""
    header, cells = [_cell(name) for name in outcome.columns], [[_cell(cell) for cell in row] for row in outcome.rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [all(isinstance(value, int | float) for value in column) for column in zip(*outcome.rows, strict=True)]
    aligns = [str.rjust if is_number else str.ljust for is_number in right] or [str.ljust] * len(widths)
    lines = [
        " | ".join(align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True)).rstrip()
        for row in [header, *cells]
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    more = f", the first {len(cells)} shown" if outcome.row_count > len(cells) else ""
    return "\n".join([*lines, f"({outcome.row_count} row{'s' * (outcome.row_count != 1)}{more})"])


def _cell(value: object) -> str:
    """A cell's text on one line."""
    return "NULL" if value is None else printable(re.sub(r"[\n\r\t]+", " ", str(value)))


def as_json(reply: Reply) -> str:
    """The reply as one line of JSON. `rows` has the first of `row_count` rows; blobs are text such as x'0aff'."""
    outcome = reply.outcome
    return json.dumps(
        {
            "sql": reply.answer.sql,
            "columns": outcome.columns,
            "rows": outcome.rows,
            "row_count": outcome.row_count,
            "outcome": outcome.kind,
            "message": outcome.message,
            "well_formed": reply.answer.well_formed,
            "text": reply.text,
            "votes": {"agreed": reply.agreed, "candidates": reply.candidates},
        }
    )
