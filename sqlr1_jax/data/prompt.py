"""Renders prompts; cold start, GRPO, evaluation and `ask` all use this one renderer.

A prompt is a chat: a system message if the template (`data/templates.py`) has one, a user message with the schema, the
values retrieved for the question, the knowledge if there is any, and the question, then the opening of the reply. The
tokenizer's own chat template is applied to it. Labels of the data (complexity, style) are never in it.

    <|im_start|>system … <|im_start|>user [schema] | [values] [knowledge] [question] <|im_end|> <|im_start|>assistant
    ├───── the same for every question on a database ┤

The text up to the question's own is the same for all questions on a database, so its tokens can be shared;
`Prompt.prefix_length` is their number. Only published prompts in the schema format `retrieved` share nothing: they show
retrieved values within the schema.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import numpy.typing as npt

from sqlr1_jax.data import example_rows, retrieval, schema, templates
from sqlr1_jax.errors import ConfigError

if TYPE_CHECKING:
    from sqlr1_jax import config
    from sqlr1_jax.data.example import Example

log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int32]

_CACHED_INDICES = 32  # databases whose values stay in memory; one with a million values takes a gigabyte
_CACHED_SCHEMAS = 2048  # schemas that stay in memory, as text and as tokens, some 10 kB each
_PLACEHOLDER = "Placeholder for a message"  # stands in for a message while the chat template is examined
_THINK = ("<think>", "</think>")


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """The prompt of one example, as text and as tokens."""

    example_id: str
    text: str
    ids: Ints
    # Length of the token prefix that all questions on this database share in this schema format; 0: none.
    prefix_length: int
    schema: str  # the schema format it was rendered in, a value of data.schema
    trimmed: bool  # True if a shorter schema format was used because the configured one exceeded the budget
    over_budget: bool  # True if every format exceeds the budget; training skips it, evaluation counts it as wrong
    # What the prompt begins the reply with, if that leaves `<think>` open: answers are read from opening + completion.
    opening: str = ""


class PromptRenderer:
    """Renders examples for one tokenizer and one set of data settings, and reads each database's schema once."""

    def __init__(self, tokenizer: Any, data: config.DataConfig) -> None:
        """Splits the chat template at the user's message.

        tokenizer: a fast tokenizer of transformers.

        Raises:
          ConfigError: the tokenizer has no chat template, one that fails, or one that does not contain the user's
            message exactly once.
        """
        self._tokenizer = tokenizer
        self._data = data
        self._template = templates.get(data.prompt, data.form, data.instructions)
        self._schema_formats = formats_from(self._template.schema or data.schema)
        if not tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template: take an instruction-tuned model's tokenizer.")
        self._has_system_turn = self._shows_system_message()
        self._before_user, after_user = self._split_chat_template()
        self._opening = _open_tag(after_user) or self._template.opening
        # A chat template that opens <think> itself already begins the reply as the prompt's template would.
        self._after_user = after_user if _open_tag(after_user) else after_user + self._template.opening
        self._schema = functools.lru_cache(_CACHED_SCHEMAS)(self._read_schema)
        self._shared_text = functools.lru_cache(_CACHED_SCHEMAS)(self._render_shared_text)
        self._prefix = functools.lru_cache(_CACHED_SCHEMAS)(self._encode_prefix)
        self._index = functools.lru_cache(_CACHED_INDICES)(lambda path: retrieval.Index(path, self._schema(path)))

    def render(self, example: Example) -> Prompt:
        """Renders one example."""
        return self.render_many([example])[0]

    def render_many(self, examples: Sequence[Example], say_budget: bool = True) -> list[Prompt]:
        """Renders examples, in order.

        A prompt over `max_prompt_tokens` gets the next shorter schema format. One that is over it in every format is
        marked `over_budget`. Both are logged if `say_budget`.
        """
        prompts: dict[int, Prompt] = {}
        pending = list(range(len(examples)))
        for schema_format in self._schema_formats:
            rendered = self._render_in([examples[i] for i in pending], schema_format)
            prompts.update(zip(pending, rendered, strict=True))
            pending = [i for i in pending if prompts[i].over_budget]
        if say_budget:
            self._log_budget(prompts.values())
        return [prompts[i] for i in range(len(examples))]

    def messages(self, example: Example, schema_format: str) -> list[dict[str, str]]:
        """The chat that is given to the chat template, with the schema in one of the values of `data.schema`."""
        return self._chat(self._user_message(example, schema_format))

    def _chat(self, user_message: str) -> list[dict[str, str]]:
        """The messages; if the chat template shows no system message, it stands at the start of the user's."""
        system, user = self._template.system, {"role": "user", "content": user_message}
        if system is None:
            return [user]
        if self._has_system_turn:
            return [{"role": "system", "content": system}, user]
        return [{"role": "user", "content": f"{system}\n\n{user_message}"}]

    def _shows_system_message(self) -> bool:
        """Whether the chat template shows a system message; some leave it out, others raise an error."""
        chat = [{"role": "system", "content": _PLACEHOLDER}, {"role": "user", "content": "question"}]
        try:
            return _PLACEHOLDER in self._apply_chat_template(chat)
        except ConfigError:
            return False

    def _split_chat_template(self) -> tuple[str, str]:
        """What the chat template puts before and after the user's message.

        The template is rendered once instead of once per prompt, which saves most of the rendering time.
        """
        text = self._apply_chat_template(self._chat(_PLACEHOLDER))
        parts = text.split(_PLACEHOLDER)
        if len(parts) != 2:
            raise ConfigError(
                f"the chat template in {self._template_file()} shows the user's message {len(parts) - 1} times, not "
                "once. Replace the template."
            )
        return parts[0], parts[1]

    def _apply_chat_template(self, chat: list[dict[str, str]]) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # jinja2's errors, and any other that the template's expressions raise
            line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"the chat template in {self._template_file()} cannot be applied to a user's message "
                f"({line}{reason}). Download the file again, or replace the template."
            ) from error

    def _template_file(self) -> Path:
        """The file of the chat template, or the tokenizer's folder if it has none."""
        folder = Path(getattr(self._tokenizer, "name_or_path", ""))
        files = [folder / "chat_template.jinja", folder / "tokenizer_config.json"]
        return next((file for file in files if file.is_file()), folder)

    def _render_in(self, examples: Sequence[Example], schema_format: str) -> list[Prompt]:
        texts = [self._before_user + self._user_message(e, schema_format) + self._after_user for e in examples]
        return [
            Prompt(
                example_id=example.id,
                text=text,
                ids=ids,
                prefix_length=self._prefix_length(example.database, schema_format, ids),
                schema=schema_format,
                trimmed=schema_format != self._schema_formats[0],
                over_budget=len(ids) > self._data.max_prompt_tokens,
                opening=self._opening,
            )
            for example, text, ids in zip(examples, texts, self._encode(texts), strict=True)
        ]

    def _user_message(self, example: Example, schema_format: str) -> str:
        values = None
        if schema_format == "retrieved":
            values = self._index(example.database).search(f"{example.question} {example.knowledge}")
            if not self._template.matched_values:
                text = schema.render(self._schema(example.database), schema_format, values)
                return self._around_schema(text) + self._question_text(example)
        matched = self._matched_values(values) if values else ""
        return self._shared_text(example.database, schema_format) + matched + self._question_text(example)

    def _render_shared_text(self, database: Path, schema_format: str) -> str:
        """The user's message up to what is the question's own; retrieved values stand behind it."""
        if schema_format == example_rows.FORMAT:
            return self._around_schema(example_rows.render(database))
        return self._around_schema(schema.render(self._schema(database), schema_format))

    def _around_schema(self, schema_text: str) -> str:
        return self._template.before_schema + schema_text + self._template.before_question

    def _matched_values(self, values: schema.Values) -> str:
        lines = [
            f"{schema.quote(table)}.{schema.quote(column)}: {', '.join(map(schema.literal, found))}"
            for (table, column), found in values.items()
        ]
        return self._template.matched_values.format(values="\n".join(lines))

    def _question_text(self, example: Example) -> str:
        knowledge, question = example.knowledge.strip(), example.question.strip()
        text = self._template.question_with_knowledge if knowledge else self._template.question
        return text.format(knowledge=knowledge, question=question)

    def _read_schema(self, database: Path) -> schema.Schema:
        sampled = self._schema_formats[0] not in schema.FORMATS_WITHOUT_VALUES
        return schema.read_schema(database, sampled=sampled)

    def _prefix_length(self, database: Path, schema_format: str, ids: Ints) -> int:
        """The number of token ids that every prompt on the database starts with.

        It is 0 if the schema shows values that were retrieved for the question.
        """
        if schema_format == "retrieved" and not self._template.matched_values:
            return 0
        prefix = self._prefix(database, schema_format)
        return len(prefix) if np.array_equal(ids[: len(prefix)], prefix) else 0

    def _encode_prefix(self, database: Path, schema_format: str) -> Ints:
        """The token ids of what all prompts on the database share.

        Tokens at its end that the question can change do not count: a tokenizer may join the last newline of the schema
        with the first characters of the question.
        """
        text = self._before_user + self._shared_text(database, schema_format)
        ids, ids_followed = self._encode([text, text + "A"])
        same = ids == ids_followed[: len(ids)]
        return ids if same.all() else ids[: int(np.argmin(same))]

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


def formats_from(schema_format: str) -> tuple[str, ...]:
    """A schema format and the shorter ones that replace it in prompts over the token budget, longest first."""
    if schema_format == example_rows.FORMAT:
        return (schema_format, *formats_from("fixed"))
    return schema.FORMATS[schema.FORMATS.index(schema_format) :]


def _open_tag(text: str) -> str:
    """The part of a chat template's end that leaves `<think>` open, from the tag on; "" if there is none."""
    _, tag, after = text.rpartition(_THINK[0])
    return tag + after if tag and _THINK[1] not in after else ""
