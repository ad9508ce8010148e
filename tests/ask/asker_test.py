from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from sqlr1_jax import config, prompt_metadata
from sqlr1_jax.ask import asker as ask
from sqlr1_jax.ask import output
from sqlr1_jax.data import answer
from sqlr1_jax.model import huggingface, lora, peft_folder
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


def test_an_answer_shows_reasoning_sql_and_rows(reply: Callable[..., ask.Reply]) -> None:
    assert output.show(reply(_said(RED))) == f"show code in dogs\n\n{RED}\n\n{TABLE}"


def test_the_commonest_result_answers_and_failures_do_not_vote(reply: Callable[..., ask.Reply]) -> None:
    same = RED.replace("age", "age + 0")
    found = reply(_said("SELECT 1"), _said("SELECT"), _said(RED), "lost", _said(same))
    assert found.answer.sql == RED
    assert (found.agreed, found.candidates) == (2, 5)
    assert output.show(found).endswith("(2 rows)\n\n2 of 5 candidates gave this result.")


def test_failing_sql_is_shown_with_sqlites_message(reply: Callable[..., ask.Reply]) -> None:
    found = reply(_said("SELECT fur FROM dogs"))
    assert found.outcome.kind == "syntax_error"
    assert output.show(found).endswith("SELECT fur FROM dogs\n\nsyntax error: no such column: fur")


def test_a_statement_that_writes_is_denied_and_leaves_the_file_unchanged(
    reply: Callable[..., ask.Reply], pets: Path
) -> None:
    before = pets.read_bytes()
    assert reply(_said("DELETE FROM dogs")).outcome.kind == "denied"
    assert pets.read_bytes() == before


def test_an_answer_without_sql_is_shown_whole(reply: Callable[..., ask.Reply]) -> None:
    shown = output.show(reply("I do not know."))
    assert shown == "The model's answer holds no SQL (no_sql):\n\nI do not know."


def test_sql_in_another_form_runs(reply: Callable[..., ask.Reply]) -> None:
    found = reply(f"Here it is:\n```sql\n{RED}\n```\nHope it helps.")
    assert (found.answer.sql, found.answer.well_formed, found.outcome.row_count) == (RED, False, 2)
    assert "(the answer does not keep the form that the prompt asks for)" in output.show(found)


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
