"""Samples answers to many questions in chunks of whole databases, so that work which is stopped goes on.

Chunks are ordered by the length of their prompts. Each is one rollout: all samples of a question come from one prefill,
and the database's part of the prompt is prefilled once. A chunk's answers are written when it is done, and an
interrupted run goes on with the next chunk. A chunk's samples do not depend on the other chunks, so the results are the
same bytes as without a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.evaluate.heldout import Question
from sqlr1_jax.evaluate.partial_results import PartialResults
from sqlr1_jax.progress import Progress
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.rollout.prefixes import padded_size
from sqlr1_jax.rollout.request import FinishedSample
from sqlr1_jax.train.context import RunContext

CHUNK_ROUNDS = 4  # a chunk has this many times the questions that are sampled at once, so few slots idle at its end
SLOTS_CPU, SLOTS = 8, 64  # questions sampled at once if the config does not say

Item = TypeVar("Item")


def answer_in_chunks(
    context: RunContext,
    what: str,
    params: Any,
    questions: Sequence[Question],
    partial: PartialResults,
    answer_chunk: Callable[[Engine, Any, Sequence[Question], Progress], list[Any]],
) -> list[Any]:
    """An answer to each question, in their order.

    Args:
      context: the run; evaluate.max_concurrent_prompts decides the size of chunks.
      what: the work, as the progress names it.
      params: the weights.
      questions: no two of them have the same set and number.
      partial: chunks that it has are not computed again; it gets all others.
      answer_chunk: given an engine for the chunk's prompts, the sampler's weights, the chunk and the progress to count
        questions in, returns an answer to each question: a JSON value, the same on all processes.
    """
    chunks = split_into_chunks(questions, CHUNK_ROUNDS * concurrent_prompts(context))
    answers: dict[tuple[str, int], Any] = {}
    weights = None
    done = sum(len(chunk) for i, chunk in enumerate(chunks) if i in partial.chunks)
    with Progress(what, len(questions), "question", done) as progress:
        for i, chunk in enumerate(chunks):
            lines = partial.chunks.get(i)
            if lines is None:
                engine = context.engine([question.prompt for question in chunk], _slot_tokens(chunk))
                weights = engine.prepare_weights(params) if weights is None else weights
                lines = answer_chunk(engine, weights, chunk, progress)
                collectives.run_on_primary(partial.add, i, lines)
            answers |= {(q.set_name, q.number): line for q, line in zip(chunk, lines, strict=True)}
    return [answers[q.set_name, q.number] for q in questions]


def split_into_chunks(questions: Sequence[Question], size: int) -> list[list[Question]]:
    """Chunks of whole databases with at least `size` questions, but for the last; short prompts come first.

    Slots are as long as a chunk's longest prompt, so prompts of about one length are together. Chunks are not cut where
    that length changes: at the end of each, slots wait for its longest sample.
    """
    by_database: dict[Path, list[Question]] = {}
    for question in questions:
        by_database.setdefault(question.example.database, []).append(question)
    databases = sorted(by_database.values(), key=lambda group: (_slot_tokens(group), str(group[0].example.database)))
    chunks: list[list[Question]] = []
    for group in databases:
        if not chunks or len(chunks[-1]) >= size:
            chunks.append([])
        chunks[-1] += group
    return chunks


def _slot_tokens(questions: Iterable[Question]) -> int:
    return padded_size(max((len(q.prompt.ids) for q in questions if not q.prompt.over_budget), default=1))


def local_share(items: Sequence[Item]) -> list[Item]:
    """This process's share of the items; all processes get equally many, because they must sample as many prompts.

    The first items are repeated at the end to fill the shares. Results for the shares, concatenated over the
    processes, begin with those for the items in their order.
    """
    processes = collectives.process_count()
    padded_count = -(-len(items) // processes) * processes
    padded = [items[i % len(items)] for i in range(padded_count)]
    return padded[collectives.local_slice(padded_count)]


def count_prompts(prompts: int, samples: int, progress: Progress | None) -> Callable[[Sequence[FinishedSample]], None]:
    """A request's `on_finished` that counts a prompt as done once all of its samples have ended."""
    samples_left = np.full(prompts, samples)

    def count_finished(finished: Sequence[FinishedSample]) -> None:
        for sample in finished:
            samples_left[sample.prompt] -= 1
            if progress and not samples_left[sample.prompt]:
                progress.update(collectives.process_count())  # the others answer as many

    return count_finished


def concurrent_prompts(context: RunContext) -> int:
    """Prompts sampled at once: the config's, or as many as keep the platform busy, a multiple of the mesh's rows."""
    if wanted := context.config.evaluate.max_concurrent_prompts:
        return wanted
    rows = sharding.data_parallel_size(sharding.sampling_mesh(context.mesh, context.model.num_kv_heads))
    default = SLOTS_CPU if jax.default_backend() == "cpu" else SLOTS
    return -(-default // rows) * rows
