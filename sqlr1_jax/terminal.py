"""Text that is safe to print to a terminal. Imports nothing of the package."""

from __future__ import annotations

import logging
import re
import unicodedata

# Controls that show text in another order than it has: bidi embeddings, overrides and isolates.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BREAKS = re.compile(r"[\t\n\x0b\x0c\r\x1c-\x1e\x85\u2028\u2029]+")


def printable(text: str) -> str:
    """The text without characters that move a terminal's cursor, change its state or reorder the text around them.

    Newlines and tabs stay. Lone surrogates, which cannot be encoded, become U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_printable_character, text))


def _printable_character(char: str) -> str:
    if char in "\n\t":
        return char
    category = unicodedata.category(char)
    if category == "Cs":
        return "\ufffd"
    return "" if category == "Cc" or char in _REORDERING else char


def one_line(text: str) -> str:
    """The text on one line: a blank for each run of line breaks and tabs; otherwise as `printable`."""
    return printable(_BREAKS.sub(" ", text))


class PrintableFormatter(logging.Formatter):
    """Formats log records as printable text: they quote names, records and SQL of files."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        return printable(super().format(record))


def display_width(text: str) -> int:
    """The number of terminal columns that printable text takes: two for wide characters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def _character_width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
