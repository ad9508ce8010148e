"""The SFT stage (the paper's cold start): supervised fine-tuning on questions with answers.

A row holds one schema as its prefix and questions on it with their answers as segments. Only answer tokens have loss.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sqlr1_jax.config import RowsConfig, SftConfig
from sqlr1_jax.data import answer, order, packing
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.packing import Group, Segment
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import flops, lora, tokenizer
from sqlr1_jax.train import batch, loop, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.loop import StepResult
from sqlr1_jax.train.state import Sums, TrainState, UpdateSpec

log = logging.getLogger(__name__)
STAGE = "sft"
IDS_SHOWN = 3  # ids of examples in a warning


@dataclasses.dataclass(frozen=True)
class SftSetup:
    """What stays the same from step to step."""

    context: RunContext
    groups: Sequence[Group]  # the items that a step draws from
    group_ids: Sequence[str]  # the id of each group's first example
    update_spec: UpdateSpec
    rows_config: RowsConfig
    max_microbatches: int  # largest number of microbatches of an update


class SftExample(NamedTuple):
    """An example with its prompt and the answer to learn."""

    example: Example
    prompt: Prompt
    answer: npt.NDArray[np.int32]  # token ids, ending with the stop token


def train(context: RunContext) -> TrainState:
    """Trains to the stage's last step, from its latest checkpoint or the run's initial weights.

    Raises:
      ConfigError: the stage's data have no example to learn from, or no reasoning although the form needs it.
      packing.PackingError: a group does not fit a row; the message names the setting to raise.
    """
    setup = prepare(context)
    with jax.set_mesh(context.mesh):
        return loop.run_steps(
            context,
            STAGE,
            context.config.sft.steps,
            state.create_state(lora.split(init_params(context))[0], setup.update_spec),
            step_fn=functools.partial(train_step, setup),
            compile_fn=functools.partial(compile_update, setup),
        )


def prepare(context: RunContext) -> SftSetup:
    """Reads the stage's examples and fixes one row layout for all of its steps, so that the update compiles once."""
    sft_config = context.config.sft
    examples = context.examples(context.config.data.sft, STAGE)
    groups, group_ids = make_groups(context, examples)
    layout = batch.choose_layout(groups, sft_config.rows)
    rows_config = batch.with_row_length(sft_config.rows, max(map(packing.packed_length, groups)))
    update_spec = UpdateSpec(
        context.model, sft_config.optimizer, sft_config.steps, layout, row_buckets=batch.row_buckets(sft_config.rows)
    )
    max_microbatches = batch.max_microbatches(sft_config.databases, sft_config.rows, collectives.process_count())
    num_examples = sum(len(group.segments) for group in groups)
    log.info("cold start: %d examples in %d groups, rows %s", num_examples, len(groups), layout or "packed")
    return SftSetup(context, groups, group_ids, update_spec, rows_config, max_microbatches)


def train_step(setup: SftSetup, train_state: TrainState, step: int) -> StepResult:
    """One step of SFT on `sft.databases` groups; each process packs its own share of them."""
    begin = time.perf_counter()
    context, rows_config = setup.context, setup.rows_config
    indices = order.batch_indices(len(setup.groups), context.config.sft.databases, context.config.seed, step)
    local_indices = indices[collectives.local_slice(len(indices))]
    groups = [_with_prompt_index(setup.groups[i], position) for position, i in enumerate(local_indices)]
    rows = batch.pack_groups(groups, setup.update_spec.layout, rows_config)
    rows = rows._replace(weight=batch.loss_weights(rows, "token"))
    update_batch = batch.assemble_batch(rows, context.mesh, rows_config.per_microbatch, setup.max_microbatches)
    # Collectives run on the devices in order of dispatch, so after the update these two would wait for it.
    tokens = collectives.global_sum(int(np.count_nonzero(rows.weight)))
    passes = flops.update_passes(context.model)
    useful_flops = collectives.global_sum(passes * batch.forward_flops(rows, context.model))
    packed = time.perf_counter()
    frozen = context.frozen_params
    train_state, sums = state.update(train_state, update_batch, sft_loss, None, setup.update_spec, frozen)
    metrics = {"tokens": tokens, "flops": useful_flops, "time/pack": packed - begin}
    metrics["time/update"] = time.perf_counter() - packed
    return StepResult(train_state, sums, metrics, [setup.group_ids[i] for i in indices])


def compile_update(setup: SftSetup, train_state: TrainState) -> TrainState:
    """Compiles the stage's update on a batch without rows; returns an equal state."""
    no_rows = batch.pack_groups([], setup.update_spec.layout, setup.rows_config)
    empty_batch = batch.assemble_batch(
        no_rows, setup.context.mesh, setup.rows_config.per_microbatch, setup.max_microbatches
    )
    frozen = setup.context.frozen_params
    return state.compile_update(train_state, empty_batch, sft_loss, None, setup.update_spec, frozen)


def sft_loss(logp_BT: jax.Array, entropy_BT: jax.Array, microbatch: Batch, loss_config: None) -> tuple[jax.Array, Sums]:
    """Negative log-likelihood of the answers' tokens; the loss weights sum to one over the global batch."""
    del loss_config
    loss_mask_BT = microbatch.rows.weight > 0
    count = loss_mask_BT.sum().astype(jnp.float32)
    entropy = jnp.where(loss_mask_BT, jax.lax.stop_gradient(entropy_BT), 0.0).sum()
    return -(logp_BT * microbatch.rows.weight).sum(), {"entropy": (entropy, count)}


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
        prompt = sft_example.prompt
        by_prefix[(sft_example.example.db_id, tuple(prompt.ids[: prompt.prefix_length]))].append(sft_example)
    length = context.config.sft.rows.length if context.config.sft.rows.layout == "packed" else 0
    chunks = [chunk for members in by_prefix.values() for chunk in _chunks(members, size, length)]
    return [_make_group(chunk) for chunk in chunks], [chunk[0].example.id for chunk in chunks]


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
    form, source = context.config.data.form, context.config.data.sft
    if form == "reasoning" and examples and not any(example.reasoning for example in examples):
        raise ConfigError(
            f"No record of {source} has reasoning, so it can train only the direct form. Set "
            "--config.data.form=direct, or name a source with reasoning (synsql:)."
        )
    prompts, texts = context.prompts(examples), [_answer_text(example, form) for example in examples]
    usable, left_out = [], collections.defaultdict[str, list[str]](list)
    for example, prompt, text in zip(examples, prompts, texts, strict=True):
        if prompt.over_budget:
            left_out["has a prompt over the budget"].append(example.id)
        elif text is None:
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
    for reason, ids_of_reason in left_out.items():
        shown = ", ".join(ids_of_reason[:IDS_SHOWN]) + ", …" * (len(ids_of_reason) > IDS_SHOWN)
        log.warning(
            "%s: %d of %d examples left out: each %s (%s)", source, len(ids_of_reason), len(examples), reason, shown
        )
    if not fitting:
        counts = {reason: len(ids_of_reason) for reason, ids_of_reason in left_out.items()}
        raise ConfigError(f"config.data.sft={source} gives no example to learn from: {counts}.")
    return fitting


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
