from __future__ import annotations

import io
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import terminal


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("a\r\x00\x07\x7f\x9bb", "ab"),
        ("é ☃ 👩\u200d💻", "é ☃ 👩\u200d💻"),
        ("DROP \u202eelbat\u202c", "DROP elbat"),
        ("bad \udcff", "bad \ufffd"),
    ],
)
def test_control_characters_are_not_printed(text: str, printed: str) -> None:
    assert terminal.printable(text) == printed


@given(st.text(st.characters(codec=None)))
def test_printable_text_can_be_written_and_controls_nothing(text: str) -> None:
    shown = terminal.printable(text)
    shown.encode()
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in shown if char not in "\n\t")
    assert terminal.printable(shown) == shown
    assert len(terminal.one_line(text).splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "width"), [("", 0), ("abc", 3), ("日本", 4), ("e\u0301", 1), ("ﾊﾟ", 2), ("👩\u200d💻", 4)]
)
def test_width_is_in_columns_of_the_terminal(text: str, width: int) -> None:
    assert terminal.display_width(text) == width


def test_log_lines_are_printable() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(terminal.PrintableFormatter("%(message)s"))
    handler.handle(logging.makeLogRecord({"msg": "record %s left out", "args": ("\x1b[2Jx",)}))
    assert stream.getvalue() == "record [2Jx left out\n"
