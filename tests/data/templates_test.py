from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax import config, config_checks
from sqlr1_jax.data import templates
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import PromptRenderer


def test_the_setting_takes_every_template() -> None:
    assert config_checks.CHOICES["data.prompt"] == templates.NAMES
    with pytest.raises(ValueError, match="not 'theirs'"):
        templates.get("theirs", "direct", "full")


@pytest.mark.parametrize("name", templates.NAMES)
@pytest.mark.parametrize("instructions", ["brief", "full"])
def test_a_question_and_its_knowledge_are_shown_once(name: str, instructions: str) -> None:
    template = templates.get(name, "reasoning", instructions)
    text = template.question_with_knowledge.format(knowledge="{K}", question="{Q}")
    assert text.count("{K}") == text.count("{Q}") == template.question.format(question="{Q}").count("{Q}") == 1
    assert text.index("{K}") < text.index("{Q}")


def test_only_our_full_instructions_depend_on_the_answer_form() -> None:
    reasoning, direct = (templates.get("ours", form, "full").system or "" for form in ("reasoning", "direct"))
    assert "<think>" in reasoning and "<answer>" in reasoning
    assert "```sql\nthe query\n```" in direct and "<" not in direct
    for name in templates.NAMES:
        instructions = "brief" if name == "ours" else "full"
        assert templates.get(name, "reasoning", instructions) == templates.get(name, "direct", instructions)
    assert templates.get("ours", "direct", "brief").system == "SQLite"


# Published prompts: the form that each project documents, filled in by hand for a small database.
ZOO = """CREATE TABLE "animal" (id INTEGER PRIMARY KEY, name TEXT, kg REAL);
CREATE TABLE keeper (animal_id INTEGER REFERENCES animal (id), "full name" TEXT /* first and last */);
INSERT INTO animal VALUES (1, 'Mia', 80.5), (2, 'Leo', NULL), (3, 'a name that is longer than forty characters', 2.0),
    (4, 'Zoe', 1.0);
INSERT INTO keeper VALUES (2, x'0011223344'), (1, 'Ada
Byron');"""
ZOO_FIXED = """\
CREATE TABLE animal (
    id INTEGER, -- example: [1, 2]
    name TEXT, -- example: ['Mia', 'Leo']
    kg REAL, -- example: [80.5, 2.0]
    PRIMARY KEY (id)
);

CREATE TABLE keeper (
    animal_id INTEGER, -- example: [2, 1]
    `full name` TEXT, -- first and last
    FOREIGN KEY (animal_id) REFERENCES animal (id)
);"""
ZOO_ROWS = (
    'CREATE TABLE "animal" (id INTEGER PRIMARY KEY, name TEXT, kg REAL) \n'
    " /* \n 3 example rows: \n SELECT * FROM animal LIMIT 3; \n"
    " id                                      name   kg \n"
    " 1                                       Mia 80.5 \n"
    " 2                                       Leo None \n"
    " 3 a name that is longer than forty charact…  2.0  \n */"
    "\n\n"
    'CREATE TABLE keeper (animal_id INTEGER REFERENCES animal (id), "full name" TEXT /* first and last */) \n'
    " /* \n 3 example rows: \n SELECT * FROM keeper LIMIT 3; \n"
    " animal_id    full name \n"
    "        2 x'00112233…' \n"
    "        1    Ada Byron  \n */"
)
ASKED = [
    ("How many animals are there?", ""),
    ("Which animal is the heaviest?", ""),
    ("Names of animals over 50 kg?", "kg is the weight"),
    ("Who keeps Leo?", ""),
    ("Who keeps the heaviest animal?", "heaviest refers to MAX(kg)"),
    ("Is {Mia} there?", "{Mia} = name = 'Mia'"),
    ("What is the mean weight?", " mean = AVG(kg)\n"),
    ("List all keepers in alphabetical order.", ""),
    ("- animals without a keeper", ""),
    ("Größtes Tier?", "Tier = animal"),
]
EXPERT = (
    "You are a data science expert. Below, you are provided with a database schema and a natural language question. "
    "Your task is to understand the schema and generate a valid SQL query to answer the question."
)
FAMILY = """\
Database Engine:
SQLite

Database Schema:
{schema}
This schema describes the database's structure, including tables, columns, primary keys, foreign keys, and any relevant relationships or constraints.

Question:
{question}

Instructions:
- Make sure you only output the information that is asked in the question. If the question asks for a specific column, make sure to only include that column in the SELECT clause, nothing more.
- The generated query should return all of the information asked in the question without any missing or extra information.
- Before generating the final SQL query, please think through the steps of how to write the query.
"""  # noqa: E501
OMNISQL_OUTPUT = """
Output Format:
In your answer, please enclose the generated SQL query in a code block:
```
-- Your SQL query
```

Take a deep breath and think step by step to find the correct SQL query."""
SQL_R1_OUTPUT = """\
- Note that while the reasoning process and SQL query need to be enclosed within <think> </think> and <answer> </answer> tags respectively, this should not affect the quality of the SQL generation.
- The answer must contain the SQL query within ```sql ``` tags.

Output Format:
In your answer, please enclose the generated SQL query in a code block:
```sql
-- Your SQL query
```

Take a deep breath and think step by step to find the correct SQL query."""  # noqa: E501
ARCTIC_OUTPUT = """
Output Format:
Please provide a detailed chain-of-thought reasoning process and include your thought process within `<think>` tags. Your final answer should be enclosed within `<answer>` tags.

Ensure that your SQL query follows the correct syntax and is formatted as follows:

```sql
-- Your SQL query here
```

Example format:
<think> Step-by-step reasoning, including self-reflection and corrections if necessary. [Limited by 4K tokens] </think>
<answer> Summary of the thought process leading to the final SQL query. [Limited by 1K tokens]

```sql
Correct SQL query here
```
</answer>"""  # noqa: E501
# The users' messages; qwen's question has a form of its own.
PUBLISHED = {
    "omnisql": f"Task Overview:\n{EXPERT}\n\n{FAMILY}{OMNISQL_OUTPUT}",
    "sql-r1": f"Task Overview:\n{EXPERT}\n\n{FAMILY}{SQL_R1_OUTPUT}",
    "arctic": FAMILY + ARCTIC_OUTPUT,
}


def _published_message(name: str, question: str, knowledge: str) -> str:
    """The user's message on the zoo, as the project's documented form gives it."""
    if name != "qwen":
        asked = f"{knowledge.strip()}\n{question}" if knowledge else question
        return PUBLISHED[name].replace("{schema}", ZOO_FIXED).replace("{question}", asked)
    understanding = " and understanding External Knowledge" if knowledge else ""
    return (
        f"{ZOO_ROWS}\n\n" + (f"-- External Knowledge: {knowledge.strip()}\n" if knowledge else "") +
        f"-- Using valid SQLite{understanding}, answer the following questions for the tables provided above.\n"
        f"-- {question}\n"
    )  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zoo") / "zoo.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(ZOO)
    return path


@pytest.mark.parametrize("name", ["omnisql", "sql-r1", "arctic", "qwen"])
def test_published_prompts_equal_their_documented_form(zoo: Path, tiny_tokenizer: Any, name: str) -> None:
    data = config.DataConfig(prompt=name, schema="fixed", max_prompt_tokens=100_000)
    examples = [Example("0", "zoo", zoo, question, "", knowledge) for question, knowledge in ASKED]
    prompts = PromptRenderer(tiny_tokenizer, data).render_many(examples)
    for rendered, (question, knowledge) in zip(prompts, ASKED, strict=True):
        chat = [{"role": "user", "content": _published_message(name, question, knowledge)}]
        if name == "arctic":
            chat.insert(0, {"role": "system", "content": EXPERT})
        opening = "Let me solve this step by step. \n<think>" if name == "arctic" else ""
        whole = tiny_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert rendered.text == whole + opening
        assert rendered.opening == opening
        assert (rendered.schema, rendered.trimmed) == ("rows" if name == "qwen" else "fixed", False)
