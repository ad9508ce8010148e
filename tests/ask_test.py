from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sqlr1_jax import ask
from sqlr1_jax.data import answer
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

RED = "SELECT code, age FROM dogs WHERE color = 'red'"


def _said(sql: str, reasoning: str = "show code in dogs") -> str:
    return answer.write(reasoning, sql, "reasoning")


@pytest.fixture
def reply(pets: Path, executor: Executor) -> Callable[..., ask.Reply]:
    """The reply on `pets` to a model that says the given texts."""
    return lambda *texts: ask.reply_of(texts, "reasoning", executor, pets)


def test_an_answer_shows_reasoning_sql_and_rows(reply: Callable[..., ask.Reply]) -> None:
    assert ask.show(reply(_said(RED))) == (
        "show code in dogs\n\n" + RED + "\n\n"
        "code | age\n"
        "-----+----\n"
        "  10 |   3\n"
        "  11 |   5\n"
        "(2 rows)"
    )  # fmt: skip


def test_the_commonest_result_answers_and_failures_do_not_vote(reply: Callable[..., ask.Reply]) -> None:
    same = RED.replace("age", "age + 0")
    found = reply(_said("SELECT 1"), _said("SELECT"), _said(RED), "lost", _said(same))
    assert found.answer.sql == RED
    assert (found.agreed, found.candidates) == (2, 5)
    assert ask.show(found).endswith("(2 rows)\n\n2 of 5 candidates gave this result.")


def test_failing_sql_is_shown_with_sqlites_message(reply: Callable[..., ask.Reply]) -> None:
    found = reply(_said("SELECT fur FROM dogs"))
    assert found.outcome.kind == "syntax_error"
    assert ask.show(found).endswith("SELECT fur FROM dogs\n\nsyntax error: no such column: fur")


def test_a_statement_that_writes_is_denied_and_leaves_the_file_unchanged(
    reply: Callable[..., ask.Reply], pets: Path
) -> None:
    before = pets.read_bytes()
    assert reply(_said("DELETE FROM dogs")).outcome.kind == "denied"
    assert pets.read_bytes() == before


def test_an_answer_without_sql_is_shown_whole(reply: Callable[..., ask.Reply]) -> None:
    assert ask.show(reply("I do not know.")) == "The model's answer holds no SQL (bad_format):\n\nI do not know."


def test_a_long_result_says_how_long() -> None:
    outcome = Outcome(OutcomeKind.OK, rows=((None, "a"), (2.5, "b")), columns=("x", "name"), row_count=900)
    assert ask.table(outcome) == "x    | name\n-----+-----\nNULL | a\n2.5  | b\n(900 rows, the first 2 shown)"


def test_an_empty_result_keeps_its_columns() -> None:
    assert ask.table(Outcome(OutcomeKind.OK, columns=("x", "name"))) == "x | name\n--+-----\n(0 rows)"


def test_a_missing_database_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.sqlite does not exist"):
        ask.main([f"--model={tmp_path}", f"--database={tmp_path / 'nowhere.sqlite'}", "How many?"])


def test_a_missing_model_is_named(tmp_path: Path, pets: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: {tmp_path} holds no model: no config.json"):
        ask.main([f"--model={tmp_path}", f"--database={pets}", "How many?"])
