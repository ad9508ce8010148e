from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from sqlr1_jax import ask, ask_output, config, prompt_metadata
from sqlr1_jax.data import answer
from sqlr1_jax.model import huggingface, lora, peft_folder, tokenizer
from sqlr1_jax.sql.executor import Executor
from testing import tiny_models

pytestmark = pytest.mark.usefixtures("compiles_fast")

RED = "SELECT code, age FROM dogs WHERE color = 'red'"
TABLE = "code | age\n-----+----\n  10 |   3\n  11 |   5\n(2 rows)"


def _said(sql: str, reasoning: str = "show code in dogs") -> str:
    return answer.write(reasoning, sql, "reasoning")


@pytest.fixture
def reply(pets: Path, executor: Executor) -> Callable[..., ask.Reply]:
    """The reply on `pets` to a model that says the given texts."""
    return lambda *texts: ask.reply_of(texts, "reasoning", executor, pets)


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a model with random weights, whose answers have 16 tokens."""
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    count = tokenizer.count_tokens(folder / "tokenizer")
    shape = dataclasses.replace(tiny_models.MODEL, num_layers=1, vocab_size=count, num_tokens=count)
    huggingface.save_model(folder, tiny_models.random_params(shape), shape, folder / "tokenizer")
    settings = config.GrpoConfig(sampling=config.SamplingConfig(max_tokens=16))
    prompt_metadata.write(folder, config.Config(grpo=settings), "grpo, step 1")
    return folder


class ScriptedAsker:
    """Stands in for `ask.Asker`: answers each question with the texts that `answers` has for it."""

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
    ) -> ask.Reply:
        texts = self.answers[question]
        for piece in texts[0].splitlines(keepends=True) if on_text else ():
            on_text(piece)  # type: ignore[misc]
        for count in range(1, len(texts) + 1) if on_finished else ():
            on_finished(count)  # type: ignore[misc]
        if not texts[0]:
            raise config.ConfigError("the schema is too long")
        return ask.reply_of(texts, "reasoning", executor, database)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pets: Path) -> Callable[..., Any]:
    """Runs the command with a scripted model; returns its exit status, standard output and standard error."""

    def run_command(answers: dict[str, Sequence[str]], *arguments: str, lines: str = "") -> tuple[Any, str, str]:
        monkeypatch.setattr(ask, "Asker", type("Asker", (ScriptedAsker,), {"answers": answers}))
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        try:
            ask.main([f"--model={pets}", f"--database={pets}", *arguments])
            status: Any = None
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run_command


def test_an_answer_shows_reasoning_sql_and_rows(reply: Callable[..., ask.Reply]) -> None:
    assert ask_output.show(reply(_said(RED))) == f"show code in dogs\n\n{RED}\n\n{TABLE}"


def test_the_commonest_result_answers_and_failures_do_not_vote(reply: Callable[..., ask.Reply]) -> None:
    same = RED.replace("age", "age + 0")
    found = reply(_said("SELECT 1"), _said("SELECT"), _said(RED), "lost", _said(same))
    assert found.answer.sql == RED
    assert (found.agreed, found.candidates) == (2, 5)
    assert ask_output.show(found).endswith("(2 rows)\n\n2 of 5 candidates gave this result.")


def test_failing_sql_is_shown_with_sqlites_message(reply: Callable[..., ask.Reply]) -> None:
    found = reply(_said("SELECT fur FROM dogs"))
    assert found.outcome.kind == "syntax_error"
    assert ask_output.show(found).endswith("SELECT fur FROM dogs\n\nsyntax error: no such column: fur")


def test_a_statement_that_writes_is_denied_and_leaves_the_file_unchanged(
    reply: Callable[..., ask.Reply], pets: Path
) -> None:
    before = pets.read_bytes()
    assert reply(_said("DELETE FROM dogs")).outcome.kind == "denied"
    assert pets.read_bytes() == before


def test_an_answer_without_sql_is_shown_whole(reply: Callable[..., ask.Reply]) -> None:
    shown = ask_output.show(reply("I do not know."))
    assert shown == "The model's answer holds no SQL (no_sql):\n\nI do not know."


def test_sql_in_another_form_runs(reply: Callable[..., ask.Reply]) -> None:
    found = reply(f"Here it is:\n```sql\n{RED}\n```\nHope it helps.")
    assert (found.answer.sql, found.answer.well_formed, found.outcome.row_count) == (RED, False, 2)
    assert "(the answer does not keep the form that the prompt asks for)" in ask_output.show(found)


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


def test_the_pieces_are_the_answer_and_end_before_it(model: Path, pets: Path) -> None:
    pieces: list[str] = []
    finished: list[int] = []
    asker = ask.Asker(model)
    texts = asker.sample(pets, "How many dogs are red?", on_text=pieces.append, on_finished=finished.append)
    assert "".join(pieces) == texts[0]
    assert len(pieces) > 1
    assert finished == [1]
    assert asker.sample(pets, "How many dogs are red?") == texts


def test_a_second_question_compiles_nothing(model: Path, pets: Path) -> None:
    asker = ask.Asker(model)
    asker.sample(pets, "How many dogs are red?")
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        asker.sample(pets, "Which colors do the dogs of owners in town have?")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_an_adapter_answers_as_the_model_that_it_is_merged_into(model: Path, pets: Path, tmp_path: Path) -> None:
    shape = dataclasses.replace(huggingface.config_from_folder(model), lora_rank=2, lora_alpha=40.0)
    params = huggingface.load_params(model, shape) | {lora.KEY: tiny_models.random_params(shape)[lora.KEY]}
    peft_folder.save(tmp_path / "adapter", params[lora.KEY], shape, str(model))
    merged = shutil.copytree(model, tmp_path / "merged")
    huggingface.save_model(merged, params, shape, model / "tokenizer")
    question = "How many dogs are red?"
    plain, expected = (ask.Asker(folder).sample(pets, question) for folder in (model, merged))
    assert ask.Asker(model, adapter=str(tmp_path / "adapter")).sample(pets, question) == expected != plain


def test_an_adapters_own_prompt_settings_come_before_the_models(model: Path, tmp_path: Path) -> None:
    data = dataclasses.replace(config.DataConfig(), form="direct", schema="fixed")
    prompt_metadata.write(tmp_path, dataclasses.replace(config.Config(), data=data), "grpo, step 3")
    assert prompt_metadata.read(tmp_path, model)[0].schema == "fixed"
    assert prompt_metadata.read(tmp_path / "none", model) == prompt_metadata.read(model)


def test_broken_weights_are_an_error_of_the_first_question(model: Path, pets: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SystemExit, match=r"has no \*\.safetensors file"):
        ask.main([f"--model={tmp_path}", f"--database={pets}", "How many?"])


def test_a_missing_database_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.sqlite does not exist"):
        ask.main([f"--model={tmp_path}", f"--database={tmp_path / 'nowhere.sqlite'}", "How many?"])


def test_a_missing_model_is_named(tmp_path: Path, pets: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: {tmp_path} holds no model: no config.json"):
        ask.main([f"--model={tmp_path}", f"--database={pets}", "How many?"])


def test_fewer_than_one_vote_is_refused_before_the_model_is_loaded(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: --votes is 0; it must be at least 1\."):
        ask.main([f"--model={tmp_path}", f"--database={pets}", "--votes=0", "How many dogs?"])
