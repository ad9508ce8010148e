from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sqlr1_jax.data
from sqlr1_jax import config
from sqlr1_jax.data import answer, example, prompt, schema, templates
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import PromptRenderer
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import tokenizer

QUESTION = "Which colors are there?"


def make_example(database: Path, question: str = QUESTION, **more: Any) -> Example:
    fields: dict[str, Any] = {"id": "7", "db_id": "pets", "sql": "", "database": database, "question": question}
    return Example(**fields | more)


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


def test_brief_prompt_is_exact(pets: Path, tiny_tokenizer: Any) -> None:
    rendered = PromptRenderer(tiny_tokenizer, config.DataConfig()).render(
        make_example(pets, knowledge=" Red is a color.\n")
    )
    assert rendered.text == BRIEF
    assert tiny_tokenizer.decode(rendered.ids) == BRIEF
    assert rendered.ids.dtype == np.int32
    assert (rendered.example_id, rendered.schema, rendered.trimmed, rendered.over_budget) == (
        "7",
        "qualified",
        False,
        False,
    )


def test_full_instructions_show_the_answer_format(pets: Path, tiny_tokenizer: Any) -> None:
    for answer_format, tags in (("reasoning", ["<think>", "</think>", "<answer>", "```sql"]), ("direct", ["```sql"])):
        data = config.DataConfig(form=answer_format, instructions="full", schema="fixed")
        text = PromptRenderer(tiny_tokenizer, data).render(make_example(pets, knowledge="Red is a color.")).text
        assert all(text.count(tag) == 1 for tag in tags)
        assert ("<think>" in text) == ("<answer>" in text) == (answer_format == "reasoning")
        parts = ["CREATE TABLE owners", "CREATE TABLE dogs", "Red is a color.", QUESTION, "assistant"]
        positions = [text.index(part) for part in parts]
        assert positions == sorted(positions)


DIRECT = """\
Give one query in one block of this form, and nothing else:
```sql
the query
```<|im_end|>
"""


def test_the_direct_form_asks_for_one_block(pets: Path, tiny_tokenizer: Any) -> None:
    data = config.DataConfig(form="direct", instructions="full", schema="fixed")
    assert DIRECT in PromptRenderer(tiny_tokenizer, data).render(make_example(pets)).text


def test_prompts_equal_the_rendered_chat_template(pets: Path, tiny_tokenizer: Any) -> None:
    for schema_format in ("compact", "qualified", "fixed"):
        renderer = PromptRenderer(tiny_tokenizer, config.DataConfig(schema=schema_format, instructions="full"))
        example_ = make_example(pets, knowledge="Red.")
        text = tiny_tokenizer.apply_chat_template(
            renderer.messages(example_, schema_format), tokenize=False, add_generation_prompt=True
        )
        assert renderer.render(example_).text == text


def test_defect_10_labels_of_the_data_never_reach_the_prompt(pets: Path, tiny_tokenizer: Any) -> None:
    """All stages use this renderer: no other module applies a chat template."""
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig(instructions="full", schema="retrieved"))
    labels = ("complexity", "style", "family", "habit", "source", "reasoning", "sql", "id")
    labeled = make_example(pets, spoiled=True, **{name: f"Highly Complex {name}" for name in labels})
    assert renderer.render(labeled).text == renderer.render(make_example(pets)).text
    package = Path(sqlr1_jax.data.__file__).parents[1]
    calls = [path for path in package.rglob("*.py") if ".apply_chat_template(" in path.read_text()]
    assert [path.relative_to(package).as_posix() for path in calls] == ["data/prompt.py"]


questions = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("\n\r\t a(-?.;", max_size=6)


@given(question=questions.map(lambda text: f"{text}?"), knowledge=questions)
def test_all_questions_on_a_database_share_the_prefix(
    pets: Path, tiny_tokenizer: Any, question: str, knowledge: str
) -> None:
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig())
    first, second = renderer.render_many([make_example(pets), make_example(pets, question, knowledge=knowledge)])
    length = first.prefix_length
    assert tiny_tokenizer.decode(first.ids[:length]).endswith("- join dogs, owners on keeper = tag\n")
    first_character = (knowledge.strip() or question.strip())[0]
    assert second.prefix_length == (0 if first_character == "-" else length)  # this tokenizer joins "\n-"
    assert second.ids[: second.prefix_length].tolist() == first.ids[: second.prefix_length].tolist()
    assert second.ids.tolist() == tiny_tokenizer(second.text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("instructions", ["brief", "full"])
@pytest.mark.parametrize("schema_format", ["compact", "qualified", "fixed"])
def test_real_prompts_share_the_tokens_of_their_schema(
    shared_data: Path, qwen: Any, schema_format: str, instructions: str
) -> None:
    examples = example.read_examples(f"spider:{shared_data}/spider_train")[::60]
    data = config.DataConfig(schema=schema_format, instructions=instructions)
    prompts = PromptRenderer(qwen, data).render_many(examples)
    by_database: dict[str, set[tuple[int, ...]]] = {}
    for rendered, source in zip(prompts, examples, strict=True):
        prefix = rendered.ids[: rendered.prefix_length]
        by_database.setdefault(source.db_id, set()).add(tuple(prefix.tolist()))
        assert rendered.ids.tolist() == qwen(rendered.text, add_special_tokens=False)["input_ids"]
        assert qwen.decode(prefix) == rendered.text[: len(qwen.decode(prefix))]
        rest = rendered.text[len(qwen.decode(prefix)) :]
        assert rest.startswith("Question:\n" if instructions == "full" else source.question.strip())
    assert len(by_database) > 50
    assert all(len(prefixes) == 1 for prefixes in by_database.values())


def test_the_prefix_ends_before_a_token_that_spans_the_boundary(pets: Path, tiny_tokenizer: Any) -> None:
    """This tokenizer joins a newline with the character after it, so the prefix ends before the newline."""

    class Joining:
        chat_template = "yes"

        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            return messages[0]["content"] + messages[-1]["content"] + "|"

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[ord(t[-1]) for t in re.findall(r"\n?[^\n]|\n", text)] for text in texts]}

    rendered = PromptRenderer(Joining(), config.DataConfig()).render(make_example(pets))
    assert "".join(map(chr, rendered.ids[: rendered.prefix_length])).endswith("- join dogs, owners on keeper = tag")
    assert chr(rendered.ids[rendered.prefix_length]) == QUESTION[0]


def test_retrieved_values_stand_behind_the_schema(pets: Path, tiny_tokenizer: Any) -> None:
    """So every question on the database shares the schema, which is that of `fixed`."""
    asked = make_example(pets, "Which red dog is Lise Meitner's?", knowledge="Red is a color.")
    section = "Matched values:\nowners.`full name`: 'Lise Meitner'\ndogs.color: 'red'\n"
    for instructions, after in (("brief", ""), ("full", "\nFurther knowledge:\n")):
        data = config.DataConfig(schema="retrieved", instructions=instructions)
        renderer = PromptRenderer(tiny_tokenizer, data)
        rendered, without = renderer.render_many([asked, make_example(pets)])
        fixed = PromptRenderer(tiny_tokenizer, dataclasses.replace(data, schema="fixed"))
        assert rendered.text.replace(section + "\n" * (instructions == "full"), "") == fixed.render(asked).text
        assert section + after + "Red is a color." in rendered.text
        assert without.text == fixed.render(make_example(pets)).text
        assert rendered.schema == without.schema == "retrieved"
        length = fixed.render(asked).prefix_length
        assert rendered.prefix_length == without.prefix_length == length > 0


def test_published_prompts_show_retrieved_values_in_the_schema(pets: Path, tiny_tokenizer: Any) -> None:
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig(prompt="omnisql", schema="retrieved"))
    rendered = renderer.render(make_example(pets, "Which dog is Lise Meitner's?"))
    assert "example: ['Lise Meitner', 'Ada Byron', 'Max Born']" in rendered.text
    assert "Matched values" not in rendered.text
    assert (rendered.prefix_length, rendered.schema) == (0, "retrieved")


def test_a_prompt_over_budget_gets_a_shorter_schema_or_a_flag(
    pets: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def render(budget: int, question: str = QUESTION) -> tuple[str, bool, bool]:
        data = config.DataConfig(schema="retrieved", max_prompt_tokens=budget)
        rendered = PromptRenderer(tiny_tokenizer, data).render(make_example(pets, question))
        return rendered.schema, rendered.trimmed, rendered.over_budget

    lengths = {name: _length(pets, tiny_tokenizer, name, "Lise Meitner") for name in schema.FORMATS}
    assert lengths["compact"] < lengths["qualified"] < lengths["fixed"] < lengths["retrieved"]
    assert render(lengths["retrieved"], "Lise Meitner") == ("retrieved", False, False)
    assert render(lengths["retrieved"] - 1, "Lise Meitner") == ("fixed", True, False)
    assert render(lengths["fixed"] - 1, "Lise Meitner") == ("qualified", True, False)
    assert render(lengths["qualified"] - 1, "Lise Meitner") == ("compact", True, False)
    assert "1 prompts over" in caplog.text and "shorter schema" in caplog.text
    assert render(lengths["compact"] - 1, "Lise Meitner") == ("compact", True, True)
    assert "such as 7" in caplog.text


def _length(pets: Path, tokenizer: Any, schema_format: str, question: str) -> int:
    return len(
        PromptRenderer(tokenizer, config.DataConfig(schema=schema_format)).render(make_example(pets, question)).ids
    )


def test_one_long_question_does_not_change_the_other_prompts(pets: Path, tiny_tokenizer: Any) -> None:
    short = _length(pets, tiny_tokenizer, "fixed", QUESTION)
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig(schema="fixed", max_prompt_tokens=short))
    examples = [make_example(pets), make_example(pets, QUESTION * 2), make_example(pets)]
    prompts = renderer.render_many([dataclasses.replace(e, id=str(i)) for i, e in enumerate(examples)])
    assert [p.schema for p in prompts] == ["fixed", "qualified", "fixed"]
    assert [p.example_id for p in prompts] == ["0", "1", "2"]


def test_a_database_is_read_once(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "one.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE a (b)")
    renderer = PromptRenderer(tiny_tokenizer, config.DataConfig())
    first = renderer.render(make_example(path))
    path.unlink()
    assert renderer.render(make_example(path)).text == first.text


def test_a_tokenizer_with_an_unusable_chat_template_is_refused() -> None:
    class Tokenizer:
        chat_template: str | None = None

        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            return messages[-1]["content"] * 2

    with pytest.raises(ConfigError, match="no chat template"):
        PromptRenderer(Tokenizer(), config.DataConfig())
    Tokenizer.chat_template = "doubled"
    with pytest.raises(ConfigError, match="2 times"):
        PromptRenderer(Tokenizer(), config.DataConfig())


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content']", "line 1: unexpected end of template"),
        ("{{ raise_exception('Only tools\\nare served') }}", "Only tools"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ nothing.of.this }}", "'nothing' is undefined"),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_that_fails_is_one_line_that_names_its_file(
    tmp_path: Path, tiny_tokenizer: Any, file: str, template: str, reason: str
) -> None:
    folder = shutil.copytree(tiny_tokenizer.name_or_path, tmp_path / "model")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    record = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    if file == "chat_template.jinja":
        (folder / file).write_text(record.pop("chat_template"))
    (folder / "tokenizer_config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError) as error:
        PromptRenderer(tokenizer.load(folder), config.DataConfig())
    assert f"chat template in {folder / file} cannot be applied" in str(error.value)
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("refusal", ["raise_exception('System role not supported')", "m['content'] + 1"])
def test_a_chat_template_that_refuses_a_system_turn_gets_its_text_in_the_users(
    tiny_tokenizer: Any, pets: Path, refusal: str
) -> None:
    refusing = copy.deepcopy(tiny_tokenizer)
    refusing.chat_template = (
        f"{{% for m in messages %}}{{% if m['role'] == 'system' %}}{{{{ {refusal} }}}}{{% endif %}}"
        "[{{ m['role'] }}] {{ m['content'] }}{% endfor %}[assistant]"
    )
    data = config.DataConfig()
    system = templates.get(data.prompt, data.form, data.instructions).system
    text = PromptRenderer(refusing, data).render(make_example(pets)).text
    assert system and text.startswith(f"[user] {system}\n\n")
    assert "[system]" not in text and "[assistant]" in text


def test_no_examples_give_no_prompts(tiny_tokenizer: Any) -> None:
    assert PromptRenderer(tiny_tokenizer, config.DataConfig()).render_many([]) == []


@pytest.mark.nightly
def test_twenty_thousand_prompts_take_seconds(shared_data: Path, qwen: Any) -> None:
    examples = ([*example.read_examples(f"spider:{shared_data}/spider_train")] * 3)[:20_000]
    start = time.perf_counter()
    prompts = prompt.PromptRenderer(qwen, config.DataConfig()).render_many(examples)
    assert time.perf_counter() - start < 15
    assert len(prompts) == 20_000


def test_a_prompt_without_a_system_message_gets_the_chat_templates_own(pets: Path, qwen: Any) -> None:
    for name in ("omnisql", "sql-r1", "qwen"):
        text = PromptRenderer(qwen, config.DataConfig(prompt=name)).render(make_example(pets)).text
        assert text.startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
        assert text.count("<|im_start|>") == 3


@given(
    questions=st.lists(st.tuples(st.text("abcXY ?'1", min_size=1), st.sampled_from(["", "It is Mia."])), min_size=2),
    name=st.sampled_from(templates.NAMES),
    schema_format=st.sampled_from([*schema.FORMATS, "rows"]),
    instructions=st.sampled_from(["brief", "full"]),
)
@settings(max_examples=40)
def test_prompts_on_a_database_share_their_schema(
    pets: Path, qwen: Any, questions: list[tuple[str, str]], name: str, schema_format: str, instructions: str
) -> None:
    data = config.DataConfig(prompt=name, schema=schema_format, instructions=instructions)
    examples = [make_example(pets, f"q{question}", knowledge=knowledge) for question, knowledge in questions]
    prompts = PromptRenderer(qwen, data).render_many(examples)
    length = prompts[0].prefix_length
    assert {prompt.prefix_length for prompt in prompts} == {length}
    assert all(np.array_equal(prompt.ids[:length], prompts[0].ids[:length]) for prompt in prompts)
    if schema_format == "retrieved" and name not in ("ours", "qwen"):
        assert length == 0
        return
    last_line = {"rows": " */", "qualified": "- join", "compact": "- join"}.get(prompts[0].schema, ");")
    shared = qwen.decode(prompts[0].ids[:length])
    assert last_line in shared and shared in prompts[1].text
    assert last_line not in prompts[0].text[len(shared) :]


# As DeepSeek's distilled models: no turn for the system message, and the reply begins with <think>.
R1 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% else %}<U>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<U>{{ m.content }}{% endfor %}<A>"
)


def _with_chat_template(tokenizer: Any, chat_template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = chat_template
    return changed


@pytest.mark.parametrize("name", templates.NAMES)
def test_a_chat_template_may_open_the_reply(pets: Path, tiny_tokenizer: Any, name: str) -> None:
    data = config.DataConfig(prompt=name, instructions="full")
    rendered = PromptRenderer(_with_chat_template(tiny_tokenizer, R1), data).render(make_example(pets))
    assert rendered.text.endswith("<A><think>\n")
    assert rendered.opening == "<think>\n"
    completion = "why\n</think>\n<answer>\n```sql\nSELECT 1\n```\n</answer>"
    parsed = answer.read(rendered.opening + completion, "reasoning")
    assert (parsed.think, parsed.sql, parsed.problem) == ("why", "SELECT 1", None)
    closed = _with_chat_template(tiny_tokenizer, R1.replace("<think>\n", "<think>\n\n</think>\n"))
    expected = "Let me solve this step by step. \n<think>" if name == "arctic" else ""
    assert PromptRenderer(closed, data).render(make_example(pets)).opening == expected


@pytest.mark.parametrize("dropping", [False, True])
def test_without_a_system_turn_the_system_message_stands_with_the_users(
    pets: Path, tiny_tokenizer: Any, dropping: bool
) -> None:
    chat_template = NO_SYSTEM.replace("{{ raise_exception('no system role') }}", "{% continue %}")
    tokenizer = _with_chat_template(tiny_tokenizer, chat_template if dropping else NO_SYSTEM)
    text = PromptRenderer(tokenizer, config.DataConfig()).render(make_example(pets)).text
    assert text.startswith("<U>SQLite\n\n- owners tag")
    assert text.endswith(f"{QUESTION}<A>")


def test_rows_too_long_for_the_budget_give_way_to_fixed(pets: Path, tiny_tokenizer: Any) -> None:
    long = PromptRenderer(tiny_tokenizer, config.DataConfig(schema="rows")).render(make_example(pets))
    assert (long.schema, long.trimmed, long.opening) == ("rows", False, "")
    data = config.DataConfig(schema="rows", max_prompt_tokens=len(long.ids) - 1)
    shorter = PromptRenderer(tiny_tokenizer, data).render(make_example(pets))
    assert (shorter.schema, shorter.trimmed) == ("fixed", True)
