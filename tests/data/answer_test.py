from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.data import answer
from sqlr1_jax.data.answer import AnswerError

WELL_FORMED = "<think>\nwhy\n</think>\n<answer>\n```sql\nSELECT 1\n```\n</answer>"

pieces = [*"ab`'-<>;\n\r\t ", "```", "```sql", "<think>", "</think>", "<answer>", "</answer>", "é"]
text = st.lists(st.sampled_from(pieces), max_size=12).map("".join)


@given(reasoning=text, sql=text, answer_format=st.sampled_from(answer.FORMATS))
def test_reading_undoes_writing(reasoning: str, sql: str, answer_format: str) -> None:
    try:
        written = answer.write(reasoning, sql, answer_format)
    except AnswerError:
        tags = ("<think>", "</think>", "<answer>", "</answer>", "```")
        assert not sql.strip() or any(tag in reasoning + sql for tag in tags)
        return
    parsed = answer.read(written, answer_format)
    assert (parsed.sql, parsed.problem) == (sql, None)
    assert parsed.think == (reasoning if answer_format == "reasoning" else "")


def test_both_formats_are_exact() -> None:
    assert answer.write("why", "SELECT 1", "reasoning") == WELL_FORMED
    assert answer.write("why", "SELECT 1", "direct") == "<answer>\n```sql\nSELECT 1\n```\n</answer>"
    parsed = answer.read(WELL_FORMED, "reasoning")
    assert (parsed.think, parsed.answer, parsed.sql) == ("why", "```sql\nSELECT 1\n```", "SELECT 1")


def test_defect_02_comments_and_line_breaks_of_the_query_are_kept() -> None:
    sql = "SELECT name -- the full one\nFROM  t\n\nWHERE x = 'a  b' /* two\nlines */;"
    parsed = answer.read(answer.write("r", sql, "reasoning"), "reasoning").sql
    assert parsed == sql
    connection = sqlite3.connect(":memory:")
    connection.executescript("CREATE TABLE t (name, x); INSERT INTO t VALUES ('kept', 'a  b'), ('other', 'a b')")
    assert connection.execute(parsed).fetchall() == [("kept",)]
    connection.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (WELL_FORMED.replace("<think>", ""), "bad_format"),
        (WELL_FORMED.replace("</think>", ""), "bad_format"),
        (WELL_FORMED.replace("</answer>", ""), "bad_format"),
        (WELL_FORMED + "</answer>", "bad_format"),
        ("<think>" + WELL_FORMED, "bad_format"),
        ("<answer>\n```sql\nSELECT 1\n```\n</answer>\n<think>\nwhy\n</think>", "bad_format"),
        ("</think>why<think><answer>```sql\nSELECT 1\n```</answer>", "bad_format"),
        ("```sql\nSELECT 1\n```", "bad_format"),
        ("", "bad_format"),
        (WELL_FORMED.replace("```sql", "```"), "no_sql"),
        (WELL_FORMED.replace("```sql", "```sqlite"), "no_sql"),
        (WELL_FORMED.replace("SELECT 1", " \n"), "no_sql"),
        (WELL_FORMED.replace("\n```\n", "\n"), "no_sql"),
        ("<think>```sql\nSELECT 1\n```</think><answer>SELECT 1</answer>", "no_sql"),
    ],
)
def test_read_reports_why_there_is_no_sql(text: str, problem: str) -> None:
    parsed = answer.read(text, "reasoning")
    assert (parsed.sql, parsed.problem) == (None, problem)


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        (WELL_FORMED + "\nanything", "SELECT 1"),
        ("so: " + WELL_FORMED, "SELECT 1"),
        (WELL_FORMED.replace("why", "```sql\nSELECT 2\n```"), "SELECT 1"),
        ("<think></think><answer>```sql\nSELECT 1;```</answer>", "SELECT 1;"),
        ("<think>a</think><answer>here:\n```sql\nSELECT 1\n```\nand\n```sql\nSELECT 2\n```</answer>", "SELECT 1"),
        (WELL_FORMED.replace("SELECT 1", "SELECT '```'"), "SELECT '```'"),
    ],
)
def test_read_accepts_text_around_the_answer_and_reads_the_first_block(text: str, sql: str) -> None:
    parsed = answer.read(text, "reasoning")
    assert (parsed.sql, parsed.problem) == (sql, None)


def test_the_direct_format_needs_no_reasoning() -> None:
    direct = "<answer>\n```sql\nSELECT 1\n```\n</answer>"
    assert answer.read(direct, "direct").sql == "SELECT 1"
    assert answer.read(direct, "reasoning").problem == "bad_format"
    assert answer.read(WELL_FORMED, "direct").sql == "SELECT 1"
    assert answer.read("```sql\nSELECT 1\n```", "direct").problem == "bad_format"


def test_write_rejects_text_that_read_would_not_return() -> None:
    for sql in ("SELECT '</answer>'", "SELECT 1\n```\nx", " \n"):
        with pytest.raises(AnswerError, match="cannot be written"):
            answer.write("why", sql, "reasoning")
    with pytest.raises(AnswerError):
        answer.write("first <answer>", "SELECT 1", "reasoning")
    with pytest.raises(ValueError, match="not 'chat'"):
        answer.read(WELL_FORMED, "chat")


def test_every_real_answer_can_be_written(shared_data: Path) -> None:
    records = json.loads((shared_data / "synsql_sample" / "data.json").read_text())
    refused = 0
    for record in records:
        try:
            parsed = answer.read(answer.write(record["cot"], record["sql"], "reasoning"), "reasoning")
        except AnswerError:
            refused += 1
            continue
        assert (parsed.think, parsed.sql) == (record["cot"], record["sql"])
    assert refused == 0
