"""The cold start's data: groups of questions on one schema, with their answers, and which of them a step learns."""

from __future__ import annotations

import collections
import copy
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sqlr1_jax.config import RowsConfig, SftConfig
from sqlr1_jax.data import answer, order, packing
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.packing import Group, RowLayout, Segment
from sqlr1_jax.data.prompt import Prompt, PromptRenderer
from sqlr1_jax.data.record_index import IndexedExamples
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import tokenizer
from sqlr1_jax.train import batch
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.lazy_batches import LazyBatches

log = logging.getLogger(__name__)
STAGE = "sft"
IDS_SHOWN = 3  # ids of examples in a warning


class SftExample(NamedTuple):
    """An example with its prompt and the answer to learn."""

    example: Example
    prompt: Prompt
    answer: npt.NDArray[np.int32]  # token ids, ending with the stop token


class GroupSet:
    """The groups of the stage, and the rows that they need."""

    def __init__(self, groups: Sequence[Group], ids: Sequence[str], rows_config: RowsConfig) -> None:
        """ids: of each group's first example."""
        self._groups, self._ids = groups, ids
        self.layout = batch.choose_layout(groups, rows_config)
        self.row_length = rows_config.length or max(map(packing.packed_length, groups))

    def batch(self, size: int, seed: int, number: int) -> tuple[list[Group], list[str]]:
        """This process's groups of a batch, and the id of each group's first example on all processes. Collective.

        Args:
          size: groups of the batch on all processes.
          seed: seed of the data order.
          number: of the batch, from 0; the order depends only on seed and number.
        """
        indices = order.batch_indices(len(self._groups), size, seed, number)
        local = indices[collectives.local_slice(size)]
        return [_with_prompt_index(self._groups[i], p) for p, i in enumerate(local)], [self._ids[i] for i in indices]

    def make_ahead(self, size: int, seed: int, number: int) -> None:
        """Prepares a batch that will soon be asked for; here all groups exist already."""


class LazyGroupSet(GroupSet):
    """The groups of an indexed source, made on a thread for the batches that need them.

    The groups and their order are those of `GroupSet`, as long as every example can be learned. One that cannot is
    missing from its group.
    """

    def __init__(self, context: RunContext, examples: IndexedExamples) -> None:
        """Refuses settings that leave a length to the data.

        Raises:
          ConfigError: a length of the rows is 0.
        """
        sft_config, rows = context.config.sft, context.config.sft.rows
        self._context = dataclasses.replace(context, tokenizer=copy.deepcopy(context.tokenizer))  # for the thread
        self._renderer = PromptRenderer(self._context.tokenizer, context.config.data)
        self._examples = examples
        self._chunks = [
            positions[start : start + sft_config.questions]
            for positions in examples.positions_by_database()
            for start in range(0, len(positions), sft_config.questions)
        ]
        needed = ("length",) if rows.layout == "packed" else ("prefix", "segment")
        for name in needed:
            if not getattr(rows, name):
                raise ConfigError(
                    f"config.sft.rows.{name} is 0, the longest in the data. {context.config.data.sft} is too large to "
                    f"look for that: set --config.sft.rows.{name} to a number of tokens."
                )
        self.layout = None if rows.layout == "packed" else RowLayout(rows.prefix, sft_config.questions, rows.segment)
        self.row_length = rows.length
        fault = (
            "none of its examples has a prompt and an answer in the form and the lengths that config.data.form, "
            "config.data.max_prompt_tokens, config.sft.max_answer_tokens and config.sft.rows name."
        )
        self._batches = LazyBatches(len(self._chunks), self._make_groups, fault)
        log.info("cold start: %d examples in %d groups, made when a step needs them", len(examples), len(self._chunks))

    def batch(self, size: int, seed: int, number: int) -> tuple[list[Group], list[str]]:
        """See `GroupSet.batch`."""
        made = self._batches.batch(size, seed, number)
        groups = [_with_prompt_index(group, position) for position, (group, _) in enumerate(made)]
        return groups, collectives.allgather_list([first_id for _, first_id in made])

    def make_ahead(self, size: int, seed: int, number: int) -> None:
        """Starts to make a batch, unless that has begun."""
        self._batches.start(size, seed, number)

    def _make_groups(self, numbers: Sequence[int]) -> list[tuple[Group, str] | None]:
        """The groups of these numbers, each with the id of its first example; None for one without any."""
        return [self._make_group([self._examples[i] for i in self._chunks[number].tolist()]) for number in numbers]

    def _make_group(self, examples: Sequence[Example]) -> tuple[Group, str] | None:
        prompts = self._renderer.render_many(examples, say_budget=False)
        members, _ = _fitting_examples(self._context, prompts, examples)
        first = next(_chunks([m for m in members if _prefix(m) == _prefix(members[0])], len(examples), self.row_length))
        return (_make_group(first), first[0].example.id) if first else None


def load_groups(context: RunContext) -> GroupSet:
    """The groups of the stage's examples.

    Raises:
      ConfigError: see `make_sft_examples` and `LazyGroupSet`.
    """
    examples = context.training_examples(STAGE)
    if isinstance(examples, IndexedExamples):
        return LazyGroupSet(context, examples)
    groups, ids = make_groups(context, examples)
    group_set = GroupSet(groups, ids, context.config.sft.rows)
    num_examples = sum(len(group.segments) for group in groups)
    log.info("cold start: %d examples in %d groups, rows %s", num_examples, len(groups), group_set.layout or "packed")
    return group_set


def make_groups(context: RunContext, examples: Sequence[Example]) -> tuple[list[Group], list[str]]:
    """Groups of at most `sft.questions` examples that share a prompt prefix (their schema).

    A group of packed rows also fits `sft.rows.length`, if that is set.

    Returns:
      The groups, and the id of each group's first example.

    Raises:
      ConfigError: see `make_sft_examples`.
    """
    size = context.config.sft.questions
    by_prefix: dict[tuple, list[SftExample]] = collections.defaultdict(list)
    for sft_example in make_sft_examples(context, examples):
        by_prefix[(sft_example.example.db_id, _prefix(sft_example))].append(sft_example)
    length = context.config.sft.rows.length if context.config.sft.rows.layout == "packed" else 0
    chunks = [chunk for members in by_prefix.values() for chunk in _chunks(members, size, length)]
    return [_make_group(chunk) for chunk in chunks], [chunk[0].example.id for chunk in chunks]


def _prefix(sft_example: SftExample) -> tuple[int, ...]:
    return tuple(sft_example.prompt.ids[: sft_example.prompt.prefix_length].tolist())


def _chunks(members: Sequence[SftExample], size: int, length: int) -> Iterator[list[SftExample]]:
    """The examples in order, in chunks of at most `size`; if `length` is not 0, of at most so many tokens in a row."""
    chunk: list[SftExample] = []
    tokens = 0
    for member in members:
        prefix = member.prompt.prefix_length
        added = len(member.prompt.ids) - prefix + len(member.answer) - 1
        if chunk and (len(chunk) == size or 0 < length < prefix + tokens + added):
            yield chunk
            chunk, tokens = [], 0
        chunk.append(member)
        tokens += added
    yield chunk


def make_sft_examples(context: RunContext, examples: Sequence[Example]) -> list[SftExample]:
    """The examples with prompts and answers in the form `data.form`.

    Examples whose prompt or answer exceeds its limit of tokens or the rows' lengths, or whose answer the form cannot
    express, are left out; the log says how many, which and why.

    Raises:
      ConfigError: the form is `reasoning` and no example has any, or no example is left to learn from.
    """
    source = context.config.data.sft
    if context.config.data.form == "reasoning" and examples and not any(example.reasoning for example in examples):
        raise ConfigError(
            f"No record of {source} has reasoning, so it can train only the direct form. Set "
            "--config.data.form=direct, or name a source with reasoning (synsql:)."
        )
    fitting, left_out = _fitting_examples(context, context.prompts(examples), examples)
    for reason, ids in left_out.items():
        shown = ", ".join(ids[:IDS_SHOWN]) + ", …" * (len(ids) > IDS_SHOWN)
        log.warning("%s: %d of %d examples left out: each %s (%s)", source, len(ids), len(examples), reason, shown)
    if not fitting:
        counts = {reason: len(ids) for reason, ids in left_out.items()}
        raise ConfigError(f"config.data.sft={source} gives no example to learn from: {counts}.")
    return fitting


def _fitting_examples(
    context: RunContext, prompts: Sequence[Prompt], examples: Sequence[Example]
) -> tuple[list[SftExample], dict[str, list[str]]]:
    """The examples that can be learned, and the ids of the others by the reason why they cannot."""
    usable, left_out = [], collections.defaultdict[str, list[str]](list)
    for example, prompt in zip(examples, prompts, strict=True):
        if prompt.over_budget:
            left_out["has a prompt over the budget"].append(example.id)
        elif (text := _answer_text(example, context.config.data.form)) is None:
            left_out["has no answer in this form"].append(example.id)
        else:
            usable.append((example, prompt, answer.after_opening(text, prompt.opening)))
    answers = _tokenize_answers(context, [text for _, _, text in usable]) if usable else []
    fitting = []
    for (example, prompt, _), ids in zip(usable, answers, strict=True):
        sft_example = SftExample(example, prompt, ids)
        if reason := _exceeded_limit(sft_example, context.config.sft):
            left_out[reason].append(example.id)
        else:
            fitting.append(sft_example)
    return fitting, left_out


def _exceeded_limit(sft_example: SftExample, sft_config: SftConfig) -> str:
    """Which limit of tokens the example exceeds, with the setting that it is; "" if none."""
    prompt, tokens = sft_example.prompt, len(sft_example.answer)
    rows, segment = sft_config.rows, len(prompt.ids) - prompt.prefix_length + tokens - 1
    if 0 < sft_config.max_answer_tokens < tokens:
        return f"has an answer over config.sft.max_answer_tokens={sft_config.max_answer_tokens}"
    if rows.layout == "packed":
        return (
            f"exceeds config.sft.rows.length={rows.length}" if 0 < rows.length < prompt.prefix_length + segment else ""
        )
    if 0 < rows.prefix < prompt.prefix_length:
        return f"has a schema over config.sft.rows.prefix={rows.prefix}"
    return f"exceeds config.sft.rows.segment={rows.segment}" if 0 < rows.segment < segment else ""


def _answer_text(example: Example, form: str) -> str | None:
    """The answer's text; None if the record lacks reasoning that the form needs, or has text that breaks the form."""
    if form == "reasoning" and not example.reasoning:
        return None
    try:
        sql = answer.without_padding(example.sql) if form == "direct" else example.sql
        return answer.write(example.reasoning, sql, form)
    except answer.AnswerError as error:
        log.warning("record %s %s", example.id, error)
        return None


def _tokenize_answers(context: RunContext, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Token ids of each answer, with the stop token appended."""
    stop_id = tokenizer.end_id(context.tokenizer, context.tokenizer_dir)
    encoded = context.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [np.asarray([*ids, stop_id], np.int32) for ids in encoded]


def _make_group(members: Sequence[SftExample]) -> Group:
    """The shared prefix, and a segment for each question with its answer; only the answer's tokens have loss."""
    prompt, segments = members[0].prompt, []
    length = prompt.prefix_length
    for member in members:
        question = member.prompt.ids[length:]
        tokens = np.concatenate([question, member.answer]).astype(np.int32)
        weight = np.zeros(len(tokens) - 1, np.float32)
        weight[len(question) - 1 :] = 1.0  # targets are the tokens shifted by one
        segments.append(Segment(tokens, weight, np.zeros_like(weight), prompt=0, sample=0))
    return Group(prompt.ids[:length], segments)


def _with_prompt_index(group: Group, prompt: int) -> Group:
    """The group as the batch's prompt number `prompt`, its segments numbered as that prompt's samples."""
    segments = [segment._replace(prompt=prompt, sample=i) for i, segment in enumerate(group.segments)]
    return Group(group.prefix, segments)
