from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax import config
from sqlr1_jax.ask import __main__, asker
from sqlr1_jax.data import answer
from sqlr1_jax.sql.executor import Executor

RED = "SELECT code, age FROM dogs WHERE color = 'red'"
TABLE = "code | age\n-----+----\n  10 |   3\n  11 |   5\n(2 rows)"


def _said(sql: str, reasoning: str = "show code in dogs") -> str:
    return answer.write(reasoning, sql, "reasoning")


class ScriptedAsker:
    """Stands in for `asker.Asker`: answers each question with the texts that `answers` has for it."""

    answers: dict[str, Sequence[str]]

    def __init__(self, model: Path, votes: int = 1, prompt: str = "", form: str = "", adapter: str = "") -> None:
        self.asked: list[str] = []

    def ask(
        self,
        executor: Executor,
        database: Path,
        question: str,
        knowledge: str = "",
        on_text: Callable[[str], object] | None = None,
        on_finished: Callable[[int], object] | None = None,
    ) -> asker.Reply:
        texts = self.answers[question]
        for piece in texts[0].splitlines(keepends=True) if on_text else ():
            on_text(piece)  # type: ignore[misc]
        for count in range(1, len(texts) + 1) if on_finished else ():
            on_finished(count)  # type: ignore[misc]
        if not texts[0]:
            raise config.ConfigError("the schema is too long")
        return asker.reply_of(texts, "reasoning", executor, database)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pets: Path) -> Callable[..., Any]:
    """Runs the command with a scripted model; returns its exit status, standard output and standard error."""

    def run_command(answers: dict[str, Sequence[str]], *arguments: str, lines: str = "") -> tuple[Any, str, str]:
        monkeypatch.setattr(__main__, "Asker", type("Asker", (ScriptedAsker,), {"answers": answers}))
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        try:
            __main__.main([f"--model={pets}", f"--database={pets}", *arguments])
            status: Any = None
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run_command


def test_a_single_question_prints_one_answer(run: Callable[..., Any]) -> None:
    status, out, err = run({"Which?": [_said(RED)]}, "Which?")
    assert (status, out, err) == (False, f"show code in dogs\n\n{RED}\n\n{TABLE}\n", "")
    assert run({"Which?": [_said("SELECT fur FROM dogs")]}, "Which?")[0] == 1


def test_a_session_answers_each_line_and_streams_the_text(run: Callable[..., Any]) -> None:
    answers = {"Which?": [_said(RED)], "Long?": [""], "One?": [f"```sql\n{RED}\n```"]}
    status, out, err = run(answers, lines="Which?\n\nLong?\n  One?  \n\\q\nWhich?\n")
    form = "(the answer does not keep the form that the prompt asks for)"
    assert status is None
    assert out == (
        f"> {_said(RED)}\n\n{TABLE}\n\n"  # the answer as it was sampled, then the rows
        "> > \n"  # an empty line, and the question that fails
        f"> ```sql\n{RED}\n```\n\n{form}\n\n{TABLE}\n\n"
        "> "
    )
    assert err == "error: the schema is too long\n"


def test_a_session_ends_with_its_input(run: Callable[..., Any]) -> None:
    assert run({}, lines="") == (None, "> ", "")


def test_json_is_all_that_is_printed(run: Callable[..., Any]) -> None:
    status, out, err = run({"Which?": [_said(RED)]}, "--json", "Which?")
    assert (status, err) == (False, "")
    assert json.loads(out) == {
        "sql": RED,
        "columns": ["code", "age"],
        "column_count": 2,
        "rows": [[10, 3], [11, 5]],
        "row_count": 2,
        "outcome": "ok",
        "message": "",
        "well_formed": True,
        "text": _said(RED),
        "votes": {"agreed": 1, "candidates": 1},
    }
    status, out, _ = run({"Which?": ["no idea"]}, "--json", "Which?")
    assert status == 1
    assert (json.loads(out)["sql"], json.loads(out)["outcome"]) == (None, "no_sql")


def test_a_session_in_json_prints_one_object_per_line(run: Callable[..., Any]) -> None:
    _, out, _ = run({"Which?": [_said(RED)], "One?": [_said("SELECT 1")]}, "--json", lines="Which?\nOne?\n")
    assert [json.loads(line)["rows"] for line in out.splitlines()] == [[[10, 3], [11, 5]], [[1]]]
    _, out, _ = run({"Long?": [""], "One?": [_said("SELECT 1")]}, "--json", lines="Long?\nOne?\n")
    failed, answered = (json.loads(line) for line in out.splitlines())
    assert failed == {"error": "the schema is too long"} and answered["rows"] == [[1]]


def test_votes_stream_nothing_but_progress(run: Callable[..., Any]) -> None:
    _, out, err = run({"Which?": [_said(RED), _said("SELECT")]}, "--votes=2", lines="Which?\n")
    assert out == f"> show code in dogs\n\n{RED}\n\n{TABLE}\n\n1 of 2 candidates gave this result.\n\n> "
    assert err == "1 of 2 candidates\n2 of 2 candidates\n"
