from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlglot import tokenize

from sqlr1_jax.data import answer
from sqlr1_jax.data.answer import AnswerError

BLOCK = "```sql\nSELECT 1\n```"
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
    assert answer.write("why", "SELECT 1", "direct") == "```sql\nSELECT 1\n```"
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


def test_a_direct_answer_is_one_block_and_nothing_else() -> None:
    direct = "```sql\nSELECT 1\n```"
    for text in (direct, f"\n {direct}\n\n", "```sql\nSELECT 1```"):
        parsed = answer.read(text, "direct")
        assert (parsed.think, parsed.sql, parsed.well_formed) == ("", "SELECT 1", True)
    assert answer.read(direct, "direct").answer == direct
    assert answer.read(direct, "reasoning").problem == "bad_format"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"<answer>\n{BLOCK}\n</answer>", "bad_format"),
        (WELL_FORMED, "bad_format"),
        (f"The query:\n{BLOCK}", "bad_format"),
        (f"{BLOCK}\nIt counts.", "bad_format"),
        (f"{BLOCK}\n{BLOCK}", "bad_format"),
        (BLOCK.replace("sql", ""), "bad_format"),
        (BLOCK.replace("\n```", ""), "bad_format"),
        ("SELECT 1", "bad_format"),
        ("", "bad_format"),
        ("```sql\n \n```", "no_sql"),
    ],
)
def test_text_around_the_block_breaks_the_direct_form(text: str, problem: str) -> None:
    parsed = answer.read(text, "direct")
    assert (parsed.sql, parsed.problem, parsed.well_formed) == (None, problem, False)


OPEN = WELL_FORMED.removesuffix("\n</answer>")


def test_an_answer_may_lack_its_last_tag_only_if_the_setting_allows_it() -> None:
    assert answer.read(OPEN, "reasoning").problem == "bad_format"
    assert answer.read(OPEN, "reasoning", open_answer=True) == answer.read(f"{OPEN}\n</answer>", "reasoning")
    assert answer.read(WELL_FORMED, "reasoning", open_answer=True) == answer.read(WELL_FORMED, "reasoning")
    for text, problem in [
        (OPEN.removesuffix("\n```"), "no_sql"),  # cut off within the block
        (OPEN.replace("</think>", ""), "bad_format"),
        (OPEN.replace("<answer>", ""), "bad_format"),
        (f"{WELL_FORMED}</answer>", "bad_format"),
    ]:
        assert answer.read(text, "reasoning", open_answer=True).problem == problem


def test_an_opened_reply_is_continued_after_the_tag() -> None:
    for opening in ("<think>\n", "Let me see. \n<think>"):
        continued = answer.after_opening(WELL_FORMED, opening)
        assert answer.read(opening + continued, "reasoning") == answer.read(WELL_FORMED, "reasoning")
    assert answer.after_opening(WELL_FORMED, "") == WELL_FORMED
    assert answer.after_opening(BLOCK, "<think>\n") == BLOCK


HELD = "SELECT a -- b\n  FROM  t"
FORMS = {
    "reasoning form": (f"<think>\nwhy\n</think>\n<answer>\n```sql\n{HELD}\n```\n</answer>", HELD),
    "direct form": (f"```sql\n{HELD}\n```", HELD),
    "upper case": (f"```SQL\n{HELD}\n```", HELD),
    "sqlite": (f"```sqlite\n{HELD}\n```", HELD),
    "SQLite after a blank": (f"``` SQLite\n{HELD}\n```", HELD),
    "no language": (f"```\n{HELD}\n```", HELD),
    "no language, with a comment": ("```\n-- all\n/* of */ select 1\n```", "-- all\n/* of */ select 1"),
    "no language, in brackets": ("```\n(SELECT 1)\n```", "(SELECT 1)"),
    "no language, WITH": ("```\nWITH x (a) AS (SELECT 1) SELECT 2\n```", "WITH x (a) AS (SELECT 1) SELECT 2"),
    "no language, not a query": ("```\na | b\n1 | 2\n```", None),
    "no line end": ("```sql SELECT 1 ```", "SELECT 1"),
    "no line end and no language": ("So ```SELECT 1``` it is.", "SELECT 1"),
    "fence behind the query": ("```sql\nSELECT 1;```\nThis counts ```x```.", "SELECT 1;"),
    "unclosed": (f"Sure:\n```sql\n{HELD}", HELD),
    "unclosed before a tag": ("<answer>```sql\nSELECT 1\n</answer>", "SELECT 1"),
    "unclosed before another block": ("```sql\nSELECT 1\n```sql\nSELECT 2\n```", "SELECT 2"),
    "without </answer>": (f"<think>why</think><answer>\n```sql\n{HELD}\n```", HELD),
    "without <think>": (f"why\n</think>\n```sql\n{HELD}\n```", HELD),
    "text around": (f"The query is\n\n```sql\n{HELD}\n```\n\nIt reads `t`.", HELD),
    "the last of several": ("```sql\nSELECT 1\n```\nBetter:\n```\nSELECT 2\n```", "SELECT 2"),
    "before another language": ("```sql\nSELECT 1\n```\n```python\nSELECT = 2\n```", "SELECT 1"),
    "another language": ("```python\nSELECT 1\n```", None),
    "json": ('```json\n{"sql": "SELECT 1"}\n```', None),
    "empty block before": ("```sql\n\n```\n```sql\nSELECT 1\n```", "SELECT 1"),
    "empty block": ("```sql\n```", None),
    "sql in the thinking too": ("<think>```sql\nSELECT 2\n```</think>```sql\nSELECT 1\n```", "SELECT 1"),
    "block in the thinking, statement behind": ("<think>```sql\nSELECT 2\n```</think>\nSELECT 1", "SELECT 1"),
    "unclosed thinking": ("<think>\nI try\n```sql\nSELECT 1\n```\nand", "SELECT 1"),
    "unclosed thinking without a block": ("<think>\nSELECT 1", None),
    "block only in the thinking": ("<think>```sql\nSELECT 1\n```</think>As above.", "SELECT 1"),
    "block before the thinking": ("```sql\nSELECT 1\n```<think>is it right?", "SELECT 1"),
    "bare": (HELD, HELD),
    "bare in the answer tags": ("<think>why</think><answer>SELECT 1</answer>", "SELECT 1"),
    "bare with a semicolon": ("SELECT 1 ;\nThis counts.", "SELECT 1 ;"),
    "bare before an empty line": ("It is:\n  select a\nfrom t\n \nThis counts.", "select a\nfrom t"),
    "bare union": ("SELECT 1\nUNION\nSELECT 2", "SELECT 1\nUNION\nSELECT 2"),
    "bare WITH": ("WITH x AS (\nSELECT 1\n)\nSELECT * FROM x;", "WITH x AS (\nSELECT 1\n)\nSELECT * FROM x;"),
    "prose": ("With this schema, we select the name from t.", None),
    "a fence in a string": ("```sql\nSELECT '```'\n```", "SELECT '```'"),
    "a semicolon in a string": ("SELECT ';' || a\nFROM t", "SELECT ';' || a\nFROM t"),
    "nothing": ("", None),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_lenient_reading_finds_the_sql_of_every_form(form: str) -> None:
    text, sql = FORMS[form]
    assert answer.find_sql(text) == sql
    for answer_format in answer.FORMATS:
        parsed = answer.read_lenient(text, answer_format)
        assert (parsed.sql, parsed.problem) == (sql, None if sql else "no_sql")
        assert parsed.well_formed == (answer.read(text, answer_format).problem is None)


@pytest.mark.parametrize(
    ("text", "think", "rest"),
    [
        ("<think>\nwhy\n</think>\nSELECT 1", "why", "\nSELECT 1"),
        ("Well. <think>why</think>SELECT 1", "why", "SELECT 1"),
        ("why\n</think>SELECT 1", "why", "SELECT 1"),
        ("<think>why", "why", ""),
        ("SELECT 1", "", "SELECT 1"),
    ],
)
def test_the_lenient_reading_separates_thinking_from_the_answer(text: str, think: str, rest: str) -> None:
    parsed = answer.read_lenient(text, "reasoning")
    assert (parsed.think, parsed.answer) == (think, rest)


@given(reasoning=text, sql=text, answer_format=st.sampled_from(answer.FORMATS))
def test_both_readings_find_the_same_sql_in_a_well_formed_answer(reasoning: str, sql: str, answer_format: str) -> None:
    assume("```" not in sql)
    try:
        written = answer.write(reasoning, sql, answer_format)
    except AnswerError:
        return
    parsed = answer.read_lenient(written, answer_format)
    assert (parsed.sql, parsed.well_formed) == (sql.strip(), True)


@given(text=st.lists(st.sampled_from([*pieces, "SELECT 1", "WITH x AS (", "--", "/*", "*/", "\n\n"]), max_size=20))
def test_the_lenient_reading_returns_a_part_of_the_text(text: list[str]) -> None:
    sql = answer.find_sql("".join(text))
    assert sql is None or (sql == sql.strip() != "" and sql in "".join(text))


def test_the_lenient_reading_takes_linear_time() -> None:
    start = time.perf_counter()
    for piece in ("/* a */ ", "```\n", "```sql\n", "WITH x\n", "(", "SELECT\n", "<think>", "-- a\n"):
        answer.find_sql("```\n" + piece * 5000)
        answer.find_sql(piece * 5000)
    assert time.perf_counter() - start < 5


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


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("The query is: SELECT a FROM b;", "SELECT a FROM b"),
        ("**Answer:** SELECT a FROM b", "SELECT a FROM b"),
        ("Use `SELECT a FROM b` for this.", "SELECT a FROM b"),
        ("```mysql\nSELECT 1\n```", "SELECT 1"),
        ("```SQL query\nSELECT 1\n```", "SELECT 1"),
        ("```sql SELECT a\nFROM b\n```", "SELECT a\nFROM b"),
        ("Select the right table first.\nSELECT 1", "SELECT 1"),
        ("Select the right table first.", None),
        ("With this schema there is no answer.", None),
    ],
)
def test_sql_is_found_within_prose_and_prose_is_not_sql(text: str, sql: str | None) -> None:
    assert answer.find_sql(text) == sql


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("```sql\nSELECT 1\n```", True),
        ("Here it is:\n```\nSELECT 1\n```\nIt counts.", True),
        ("Here it is:\n```\n", False),
        ("```sql\nSELECT '```'", False),
        ("SELECT 1", False),
    ],
)
def test_a_block_is_closed_by_its_second_fence(text: str, closed: bool) -> None:
    assert answer.block_is_closed(text) == closed


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT name ,  count(*) FROM pets WHERE age  >  3", "SELECT name, count(*) FROM pets WHERE age > 3"),
        ("SELECT a\n  , b\nFROM\tt", "SELECT a\n  , b\nFROM t"),
        ("SELECT 'it''s  ,  it' ,  \"a  b\"", "SELECT 'it''s  ,  it', \"a  b\""),
        (
            "SELECT [a  b] ,  `c  d` --  not ,  this\n FROM t /*  nor ,  that */",
            "SELECT [a  b], `c  d` --  not ,  this\n FROM t /*  nor ,  that */",
        ),
    ],
)
def test_padding_is_taken_from_between_tokens_only(sql: str, expected: str) -> None:
    assert answer.without_padding(sql) == expected


def test_a_query_of_spider_without_padding_has_the_same_tokens(shared_data: Path) -> None:
    records = json.loads((shared_data / "spider_train" / "train_spider.json").read_text())
    queries = {record["query"] for record in records}
    padded = [query for query in queries if answer.without_padding(query) != query]
    assert len(padded) > 1000
    for query in padded:
        before, after = (tokenize(sql, dialect="sqlite") for sql in (query, answer.without_padding(query)))
        assert [(token.token_type, token.text) for token in before] == [(t.token_type, t.text) for t in after], query
