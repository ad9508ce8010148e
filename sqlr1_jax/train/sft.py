"""The cold start: supervised steps over rows of one schema and its questions, loss on the answers alone."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax import config
from sqlr1_jax.data import answer, order
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.packing import Group, Segment
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.model import tokenizer
from sqlr1_jax.train import batch, loop, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.run import Run, parameters
from sqlr1_jax.train.state import TrainState

log = logging.getLogger(__name__)
STAGE = "cold_start"


def run_stage(run: Run) -> TrainState:
    """Trains from the run's first weights to the stage's last step, or goes on from its last checkpoint."""
    cfg = run.cfg.cold_start
    examples = run.examples(run.cfg.data.cold_start, STAGE)
    groups, names = make_groups(run, examples)
    layout = batch.layout_for(groups, cfg.rows)
    program = state.Program(run.model, cfg.optimizer, cfg.steps, layout)
    microbatches = -(-cfg.databases // cfg.rows.per_microbatch)
    log.info("cold start: %d examples in %d groups, rows %s", len(examples), len(groups), layout or "packed")

    def take(at: TrainState, step: int) -> loop.Step:
        begin = time.perf_counter()
        chosen = order.take(len(groups), cfg.databases, run.cfg.seed, step)
        rows = batch.to_rows([_numbered(groups[i], n) for n, i in enumerate(chosen)], layout, cfg.rows)
        rows = rows._replace(weight=batch.place_weights(rows, "token"))
        fed = batch.assemble(rows, run.mesh, cfg.rows.per_microbatch, microbatches)
        packed = time.perf_counter()
        at, sums = state.update(at, fed, sft_loss, None, program)
        values = {
            "time/pack": packed - begin,
            "time/update": time.perf_counter() - packed,
            "tokens": float(np.count_nonzero(rows.weight)),
        }
        return loop.Step(at, sums, values, [names[i] for i in chosen])

    with jax.set_mesh(run.mesh):
        return loop.train(run, STAGE, cfg.steps, state.create(parameters(run, ()), program), take)


def sft_loss(
    logp_BT: jax.Array, entropy_BT: jax.Array, micro: Batch, settings: None
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Negative log-likelihood of the answers' tokens, whose weights sum to one over the global batch."""
    del settings
    counted_BT = micro.rows.weight > 0
    count = counted_BT.sum().astype(jnp.float32)
    entropy = jnp.where(counted_BT, jax.lax.stop_gradient(entropy_BT), 0.0).sum()
    return -(logp_BT * micro.rows.weight).sum(), {"entropy": (entropy, count)}


def make_groups(run: Run, examples: Sequence[Example]) -> tuple[list[Group], list[str]]:
    """Groups of questions that share a prompt prefix (their schema), and the first example's id of each.

    Raises:
      config.ConfigError: the reasoning form was asked of a source whose records have none.
    """
    cfg, form = run.cfg.cold_start, run.cfg.data.form
    if form == "reasoning" and (bare := next((e for e in examples if not e.reasoning), None)):
        raise config.ConfigError(
            f"record {bare.id} of {run.cfg.data.cold_start} has no reasoning: such a source gives a direct cold start. "
            "Set --config.data.form=direct, or name a source with reasoning (synsql:)."
        )
    kept = [(e, p) for e, p in zip(examples, run.prompts(examples), strict=True) if not p.over_budget]
    if len(kept) < len(examples):
        log.warning("%d of %d prompts are over the budget and left out", len(examples) - len(kept), len(examples))
    shared: dict[tuple, list[tuple[Prompt, np.ndarray, str]]] = collections.defaultdict(list)
    for (e, prompt), ids in zip(kept, answer_ids(run, [e for e, _ in kept]), strict=True):
        shared[(e.db_id, tuple(prompt.ids[: prompt.prefix_length]))].append((prompt, ids, e.id))
    groups, names = [], []
    for members in shared.values():
        for start in range(0, len(members), cfg.questions):
            part = members[start : start + cfg.questions]
            groups.append(_group(part))
            names.append(part[0][2])
    return groups, names


def answer_ids(run: Run, examples: Sequence[Example]) -> list[np.ndarray]:
    """Token ids of each example's answer in the run's form, the stop token behind."""
    texts = [answer.write(e.reasoning, e.sql, run.cfg.data.form) for e in examples]
    stop = tokenizer.stop_ids(run.tokenizer)[0]
    encoded = run.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [np.asarray([*ids, stop], np.int32) for ids in encoded]


def _group(members: Sequence[tuple[Prompt, np.ndarray, str]]) -> Group:
    """One prefix and its questions with answers; a segment's question is read, its answer is learnt."""
    cut = members[0][0].prefix_length
    return Group(members[0][0].ids[:cut], [_segment(prompt.ids[cut:], ids) for prompt, ids, _ in members])


def _segment(question: np.ndarray, ids: np.ndarray) -> Segment:
    tokens = np.concatenate([question, ids]).astype(np.int32)
    weight = np.zeros(len(tokens) - 1, np.float32)
    weight[len(question) - 1 :] = 1.0
    return Segment(tokens, weight, np.zeros_like(weight), 0, 0)


def _numbered(group: Group, prompt: int) -> Group:
    return Group(group.prefix, [s._replace(prompt=prompt, sample=i) for i, s in enumerate(group.segments)])
