from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.data import answer
from sqlr1_jax.data.answer import AnswerError

RIGHT = "<think>\nwhy\n</think>\n<answer>\n```sql\nSELECT 1\n```\n</answer>"

pieces = [*"ab`'-<>;\n\r\t ", "```", "```sql", "<think>", "</think>", "<answer>", "</answer>", "é"]
text = st.lists(st.sampled_from(pieces), max_size=12).map("".join)


@given(reasoning=text, sql=text, form=st.sampled_from(answer.FORMS))
def test_reading_undoes_writing(reasoning: str, sql: str, form: str) -> None:
    try:
        written = answer.write(reasoning, sql, form)
    except AnswerError:
        marks = ("<think>", "</think>", "<answer>", "</answer>", "```")
        assert not sql.strip() or any(mark in reasoning + sql for mark in marks)
        return
    said = answer.read(written, form)
    assert (said.sql, said.problem) == (sql, None)
    assert said.think == (reasoning if form == "reasoning" else "")


def test_both_forms_have_exactly_this_text() -> None:
    assert answer.write("why", "SELECT 1", "reasoning") == RIGHT
    assert answer.write("why", "SELECT 1", "direct") == "<answer>\n```sql\nSELECT 1\n```\n</answer>"
    said = answer.read(RIGHT, "reasoning")
    assert (said.think, said.answer, said.sql) == ("why", "```sql\nSELECT 1\n```", "SELECT 1")


def test_defect_02_comments_and_line_breaks_of_the_query_are_kept() -> None:
    sql = "SELECT name -- the full one\nFROM  t\n\nWHERE x = 'a  b' /* two\nlines */;"
    read = answer.read(answer.write("r", sql, "reasoning"), "reasoning").sql
    assert read == sql
    connection = sqlite3.connect(":memory:")
    connection.executescript("CREATE TABLE t (name, x); INSERT INTO t VALUES ('kept', 'a  b'), ('other', 'a b')")
    assert connection.execute(read).fetchall() == [("kept",)]
    connection.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (RIGHT.replace("<think>", ""), "bad_format"),
        (RIGHT.replace("</think>", ""), "bad_format"),
        (RIGHT.replace("</answer>", ""), "bad_format"),
        (RIGHT + "</answer>", "bad_format"),
        ("<think>" + RIGHT, "bad_format"),
        ("<answer>\n```sql\nSELECT 1\n```\n</answer>\n<think>\nwhy\n</think>", "bad_format"),
        ("</think>why<think><answer>```sql\nSELECT 1\n```</answer>", "bad_format"),
        ("```sql\nSELECT 1\n```", "bad_format"),
        ("", "bad_format"),
        (RIGHT.replace("```sql", "```"), "no_sql"),
        (RIGHT.replace("```sql", "```sqlite"), "no_sql"),
        (RIGHT.replace("SELECT 1", " \n"), "no_sql"),
        (RIGHT.replace("\n```\n", "\n"), "no_sql"),
        ("<think>```sql\nSELECT 1\n```</think><answer>SELECT 1</answer>", "no_sql"),
    ],
)
def test_malformed_answers_are_classified(text: str, problem: str) -> None:
    said = answer.read(text, "reasoning")
    assert (said.sql, said.problem) == (None, problem)


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        (RIGHT + "\nanything", "SELECT 1"),
        ("so: " + RIGHT, "SELECT 1"),
        (RIGHT.replace("why", "```sql\nSELECT 2\n```"), "SELECT 1"),
        ("<think></think><answer>```sql\nSELECT 1;```</answer>", "SELECT 1;"),
        ("<think>a</think><answer>here:\n```sql\nSELECT 1\n```\nand\n```sql\nSELECT 2\n```</answer>", "SELECT 1"),
        (RIGHT.replace("SELECT 1", "SELECT '```'"), "SELECT '```'"),
    ],
)
def test_lenient_cases_are_well_formed(text: str, sql: str) -> None:
    said = answer.read(text, "reasoning")
    assert (said.sql, said.problem) == (sql, None)


def test_the_direct_form_asks_for_no_reasoning() -> None:
    direct = "<answer>\n```sql\nSELECT 1\n```\n</answer>"
    assert answer.read(direct, "direct").sql == "SELECT 1"
    assert answer.read(direct, "reasoning").problem == "bad_format"
    assert answer.read(RIGHT, "direct").sql == "SELECT 1"
    assert answer.read("```sql\nSELECT 1\n```", "direct").problem == "bad_format"


def test_text_that_would_break_the_form_is_refused() -> None:
    for sql in ("SELECT '</answer>'", "SELECT 1\n```\nx", " \n"):
        with pytest.raises(AnswerError, match="cannot be written"):
            answer.write("why", sql, "reasoning")
    with pytest.raises(AnswerError):
        answer.write("first <answer>", "SELECT 1", "reasoning")
    with pytest.raises(ValueError, match="not 'chat'"):
        answer.read(RIGHT, "chat")


def test_every_real_answer_can_be_written(shared_data: Path) -> None:
    records = json.loads((shared_data / "synsql_sample" / "data.json").read_text())
    refused = 0
    for record in records:
        try:
            said = answer.read(answer.write(record["cot"], record["sql"], "reasoning"), "reasoning")
        except AnswerError:
            refused += 1
            continue
        assert (said.think, said.sql) == (record["cot"], record["sql"])
    assert refused == 0
