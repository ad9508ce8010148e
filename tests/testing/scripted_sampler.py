"""A sampler that says what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sqlr1_jax.rollout.engine import Completions, FinishedSample


def completions(context: Any, texts: Sequence[Sequence[str]], length: int = 256) -> Completions:
    """Completions of these texts [P][G], each ended by the stop token; one with "…" at its end is cut off instead."""
    P, G = len(texts), len(texts[0])
    made = Completions.empty(P, G, length)
    for p, g in np.ndindex(P, G):
        text = texts[p][g]
        stopped = not text.endswith("…")
        ids = context.tokenizer(text.removesuffix("…"), add_special_tokens=False)["input_ids"]
        ids = [*ids, context.tokenizer.eos_token_id] if stopped else ids
        made.tokens_PGT[p, g, : len(ids)] = ids
        made.logprobs_PGT[p, g, : len(ids)] = -1 - np.arange(len(ids)) % 3
        made.length_PG[p, g], made.stopped_PG[p, g] = len(ids), stopped
    return made


class ScriptedSampler:
    """In place of an Engine: each completion is `say(prompt's text, sample)`; it remembers what it was asked."""

    prompt_tokens = 96

    def __init__(self, context: Any, say: Callable[[str, int], str]):
        self._context, self._say = context, say
        self.asked: list[tuple[int, int, float, int]] = []  # first prompt, prompts, temperature, step
        self.slots: list[int] = []

    def weights(self, params: Any) -> Any:
        """The parameters themselves."""
        return params

    def compile(self, weights: Any, asked: Any) -> None:
        """Does nothing: there is no program."""

    def rollout(self, weights: Any, asked: Any) -> Completions:
        """Says a text for each prompt and sample, and tells `asked.on_finished` of all of them."""
        del weights
        self.asked.append((asked.prompt_offset, len(asked.prompts), asked.sampling.temperature, asked.step))
        self.slots.append(asked.max_concurrent_prompts)
        texts = [
            [self._say(self._context.tokenizer.decode(ids), g) for g in range(asked.samples)] for ids in asked.prompts
        ]
        made = completions(self._context, texts, asked.sampling.max_tokens)
        if asked.on_finished:
            asked.on_finished([FinishedSample(p, g, made.ids(p, g)) for p, g in np.ndindex(made.length_PG.shape)])
        return made
