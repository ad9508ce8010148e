"""The one renderer of prompts: cold start, GRPO, evaluation and `ask` all put a question this way.

A prompt is a chat: a system message with the answer form, a user message with the schema, then what is
known beside it, then the question, and the opening of the reply, all through the tokenizer's own chat
template. Labels of the data (complexity, style) are no part of it. What precedes the question is one text
for all questions on a database, unless values are retrieved for it, so such questions can share those
tokens (`Prompt.prefix_length`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqlr1_jax.data import retrieval, schema
from sqlr1_jax.errors import ConfigError

if TYPE_CHECKING:
    from sqlr1_jax import config
    from sqlr1_jax.data.example import Example

log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int32]

_BRIEF = "SQLite"
_TASK = """You turn questions into SQLite queries. You are given the schema of a database, at times further \
knowledge, and a question. The query's result must be what the question asks for: its columns and no others, \
in its order where it names one."""
_FORM = {
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
    "direct": """Give one query and nothing else, in this form:
<answer>
```sql
the query
```
</answer>""",
}
_INDICES = 32  # databases whose values are held at a time: large ones take a gigabyte for a million values
_STAND_IN = "Stand-in for what is asked"  # of the user's message, while the chat template is taken apart


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A question as the model reads it."""

    example_id: str
    text: str
    ids: Ints
    prefix_length: int  # first ids, the same for every question on this database in this schema form; 0: none
    schema: str  # the form of schema.FORMS that it came to
    trimmed: bool  # the form asked for did not fit the budget
    over_budget: bool  # no form fits: skipped in training, counted as wrong in evaluation


class PromptRenderer:
    """Renders examples for one tokenizer and one set of data settings, reading each database's schema once.

    `tokenizer` is a fast tokenizer of transformers. Raises `ConfigError` where its chat template won't do.
    """

    def __init__(self, tokenizer: Any, data: config.DataConfig) -> None:
        self._tokenizer = tokenizer
        self._data = data
        self._forms = schema.FORMS[schema.FORMS.index(data.schema) :]  # each shorter than the one before
        self._before, self._after = self._frame()
        self._schemas: dict[Path, schema.Schema] = {}
        self._openings: dict[tuple[Path, str], str] = {}
        self._prefixes: dict[tuple[Path, str], Ints] = {}
        self._index = functools.lru_cache(_INDICES)(self._make_index)

    def render(self, example: Example) -> Prompt:
        """One example's prompt."""
        return self.render_many([example])[0]

    def render_many(self, examples: Sequence[Example]) -> list[Prompt]:
        """The examples' prompts, in order; past the budget with a shorter schema, else a flag, and logged."""
        prompts: dict[int, Prompt] = {}
        waiting = list(range(len(examples)))
        for form in self._forms:
            made = self._render_as([examples[i] for i in waiting], form)
            prompts.update(zip(waiting, made, strict=True))
            waiting = [i for i in waiting if prompts[i].over_budget]
        self._report(prompts.values())
        return [prompts[i] for i in range(len(examples))]

    def messages(self, example: Example, form: str) -> list[dict[str, str]]:
        """The chat that the template is given, with the schema in one of `schema.FORMS`."""
        return self._chat(self._opening(example, form) + self._question(example))

    def _chat(self, user: str) -> list[dict[str, str]]:
        full = f"{_TASK}\n\n{_FORM[self._data.form]}"
        system = full if self._data.instructions == "full" else _BRIEF
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def _frame(self) -> tuple[str, str]:
        """What the chat template puts before and after the user's words: it is run once for all prompts."""
        if not self._tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template: take an instruction-tuned model's tokenizer.")
        text = self._tokenizer.apply_chat_template(self._chat(_STAND_IN), tokenize=False, add_generation_prompt=True)
        parts = text.split(_STAND_IN)
        if len(parts) != 2:
            raise ConfigError(f"the chat template shows the user's message {len(parts) - 1} times, not once.")
        return parts[0], parts[1]

    def _render_as(self, examples: Sequence[Example], form: str) -> list[Prompt]:
        texts = [self._before + self._opening(e, form) + self._question(e) + self._after for e in examples]
        encoded = self._encode(texts)
        return [self._prompt(e, form, t, i) for e, t, i in zip(examples, texts, encoded, strict=True)]

    def _prompt(self, example: Example, form: str, text: str, ids: Ints) -> Prompt:
        return Prompt(
            example_id=example.id,
            text=text,
            ids=ids,
            prefix_length=self._shared(example.database, form, ids),
            schema=form,
            trimmed=form != self._data.schema,
            over_budget=len(ids) > self._data.max_prompt_tokens,
        )

    def _opening(self, example: Example, form: str) -> str:
        """The user's message up to the question: the schema and a line end, which no question begins with."""
        key = (example.database, form)
        if form == "retrieved":
            return self._written(schema.render(self._schema(example.database), form, self._values(example)))
        if key not in self._openings:
            self._openings[key] = self._written(schema.render(self._schema(example.database), form))
        return self._openings[key]

    def _written(self, schema_text: str) -> str:
        return f"Database schema:\n{schema_text}\n\n" if self._data.instructions == "full" else f"{schema_text}\n"

    def _question(self, example: Example) -> str:
        knowledge, question = example.knowledge.strip(), example.question.strip()
        if self._data.instructions == "full":
            known = f"Further knowledge:\n{knowledge}\n\n" if knowledge else ""
            return f"{known}Question:\n{question}"
        return f"{knowledge}\n{question}" if knowledge else question

    def _schema(self, database: Path) -> schema.Schema:
        if database not in self._schemas:
            sampled = self._data.schema not in schema.WITHOUT_VALUES
            self._schemas[database] = schema.read_schema(database, sampled=sampled)
        return self._schemas[database]

    def _values(self, example: Example) -> schema.Values:
        return self._index(example.database).search(f"{example.question} {example.knowledge}")

    def _make_index(self, database: Path) -> retrieval.Index:
        return retrieval.Index(database, self._schema(database))

    def _shared(self, database: Path, form: str, ids: Ints) -> int:
        if form == "retrieved":
            return 0
        prefix = self._prefix(database, form)
        return len(prefix) if np.array_equal(ids[: len(prefix)], prefix) else 0

    def _prefix(self, database: Path, form: str) -> Ints:
        """The ids that the schema begins every prompt with: up to where what follows could change them."""
        key = (database, form)
        if key not in self._prefixes:
            text = self._before + self._openings[key]
            alone, followed = self._encode([text, text + "A"])
            same = alone == followed[: len(alone)]
            self._prefixes[key] = alone if same.all() else alone[: int(np.argmin(same))]
        return self._prefixes[key]

    def _encode(self, texts: Sequence[str]) -> list[Ints]:
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]]

    def _report(self, prompts: Iterable[Prompt]) -> None:
        trimmed = sum(p.trimmed and not p.over_budget for p in prompts)
        over = [p.example_id for p in prompts if p.over_budget]
        budget = self._data.max_prompt_tokens
        if trimmed:
            log.warning("%d prompts past %d tokens were given a shorter schema", trimmed, budget)
        if over:
            shown = ", ".join(over[:3])
            log.warning("%d prompts are past %d tokens in any schema form, such as %s", len(over), budget, shown)
