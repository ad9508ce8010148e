"""The questions that GRPO trains on, and which of them a step asks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from sqlr1_jax.data import order
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt, PromptRenderer
from sqlr1_jax.data.record_index import IndexedExamples
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.train.context import RunContext

log = logging.getLogger(__name__)

_MAX_DRAWS = 100  # questions to try in place of one whose prompt is over the budget

Pairs = list[tuple[Example, Prompt]]
Batch = tuple[list[Example], list[Prompt], list[str]]


class PromptSet:
    """The questions that GRPO trains on, with their prompts; the data's own reasoning is not in the prompts."""

    def __init__(self, examples: Sequence[Example], prompts: Sequence[Prompt]) -> None:
        """Lists of the same length: prompts[i] asks examples[i]."""
        self.examples, self.prompts = examples, prompts
        self.max_tokens = 0  # that a prompt may have which `prompts` does not list

    def batch(self, size: int, seed: int, number: int) -> Batch:
        """This process's examples and prompts of a batch, and the example ids of all processes' batch. Collective.

        Args:
          size: P, the prompts of a batch on all processes.
          seed: seed of the data order.
          number: of the batch, from 0; the order depends only on seed and number.
        """
        indices = order.batch_indices(len(self.examples), size, seed, number)
        local = indices[collectives.local_slice(size)]
        ids = [self.examples[i].id for i in indices]
        return [self.examples[i] for i in local], [self.prompts[i] for i in local], ids

    def render_ahead(self, size: int, seed: int, number: int) -> None:
        """Prepares a batch that will soon be asked for; here all prompts exist already."""

    def at(self, positions: Sequence[int]) -> list[tuple[int, Example, Prompt]]:
        """The positions, with the example and the prompt at each."""
        return [(i, self.examples[i], self.prompts[i]) for i in positions]


class LazyPromptSet(PromptSet):
    """The questions of an indexed source; their prompts are rendered, on a thread, for the batches that need them.

    The order is that of `PromptSet`. A question whose prompt is over the budget is found only when its turn comes;
    another takes its place, drawn by seed and turn alone.
    """

    def __init__(self, examples: IndexedExamples, renderer: PromptRenderer, max_tokens: int) -> None:
        """max_tokens: of a prompt. No other thread may use the renderer, or its tokenizer."""
        super().__init__(examples, ())
        self._renderer, self.max_tokens = renderer, max_tokens
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._batches: dict[int, Future[Pairs]] = {}  # by number; rendered, or to be rendered
        self._said = False  # whether the log has told of a prompt over the budget

    def batch(self, size: int, seed: int, number: int) -> Batch:
        """See `PromptSet.batch`."""
        self.render_ahead(size, seed, number)
        with collectives.sync_errors():
            pairs = self._batches[number].result()
        self._batches = {later: future for later, future in self._batches.items() if later > number}
        ids = collectives.allgather_list([example.id for example, _ in pairs])
        return [example for example, _ in pairs], [prompt for _, prompt in pairs], ids

    def render_ahead(self, size: int, seed: int, number: int) -> None:
        """Starts to render a batch, unless that has begun."""
        if number not in self._batches:
            self._batches[number] = self._thread.submit(self._render_batch, size, seed, number)

    def at(self, positions: Sequence[int]) -> list[tuple[int, Example, Prompt]]:
        """See `PromptSet.at`; positions whose prompts are over the budget are left out."""
        pairs = self._thread.submit(self._render, [self.examples[i] for i in positions]).result()
        return [(i, *pair) for i, pair in zip(positions, pairs, strict=True) if self._fits(pair[1])]

    def _render_batch(self, size: int, seed: int, number: int) -> Pairs:
        indices = order.batch_indices(len(self.examples), size, seed, number)
        local = range(size)[collectives.local_slice(size)]
        pairs = self._render([self.examples[indices[i]] for i in local])
        return [
            pair if self._fits(pair[1]) else self._substitute(pair[0], seed, number * size + turn)
            for turn, pair in zip(local, pairs, strict=True)
        ]

    def _render(self, examples: Sequence[Example]) -> Pairs:
        return list(zip(examples, self._renderer.render_many(examples, say_budget=False), strict=True))

    def _fits(self, prompt: Prompt) -> bool:
        return not prompt.over_budget and len(prompt.ids) <= self.max_tokens

    def _substitute(self, example: Example, seed: int, turn: int) -> tuple[Example, Prompt]:
        """Another question for a turn whose prompt is over the budget; a function of seed and turn."""
        if not self._said:
            text = "the prompt of record %s has over %d tokens; other questions take its place and that of all like it"
            log.warning(text, example.id, self.max_tokens)
            self._said = True
        random = np.random.default_rng([seed, turn])
        for _ in range(_MAX_DRAWS):
            [pair] = self._render([self.examples[int(random.integers(len(self.examples)))]])
            if self._fits(pair[1]):
                return pair
        raise ConfigError(
            f"the prompts of {_MAX_DRAWS} questions in a row have over {self.max_tokens} tokens. Raise "
            "config.data.max_prompt_tokens (and config.grpo.rows.prefix, if that is set), or name another source."
        )


def load_prompts(context: RunContext) -> PromptSet:
    """GRPO's training questions whose prompts are within the token budget.

    Prompts of an indexed source are rendered when a step needs them; else the log says how many are over the budget.

    Raises:
      ConfigError: no prompt is within the budget.
    """
    examples = context.examples(context.config.data.train, "grpo")
    rows, budget = context.config.grpo.rows, context.config.data.max_prompt_tokens
    row_budget = rows.prefix + 1 if rows.layout == "shared_prefix" and rows.prefix else budget  # with its last token
    if isinstance(examples, IndexedExamples):
        databases = examples.count_databases()
        log.info("GRPO: %d questions on %d databases, rendered when a step needs them", len(examples), databases)
        renderer = PromptRenderer(copy.deepcopy(context.tokenizer), context.config.data)
        return LazyPromptSet(examples, renderer, min(budget, row_budget))
    pairs = list(zip(examples, context.prompts(examples), strict=True))
    within = [(e, p) for e, p in pairs if not p.over_budget]
    fitting = [(e, p) for e, p in within if len(p.ids) <= row_budget]
    if len(within) < len(pairs):
        log.warning("%d of %d prompts are over the budget and left out", len(pairs) - len(within), len(pairs))
    if len(fitting) < len(within):
        log.warning(
            "%d of %d prompts exceed config.grpo.rows.prefix=%d and are left out",
            len(within) - len(fitting), len(pairs), rows.prefix,
        )  # fmt: skip
    if not fitting:
        raise ConfigError(
            f"config.data.train={context.config.data.train} gives no prompt within the budget. Raise "
            "config.data.max_prompt_tokens (and config.grpo.rows.prefix, if that is set), or name another source."
        )
    log.info("GRPO: %d questions on %d databases", len(fitting), len({e.db_id for e, _ in fitting}))
    return PromptSet([e for e, _ in fitting], [p for _, p in fitting])
