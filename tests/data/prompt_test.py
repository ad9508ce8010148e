from __future__ import annotations

import dataclasses
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sqlr1_jax.data
from sqlr1_jax import config
from sqlr1_jax.data import example, prompt, schema
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import PromptRenderer
from sqlr1_jax.errors import ConfigError

QUESTION = "Which colors are there?"


def asked(database: Path, question: str = QUESTION, **more: Any) -> Example:
    values: dict[str, Any] = {"id": "7", "db_id": "pets", "sql": "", "database": database, "question": question}
    return Example(**values | more)


@pytest.fixture(scope="module")
def qwen(shared_data: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_data / "qwen2_5_tokenizer")


BRIEF = """\
<|im_start|>system
SQLite<|im_end|>
<|im_start|>user
- owners tag, owners city, owners `full name`
- dogs code, dogs color, dogs age, dogs keeper
- join dogs, owners on keeper = tag
Red is a color.
Which colors are there?<|im_end|>
<|im_start|>assistant
"""


def test_the_brief_prompt_has_exactly_this_text(pets: Path, tiny_tokenizer: Any) -> None:
    made = PromptRenderer(tiny_tokenizer, config.DataConfig()).render(asked(pets, knowledge=" Red is a color.\n"))
    assert made.text == BRIEF
    assert tiny_tokenizer.decode(made.ids) == BRIEF
    assert made.ids.dtype == np.int32
    assert (made.example_id, made.schema, made.trimmed, made.over_budget) == ("7", "qualified", False, False)


def test_full_instructions_show_the_answer_form(pets: Path, tiny_tokenizer: Any) -> None:
    for form, marks in (("reasoning", ["<think>", "</think>", "<answer>", "```sql"]), ("direct", ["<answer>"])):
        data = config.DataConfig(form=form, instructions="full", schema="fixed")
        text = PromptRenderer(tiny_tokenizer, data).render(asked(pets, knowledge="Red is a color.")).text
        assert all(text.count(mark) == 1 for mark in marks)
        assert ("<think>" in text) == (form == "reasoning")
        order = ["CREATE TABLE owners", "CREATE TABLE dogs", "Red is a color.", QUESTION, "assistant"]
        places = [text.index(part) for part in order]
        assert places == sorted(places)


def test_prompts_are_what_the_chat_template_makes(pets: Path, tiny_tokenizer: Any) -> None:
    for form in ("compact", "qualified", "fixed"):
        renderer = PromptRenderer(tiny_tokenizer, config.DataConfig(schema=form, instructions="full"))
        one = asked(pets, knowledge="Red.")
        text = tiny_tokenizer.apply_chat_template(
            renderer.messages(one, form), tokenize=False, add_generation_prompt=True
        )
        assert renderer.render(one).text == text


def test_defect_10_labels_of_the_data_never_reach_the_prompt(pets: Path, tiny_tokenizer: Any) -> None:
    """And training, evaluation and asking share one renderer: no other module applies a chat template."""
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig(instructions="full", schema="retrieved"))
    labels = ("complexity", "style", "family", "habit", "source", "reasoning", "sql", "id")
    labelled = asked(pets, spoiled=True, **{name: f"Highly Complex {name}" for name in labels})
    assert renderer.render(labelled).text == renderer.render(asked(pets)).text
    package = Path(sqlr1_jax.data.__file__).parents[1]
    calls = [path for path in package.rglob("*.py") if ".apply_chat_template(" in path.read_text()]
    assert [path.relative_to(package).as_posix() for path in calls] == ["data/prompt.py"]


questions = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("\n\r\t a(-?.;", max_size=6)


@given(question=questions.map(lambda text: f"{text}?"), knowledge=questions)
def test_any_two_questions_on_a_database_share_the_prefix(
    pets: Path, tiny_tokenizer: Any, question: str, knowledge: str
) -> None:
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig())
    first, made = renderer.render_many([asked(pets), asked(pets, question, knowledge=knowledge)])
    length = first.prefix_length
    assert tiny_tokenizer.decode(first.ids[:length]).endswith("- join dogs, owners on keeper = tag\n")
    asked_first = (knowledge.strip() or question.strip())[0]
    assert made.prefix_length == (0 if asked_first == "-" else length)  # this tokenizer joins "\n-"
    assert made.ids[: made.prefix_length].tolist() == first.ids[: made.prefix_length].tolist()
    assert made.ids.tolist() == tiny_tokenizer(made.text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("instructions", ["brief", "full"])
@pytest.mark.parametrize("form", ["compact", "qualified", "fixed"])
def test_real_prompts_share_their_schema(shared_data: Path, qwen: Any, form: str, instructions: str) -> None:
    examples = example.read_examples(f"spider:{shared_data}/spider_train")[::60]
    made = PromptRenderer(qwen, config.DataConfig(schema=form, instructions=instructions)).render_many(examples)
    by_database: dict[str, set[tuple[int, ...]]] = {}
    for one, source in zip(made, examples, strict=True):
        prefix = one.ids[: one.prefix_length]
        by_database.setdefault(source.db_id, set()).add(tuple(prefix.tolist()))
        assert one.ids.tolist() == qwen(one.text, add_special_tokens=False)["input_ids"]
        assert qwen.decode(prefix) == one.text[: len(qwen.decode(prefix))]
        rest = one.text[len(qwen.decode(prefix)) :]
        assert rest.startswith("Question:\n" if instructions == "full" else source.question.strip())
    assert len(by_database) > 50
    assert all(len(prefixes) == 1 for prefixes in by_database.values())


def test_a_token_across_the_schemas_end_is_not_shared(pets: Path, tiny_tokenizer: Any) -> None:
    """A tokenizer that joins the line end to what follows: the prefix ends before it."""

    class Joining:
        chat_template = "yes"

        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            return messages[1]["content"] + "|"

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[ord(t[-1]) for t in re.findall(r"\n?[^\n]|\n", text)] for text in texts]}

    made = PromptRenderer(Joining(), config.DataConfig()).render(asked(pets))
    assert "".join(map(chr, made.ids[: made.prefix_length])).endswith("- join dogs, owners on keeper = tag")
    assert chr(made.ids[made.prefix_length]) == QUESTION[0]


def test_retrieved_values_are_shown_and_nothing_is_shared(pets: Path, tiny_tokenizer: Any) -> None:
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig(schema="retrieved"))
    made = renderer.render(asked(pets, "Which dog is Lise Meitner's?"))
    assert "example: ['Lise Meitner', 'Ada Byron', 'Max Born']" in made.text
    assert (made.prefix_length, made.schema) == (0, "retrieved")


def test_prompts_over_budget_get_a_shorter_schema_or_are_flagged(
    pets: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def made(budget: int, question: str = QUESTION) -> tuple[str, bool, bool]:
        data = config.DataConfig(schema="retrieved", max_prompt_tokens=budget)
        one = PromptRenderer(tiny_tokenizer, data).render(asked(pets, question))
        return one.schema, one.trimmed, one.over_budget

    long = {form: _length(pets, tiny_tokenizer, form, "Lise Meitner") for form in schema.FORMS}
    assert long["compact"] < long["qualified"] < long["fixed"] < long["retrieved"]
    assert made(long["retrieved"], "Lise Meitner") == ("retrieved", False, False)
    assert made(long["retrieved"] - 1, "Lise Meitner") == ("fixed", True, False)
    assert made(long["fixed"] - 1, "Lise Meitner") == ("qualified", True, False)
    assert made(long["qualified"] - 1, "Lise Meitner") == ("compact", True, False)
    assert "1 prompts past" in caplog.text and "shorter schema" in caplog.text
    assert made(long["compact"] - 1, "Lise Meitner") == ("compact", True, True)
    assert "such as 7" in caplog.text


def _length(pets: Path, tokenizer: Any, form: str, question: str) -> int:
    return len(PromptRenderer(tokenizer, config.DataConfig(schema=form)).render(asked(pets, question)).ids)


def test_one_long_question_leaves_the_others_as_they_are(pets: Path, tiny_tokenizer: Any) -> None:
    short = _length(pets, tiny_tokenizer, "fixed", QUESTION)
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig(schema="fixed", max_prompt_tokens=short))
    examples = [asked(pets), asked(pets, QUESTION * 2), asked(pets)]
    made = renderer.render_many([dataclasses.replace(one, id=str(i)) for i, one in enumerate(examples)])
    assert [one.schema for one in made] == ["fixed", "qualified", "fixed"]
    assert [one.example_id for one in made] == ["0", "1", "2"]


def test_a_database_is_read_once(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "one.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE a (b)")
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig())
    first = renderer.render(asked(path))
    path.unlink()
    assert renderer.render(asked(path)).text == first.text


def test_a_tokenizer_with_an_unusable_chat_template_is_refused() -> None:
    class Tokenizer:
        chat_template: str | None = None

        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            return messages[1]["content"] * 2

    with pytest.raises(ConfigError, match="no chat template"):
        PromptRenderer(Tokenizer(), config.DataConfig())
    Tokenizer.chat_template = "doubled"
    with pytest.raises(ConfigError, match="2 times"):
        PromptRenderer(Tokenizer(), config.DataConfig())


def test_no_examples_give_no_prompts(tiny_tokenizer: Any) -> None:
    assert PromptRenderer(tiny_tokenizer, config.DataConfig()).render_many([]) == []


@pytest.mark.nightly
def test_twenty_thousand_prompts_take_seconds(shared_data: Path, qwen: Any) -> None:
    examples = (example.read_examples(f"spider:{shared_data}/spider_train") * 3)[:20_000]
    start = time.perf_counter()
    made = prompt.PromptRenderer(qwen, config.DataConfig()).render_many(examples)
    assert time.perf_counter() - start < 15
    assert len(made) == 20_000
