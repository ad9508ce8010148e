"""The questions that GRPO trains on, and which of them a step asks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

from sqlr1_jax.data import order
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt, PromptRenderer
from sqlr1_jax.data.record_index import IndexedExamples
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.lazy_batches import LazyBatches

log = logging.getLogger(__name__)

Pair = tuple[Example, Prompt]
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

    The order is that of `PromptSet`, but that another question takes the turn of one whose prompt is over the budget.
    """

    def __init__(self, examples: IndexedExamples, renderer: PromptRenderer, max_tokens: int) -> None:
        """max_tokens: of a prompt. No other thread may use the renderer, or its tokenizer."""
        super().__init__(examples, ())
        self._renderer, self.max_tokens = renderer, max_tokens
        self._batches = LazyBatches(
            len(examples),
            self._render,
            f"its prompt has over {max_tokens} tokens. Raise config.data.max_prompt_tokens (and "
            "config.grpo.rows.prefix, if that is set), or name another source.",
        )

    def batch(self, size: int, seed: int, number: int) -> Batch:
        """See `PromptSet.batch`."""
        pairs = self._batches.batch(size, seed, number)
        ids = collectives.allgather_list([example.id for example, _ in pairs])
        return [example for example, _ in pairs], [prompt for _, prompt in pairs], ids

    def render_ahead(self, size: int, seed: int, number: int) -> None:
        """Starts to render a batch, unless that has begun."""
        self._batches.start(size, seed, number)

    def at(self, positions: Sequence[int]) -> list[tuple[int, Example, Prompt]]:
        """See `PromptSet.at`; positions whose prompts are over the budget are left out."""
        pairs = self._batches.call(self._render, positions)
        return [(i, *pair) for i, pair in zip(positions, pairs, strict=True) if pair]

    def _render(self, positions: Sequence[int]) -> list[Pair | None]:
        """The examples with their prompts; None for a prompt over the budget."""
        examples = [self.examples[i] for i in positions]
        prompts = self._renderer.render_many(examples, say_budget=False)
        fits = [not prompt.over_budget and len(prompt.ids) <= self.max_tokens for prompt in prompts]
        return [pair if fit else None for pair, fit in zip(zip(examples, prompts, strict=True), fits, strict=True)]


def load_prompts(context: RunContext) -> PromptSet:
    """GRPO's training questions whose prompts are within the token budget.

    Prompts of an indexed source are rendered when a step needs them; else the log says how many are over the budget.

    Raises:
      ConfigError: no prompt is within the budget.
    """
    examples = context.training_examples("grpo")
    rows, budget = context.config.grpo.rows, context.config.data.max_prompt_tokens
    row_budget = rows.prefix + 1 if rows.layout == "shared_prefix" and rows.prefix else budget  # with its last token
    if isinstance(examples, IndexedExamples):
        databases = len(examples.positions_by_database())
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
