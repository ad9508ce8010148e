"""The text of prompts by name (`data.prompt`): this project's, and those that published models were trained with.

docs/method.md, section 10, says where each one comes from. `data/prompt.py` fills them in.
"""

from __future__ import annotations

import dataclasses

NAMES = ("ours", "omnisql", "sql-r1", "qwen", "arctic")  # values of the setting data.prompt

REASONING = ("sql-r1", "arctic")  # prompts that ask for <think> and <answer>
_ONE_BLOCK = ("ours", "qwen")  # prompts that, in the direct form, are answered with one block of SQL
ONE_BLOCK_TOKENS = 256  # limit of such an answer if no setting says one: twice Spider's longest query


@dataclasses.dataclass(frozen=True)
class Template:
    """The parts of a prompt around schema, knowledge and question.

    The user's message is `before_schema`, the schema, `before_question`, `matched_values` if values were retrieved for
    the question, then `question` or `question_with_knowledge`.
    """

    before_schema: str
    before_question: str
    question: str  # with {question}
    question_with_knowledge: str  # with {knowledge} and {question}
    # The system message. None: the prompt has none of its own, so the chat template may add its default.
    system: str | None = None
    # Section of the values retrieved for a question, with {values}. "": they are shown within the schema.
    matched_values: str = ""
    schema: str = ""  # the schema format, if the prompt has only one; "": that of the setting data.schema
    opening: str = ""  # what the reply begins with


def asks_for_one_block(name: str, form: str) -> bool:
    """Whether the prompt of this name makes a model answer with one block of SQL and nothing else."""
    return form == "direct" and name in _ONE_BLOCK


def get(name: str, form: str, instructions: str) -> Template:
    """The template of this name.

    Args:
      name: one of NAMES.
      form: the answer form, `data.form`. Only `ours` explains it; the others always ask for their model's own form.
      instructions: "brief" or "full", `data.instructions`; it changes only `ours`.

    Raises:
      ValueError: there is no such name.
    """
    if name not in NAMES:
        raise ValueError(f"a prompt is one of {', '.join(NAMES)}, not {name!r}")
    if name != "ours":
        return _PUBLISHED[name]
    if instructions == "brief":
        return _BRIEF
    return dataclasses.replace(_FULL, system=f"{_TASK}\n\n{_ANSWER_FORMAT[form]}")


_TASK = """You turn questions into SQLite queries. You are given the schema of a database, at times further \
knowledge, and a question. The query's result must be what the question asks for: its columns and no others, \
in its order where it names one."""
_ANSWER_FORMAT = {
    "reasoning": """Think first: which tables and columns the question needs, how they join, what is \
filtered, grouped and ordered. Then give one query. Write each of these marks once, in this order:
<think>
your reasoning
</think>
<answer>
```sql
the query
```
</answer>""",
    "direct": """Give one query in one block of this form, and nothing else:
```sql
the query
```""",
}
_BRIEF = Template(
    system="SQLite",
    before_schema="",
    before_question="\n",
    matched_values="Matched values:\n{values}\n",
    question="{question}",
    question_with_knowledge="{knowledge}\n{question}",
)
_FULL = Template(
    before_schema="Database schema:\n",
    before_question="\n\n",
    matched_values="Matched values:\n{values}\n\n",
    question="Question:\n{question}",
    question_with_knowledge="Further knowledge:\n{knowledge}\n\nQuestion:\n{question}",
)

# Published prompts. Their wording and white space are those that the models saw in training.
_EXPERT = """You are a data science expert. Below, you are provided with a database schema and a natural language \
question. Your task is to understand the schema and generate a valid SQL query to answer the question."""
_ENGINE = "Database Engine:\nSQLite\n\nDatabase Schema:\n"
_BEFORE_QUESTION = """
This schema describes the database's structure, including tables, columns, primary keys, foreign keys, and any \
relevant relationships or constraints.

Question:
"""
_INSTRUCTIONS = """

Instructions:
- Make sure you only output the information that is asked in the question. If the question asks for a specific column, \
make sure to only include that column in the SELECT clause, nothing more.
- The generated query should return all of the information asked in the question without any missing or extra \
information.
- Before generating the final SQL query, please think through the steps of how to write the query."""
_OMNISQL_OUTPUT = """

Output Format:
In your answer, please enclose the generated SQL query in a code block:
```
-- Your SQL query
```

Take a deep breath and think step by step to find the correct SQL query."""
_SQL_R1_OUTPUT = """
- Note that while the reasoning process and SQL query need to be enclosed within <think> </think> and <answer> \
</answer> tags respectively, this should not affect the quality of the SQL generation.
- The answer must contain the SQL query within ```sql ``` tags.""" + _OMNISQL_OUTPUT.replace("```\n--", "```sql\n--")
_ARCTIC_OUTPUT = """

Output Format:
Please provide a detailed chain-of-thought reasoning process and include your thought process within `<think>` tags. \
Your final answer should be enclosed within `<answer>` tags.

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
</answer>"""


def _after_schema_description(before_schema: str, output: str) -> Template:
    """A prompt of OmniSQL's family: its instructions stand after the question, then what the reply must look like."""
    return Template(
        before_schema=before_schema,
        before_question=_BEFORE_QUESTION,
        question="{question}" + _INSTRUCTIONS + output,
        question_with_knowledge="{knowledge}\n{question}" + _INSTRUCTIONS + output,
    )


_TASK_OVERVIEW = f"Task Overview:\n{_EXPERT}\n\n{_ENGINE}"
_PUBLISHED = {
    "omnisql": _after_schema_description(_TASK_OVERVIEW, _OMNISQL_OUTPUT),
    "sql-r1": _after_schema_description(_TASK_OVERVIEW, _SQL_R1_OUTPUT),
    "arctic": dataclasses.replace(
        _after_schema_description(_ENGINE, _ARCTIC_OUTPUT),
        system=_EXPERT,
        opening="Let me solve this step by step. \n<think>",
    ),
    # Qwen2.5-Coder's text-to-SQL form, BIRD's prompt for chat models. The reply is not opened: an instruction-tuned
    # model answers with a fenced sql block.
    "qwen": Template(
        before_schema="",
        # The "-- " of the line after the schema belongs to the part that all questions share.
        before_question="\n\n-- ",
        question="Using valid SQLite, answer the following questions for the tables provided above.\n-- {question}\n",
        question_with_knowledge="External Knowledge: {knowledge}\n-- Using valid SQLite and understanding External "
        "Knowledge, answer the following questions for the tables provided above.\n-- {question}\n",
        schema="rows",
    ),
}
