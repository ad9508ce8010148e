"""Renders prompts; cold start, GRPO, evaluation and `ask` all use this one renderer.

A prompt is a chat: a system message with the answer format, a user message with the schema, the knowledge if there is
any, and the question, then the opening of the reply. The tokenizer's own chat template is applied to it. Labels of the
data (complexity, style) are never in it.

    <|im_start|>system … <|im_end|> <|im_start|>user [schema] | [knowledge] [question] <|im_end|> <|im_start|>assistant
    ├──────────── the same for every question on a database ───┤

Unless values are retrieved for each question, the text up to the question is the same for all questions on a database,
so its tokens can be shared; `Prompt.prefix_length` is their number.
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
_CACHED_INDICES = 32  # databases whose values stay in memory; one with a million values takes a gigabyte
_PLACEHOLDER = "Placeholder for the user message"  # stands in for it while the template is split


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """The prompt of one example, as text and as tokens."""

    example_id: str
    text: str
    ids: Ints
    # Length of the token prefix that all questions on this database share in this schema format; 0: none.
    prefix_length: int
    schema: str  # the schema format it was rendered in, one of schema.FORMATS
    trimmed: bool  # True if a shorter schema format was used because the configured one exceeded the budget
    over_budget: bool  # True if every format exceeds the budget; training skips it, evaluation counts it as wrong


class PromptRenderer:
    """Renders examples for one tokenizer and one set of data settings, and reads each database's schema once."""

    def __init__(self, tokenizer: Any, data: config.DataConfig) -> None:
        """Splits the chat template at the user's message.

        tokenizer: a fast tokenizer of transformers.

        Raises:
          ConfigError: the tokenizer has no chat template, or one that does not contain the user's message exactly once.
        """
        self._tokenizer = tokenizer
        self._data = data
        self._schema_formats = schema.FORMATS[schema.FORMATS.index(data.schema) :]  # each is shorter than the last
        self._before_user, self._after_user = self._split_template()
        self._schemas: dict[Path, schema.Schema] = {}
        self._schema_texts: dict[tuple[Path, str], str] = {}
        self._prefixes: dict[tuple[Path, str], Ints] = {}
        self._index = functools.lru_cache(_CACHED_INDICES)(lambda path: retrieval.Index(path, self._schema(path)))

    def render(self, example: Example) -> Prompt:
        """Renders one example."""
        return self.render_many([example])[0]

    def render_many(self, examples: Sequence[Example]) -> list[Prompt]:
        """Renders examples, in order.

        A prompt over `max_prompt_tokens` gets the next shorter schema format. One that is over it in every format is
        marked `over_budget`. Both are logged.
        """
        prompts: dict[int, Prompt] = {}
        pending = list(range(len(examples)))
        for schema_format in self._schema_formats:
            rendered = self._render_in([examples[i] for i in pending], schema_format)
            prompts.update(zip(pending, rendered, strict=True))
            pending = [i for i in pending if prompts[i].over_budget]
        self._log_budget(prompts.values())
        return [prompts[i] for i in range(len(examples))]

    def messages(self, example: Example, schema_format: str) -> list[dict[str, str]]:
        """The chat that is given to the template, with the schema in one of `schema.FORMATS`."""
        return self._chat(self._schema_text(example, schema_format) + self._question_text(example))

    def _chat(self, user_message: str) -> list[dict[str, str]]:
        full = f"{_TASK}\n\n{_ANSWER_FORMAT[self._data.form]}"
        system = full if self._data.instructions == "full" else _BRIEF
        return [{"role": "system", "content": system}, {"role": "user", "content": user_message}]

    def _split_template(self) -> tuple[str, str]:
        """What the chat template puts before and after the user's message.

        The template is rendered once instead of once per prompt, which saves most of the rendering time.
        """
        if not self._tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template: take an instruction-tuned model's tokenizer.")
        text = self._tokenizer.apply_chat_template(self._chat(_PLACEHOLDER), tokenize=False, add_generation_prompt=True)
        parts = text.split(_PLACEHOLDER)
        if len(parts) != 2:
            raise ConfigError(f"the chat template shows the user's message {len(parts) - 1} times, not once.")
        return parts[0], parts[1]

    def _render_in(self, examples: Sequence[Example], schema_format: str) -> list[Prompt]:
        texts = [
            self._before_user + self._schema_text(e, schema_format) + self._question_text(e) + self._after_user
            for e in examples
        ]
        return [
            Prompt(
                example_id=example.id,
                text=text,
                ids=ids,
                prefix_length=self._prefix_length(example.database, schema_format, ids),
                schema=schema_format,
                trimmed=schema_format != self._data.schema,
                over_budget=len(ids) > self._data.max_prompt_tokens,
            )
            for example, text, ids in zip(examples, texts, self._encode(texts), strict=True)
        ]

    def _schema_text(self, example: Example, schema_format: str) -> str:
        """The user's message up to the question. It ends with a newline; questions never start with one."""
        database, values = example.database, None
        if schema_format == "retrieved":
            values = self._index(database).search(f"{example.question} {example.knowledge}")
        elif (database, schema_format) in self._schema_texts:
            return self._schema_texts[database, schema_format]
        text = schema.render(self._schema(database), schema_format, values)
        text = f"Database schema:\n{text}\n\n" if self._data.instructions == "full" else f"{text}\n"
        if values is None:
            self._schema_texts[database, schema_format] = text
        return text

    def _question_text(self, example: Example) -> str:
        knowledge, question = example.knowledge.strip(), example.question.strip()
        if self._data.instructions == "full":
            knowledge = f"Further knowledge:\n{knowledge}\n\n" if knowledge else ""
            return f"{knowledge}Question:\n{question}"
        return f"{knowledge}\n{question}" if knowledge else question

    def _schema(self, database: Path) -> schema.Schema:
        if database not in self._schemas:
            sampled = self._data.schema not in schema.FORMATS_WITHOUT_VALUES
            self._schemas[database] = schema.read_schema(database, sampled=sampled)
        return self._schemas[database]

    def _prefix_length(self, database: Path, schema_format: str, ids: Ints) -> int:
        """The number of token ids that every prompt on the database starts with; 0 if values are retrieved.

        Tokens at its end that the question can change do not count: a tokenizer may join the last newline of the schema
        with the first characters of the question.
        """
        if schema_format == "retrieved":
            return 0
        key = (database, schema_format)
        if key not in self._prefixes:
            text = self._before_user + self._schema_texts[key]
            ids, ids_followed = self._encode([text, text + "A"])
            same = ids == ids_followed[: len(ids)]
            self._prefixes[key] = ids if same.all() else ids[: int(np.argmin(same))]
        prefix = self._prefixes[key]
        return len(prefix) if np.array_equal(ids[: len(prefix)], prefix) else 0

    def _encode(self, texts: Sequence[str]) -> list[Ints]:
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]]

    def _log_budget(self, prompts: Iterable[Prompt]) -> None:
        trimmed = sum(p.trimmed and not p.over_budget for p in prompts)
        over = [p.example_id for p in prompts if p.over_budget]
        budget = self._data.max_prompt_tokens
        if trimmed:
            log.warning("%d prompts over %d tokens got a shorter schema", trimmed, budget)
        if over:
            first = ", ".join(over[:3])
            log.warning("%d prompts are over %d tokens in every schema format, such as %s", len(over), budget, first)
