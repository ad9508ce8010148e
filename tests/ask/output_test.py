from __future__ import annotations

import json
from collections.abc import Sequence

from sqlr1_jax.ask import asker, output
from sqlr1_jax.data import answer
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind


def _reply(text: str, outcome: Outcome, form: str = "direct") -> asker.Reply:
    return asker.Reply(text, answer.read_lenient(text, form), outcome, 1, 1)


def _decode_bytes(ids: Sequence[int]) -> str:
    """A tokenizer with one token per byte."""
    return bytes(ids).decode(errors="replace")


def test_a_stream_writes_each_piece_once_and_whole_characters() -> None:
    pieces: list[str] = []
    stream = output.TextStream(_decode_bytes, pieces.append, opening="<think>")
    ids = list("aé🐶b".encode())
    for end in range(len(ids) + 1):
        stream.update(ids[:end])
    stream.finish(ids)
    assert pieces == ["<think>", "a", "é", "🐶", "b"]


def test_a_stream_ends_with_what_it_held_back() -> None:
    pieces: list[str] = []
    stream = output.TextStream(_decode_bytes, pieces.append)
    ids = list("aé".encode())[:-1]
    stream.update(ids)
    assert pieces == ["a"]
    stream.finish(ids)
    assert pieces == ["a", "\ufffd"]


def test_control_characters_of_answer_and_cells_are_not_printed() -> None:
    outcome = Outcome(
        OutcomeKind.OK, rows=(("a\x1b]0;title\x07b",), ("two\r\nlines",)), columns=("x\x1b",), row_count=2
    )
    shown = output.show(_reply("```sql\nSELECT '\x1b[2J'\n```", outcome))
    assert shown == "SELECT '[2J'\n\nx\n---------\na]0;titleb\ntwo lines\n(2 rows)".replace("-" * 9, "-" * 10)


def test_a_long_result_says_how_long() -> None:
    outcome = Outcome(OutcomeKind.OK, rows=((None, "a"), (2.5, "b")), columns=("x", "name"), row_count=900)
    assert output.table(outcome) == "x    | name\n-----+-----\nNULL | a\n2.5  | b\n(900 rows, the first 2 shown)"


def test_a_wide_result_shows_its_first_columns() -> None:
    names = tuple(f"c{i}" for i in range(60))
    outcome = Outcome(OutcomeKind.OK, rows=(tuple(range(50)),), columns=names, row_count=1)
    header, _, row, size = output.table(outcome).split("\n")
    assert [name.strip() for name in header.split("|")] == [f"c{i}" for i in range(50)]
    assert [cell.strip() for cell in row.split("|")] == [str(i) for i in range(50)]
    assert size == "(1 row, the first 50 of 60 columns shown)"
    no_rows = output.table(Outcome(OutcomeKind.OK, columns=names)).split("\n")
    assert no_rows[0].endswith("| c49")
    assert no_rows[2] == "(0 rows, the first 50 of 60 columns shown)"
    found = json.loads(output.as_json(_reply("SELECT 1", outcome)))
    assert (len(found["columns"]), found["column_count"], len(found["rows"][0])) == (50, 60, 50)


def test_columns_are_aligned_by_the_width_of_their_characters() -> None:
    outcome = Outcome(OutcomeKind.OK, rows=(("日本", "x"), ("e\u0301", "y")), columns=("a", "b"), row_count=2)
    assert output.table(outcome) == "a    | b\n-----+--\n日本 | x\ne\u0301    | y\n(2 rows)"


def test_names_and_cells_stay_on_one_line_of_bounded_length() -> None:
    name = "'a\x85b\u2028c' || " + "x" * 500
    outcome = Outcome(OutcomeKind.OK, rows=(("two\x0blines\u202e",),), columns=(name,), row_count=1)
    header, _, row, _ = output.table(outcome).split("\n")
    assert len(header.splitlines()) == len(row.splitlines()) == 1
    assert (len(header), row) == (201, "two lines")


def test_an_empty_result_keeps_its_columns() -> None:
    assert output.table(Outcome(OutcomeKind.OK, columns=("x", "name"))) == "x | name\n--+-----\n(0 rows)"


def test_an_answer_in_another_form_says_so() -> None:
    outcome = Outcome(OutcomeKind.OK, rows=((1,),), columns=("1",), row_count=1)
    form = "(the answer does not keep the form that the prompt asks for)"
    assert output.show(_reply("SELECT 1", outcome)) == f"SELECT 1\n\n{form}\n\n1\n-\n1\n(1 row)"
    assert form not in output.show(_reply("```sql\nSELECT 1\n```", outcome))
    assert form in output.show(_reply("```sql\nSELECT 1\n```", outcome, form="reasoning"))


def test_what_was_streamed_is_not_repeated() -> None:
    outcome = Outcome(OutcomeKind.OK, rows=((1,),), columns=("1",), row_count=1)
    assert output.show(_reply("```sql\nSELECT 1\n```", outcome), streamed=True) == "1\n-\n1\n(1 row)"
    no_sql = _reply("I do not know.", Outcome(OutcomeKind.NO_SQL))
    assert output.show(no_sql, streamed=True) == "The model's answer holds no SQL (no_sql)."


def test_json_has_null_numbers_and_text() -> None:
    rows = ((None, 2.5, "x'0aff'"), (1, 2, "\x1b"))
    outcome = Outcome(OutcomeKind.OK, rows=rows, columns=("a", "b", "c"), row_count=7)
    line = output.as_json(_reply("SELECT é", outcome))
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line) == {
        "sql": "SELECT é",
        "columns": ["a", "b", "c"],
        "column_count": 3,
        "rows": [[None, 2.5, "x'0aff'"], [1, 2, "\x1b"]],
        "row_count": 7,
        "outcome": "ok",
        "message": "",
        "well_formed": False,
        "text": "SELECT é",
        "votes": {"agreed": 1, "candidates": 1},
    }
