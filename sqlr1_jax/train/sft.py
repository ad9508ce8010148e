"""The cold start: supervised steps over rows of one schema and its questions, loss on the answers alone."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from sqlr1_jax.data import answer, order, packing
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.packing import Group, Segment
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import tokenizer
from sqlr1_jax.train import batch, loop, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.state import TrainState

log = logging.getLogger(__name__)
STAGE = "sft"


def train(context: RunContext) -> TrainState:
    """Trains from the run's first weights to the stage's last step, or goes on from its last checkpoint."""
    cfg = context.cfg.sft
    examples = context.examples(context.cfg.data.sft, STAGE)
    groups, names = make_groups(context, examples)
    layout = batch.choose_layout(groups, cfg.rows)
    rows_cfg = batch.with_row_length(cfg.rows, max(map(packing.packed_length, groups)))
    program = state.UpdateSpec(context.model, cfg.optimizer, cfg.steps, layout, length_buckets=cfg.rows.length_buckets)
    microbatches = batch.max_microbatches(cfg.databases, cfg.rows, collectives.process_count())
    asked = sum(len(group.segments) for group in groups)
    log.info("cold start: %d examples in %d groups, rows %s", asked, len(groups), layout or "packed")

    def take(at: TrainState, step: int) -> loop.StepResult:
        begin = time.perf_counter()
        chosen = order.batch_indices(len(groups), cfg.databases, context.cfg.seed, step)
        mine = chosen[collectives.local_slice(len(chosen))]
        rows = batch.pack_groups([_numbered(groups[i], n) for n, i in enumerate(mine)], layout, rows_cfg)
        rows = rows._replace(weight=batch.loss_weights(rows, "token"))
        fed = batch.assemble_batch(rows, context.mesh, cfg.rows.per_microbatch, microbatches)
        # Told before the update is on its way, for which all that is told after it waits.
        tokens = collectives.global_sum(int(np.count_nonzero(rows.weight)))
        values = {"tokens": tokens, "flops": collectives.global_sum(3 * batch.forward_flops(rows, context.model))}
        packed = time.perf_counter()
        at, sums = state.update(at, fed, sft_loss, None, program)
        values |= {"time/pack": packed - begin, "time/update": time.perf_counter() - packed}
        return loop.StepResult(at, sums, values, [names[i] for i in chosen])

    with jax.set_mesh(context.mesh):
        no_rows = batch.pack_groups([], layout, rows_cfg)
        nothing = batch.assemble_batch(no_rows, context.mesh, cfg.rows.per_microbatch, microbatches)
        return loop.run_steps(
            context, STAGE, cfg.steps, state.create_state(init_params(context), program), take,
            prepare=lambda at: state.compile_update(at, nothing, sft_loss, None, program),
        )  # fmt: skip


def sft_loss(
    logp_BT: jax.Array, entropy_BT: jax.Array, micro: Batch, settings: None
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Negative log-likelihood of the answers' tokens, whose weights sum to one over the global batch."""
    del settings
    counted_BT = micro.rows.weight > 0
    count = counted_BT.sum().astype(jnp.float32)
    entropy = jnp.where(counted_BT, jax.lax.stop_gradient(entropy_BT), 0.0).sum()
    return -(logp_BT * micro.rows.weight).sum(), {"entropy": (entropy, count)}


def make_groups(context: RunContext, examples: Sequence[Example]) -> tuple[list[Group], list[str]]:
    """Groups of questions that share a prompt prefix (their schema), and the first example's id of each.

    Raises:
      ConfigError: the reasoning form was asked of a source without reasoning, or nothing is left to train on.
    """
    cfg = context.cfg.sft
    shared: dict[tuple, list[Taught]] = collections.defaultdict(list)
    for taught in teachable(context, examples):
        cut = taught.prompt.prefix_length
        shared[(taught.example.db_id, tuple(taught.prompt.ids[:cut]))].append(taught)
    parts = [
        members[start : start + cfg.questions]
        for members in shared.values()
        for start in range(0, len(members), cfg.questions)
    ]
    return [_group(part) for part in parts], [part[0].example.id for part in parts]


class Taught(NamedTuple):
    """An example as it is learned."""

    example: Example
    prompt: Prompt
    answer: npt.NDArray[np.int32]  # token ids, the stop token behind


def teachable(context: RunContext, examples: Sequence[Example]) -> list[Taught]:
    """The examples with prompts and answers in the run's form; what can't be learned from is counted and left out."""
    form, source = context.cfg.data.form, context.cfg.data.sft
    if form == "reasoning" and examples and not any(e.reasoning for e in examples):
        raise ConfigError(
            f"record {examples[0].id} of {source}, like all others, has no reasoning: it gives a direct cold "
            "start. Set --config.data.form=direct, or name a source with reasoning (synsql:)."
        )
    prompts, texts = context.prompts(examples), [_written(e, form) for e in examples]
    left_out = collections.Counter(
        "has a prompt over the budget" if p.over_budget else "has no answer in this form" if t is None else "kept"
        for p, t in zip(prompts, texts, strict=True)
    )
    kept = [(e, p, t) for e, p, t in zip(examples, prompts, texts, strict=True) if t is not None and not p.over_budget]
    for reason, count in left_out.items():
        if reason != "kept":
            log.warning("%s: %d of %d examples left out: each %s", source, count, len(examples), reason)
    if not kept:
        raise ConfigError(f"config.data.sft={source} gives no example to learn from: {dict(left_out)}.")
    ids = answer_ids(context, [t for _, _, t in kept])
    return [Taught(e, p, one) for (e, p, _), one in zip(kept, ids, strict=True)]


def _written(example: Example, form: str) -> str | None:
    """The answer's text; None where the record has no reasoning, or says something that the form can't carry."""
    if form == "reasoning" and not example.reasoning:
        return None
    try:
        return answer.write(example.reasoning, example.sql, form)
    except answer.AnswerError as error:
        log.warning("record %s %s", example.id, error)
        return None


def answer_ids(context: RunContext, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Token ids of answers, the stop token behind."""
    stop = context.tokenizer.eos_token_id
    if stop is None:
        stop = tokenizer.stop_ids(context.tokenizer)[-1]
    encoded = context.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [np.asarray([*ids, stop], np.int32) for ids in encoded]


def _group(members: Sequence[Taught]) -> Group:
    """One prefix and its questions with answers; a segment's question is read, its answer is learned."""
    first = members[0].prompt
    cut = first.prefix_length
    return Group(first.ids[:cut], [_segment(one.prompt.ids[cut:], one.answer) for one in members])


def _segment(question: np.ndarray, ids: np.ndarray) -> Segment:
    tokens = np.concatenate([question, ids]).astype(np.int32)
    weight = np.zeros(len(tokens) - 1, np.float32)
    weight[len(question) - 1 :] = 1.0
    return Segment(tokens, weight, np.zeros_like(weight), 0, 0)


def _numbered(group: Group, prompt: int) -> Group:
    return Group(group.prefix, [s._replace(prompt=prompt, sample=i) for i, s in enumerate(group.segments)])
