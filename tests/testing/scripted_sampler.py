"""A stand-in for the rollout engine whose completions a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sqlr1_jax.rollout.request import Completions, FinishedSample, Request


def completions(context: Any, texts: Sequence[Sequence[str]], length: int = 256) -> Completions:
    """Completions of these texts [P][G]. A text that ends in "…" is truncated; any other ends in the stop token.

    Log-probabilities cycle through -1, -2, -3.
    """
    P, G = len(texts), len(texts[0])
    result = Completions.empty(P, G, length)
    for p, g in np.ndindex(P, G):
        text = texts[p][g]
        stopped = not text.endswith("…")
        ids = context.tokenizer(text.removesuffix("…"), add_special_tokens=False)["input_ids"]
        ids = [*ids, context.tokenizer.eos_token_id] if stopped else ids
        result.tokens_PGT[p, g, : len(ids)] = ids
        result.logprobs_PGT[p, g, : len(ids)] = -1 - np.arange(len(ids)) % 3
        result.length_PG[p, g], result.stopped_PG[p, g] = len(ids), stopped
    return result


class RecordedRequest(NamedTuple):
    """What a test checks of a request."""

    first_index: int
    prompts: int  # how many
    temperature: float
    step: int


class ScriptedSampler:
    """Replaces an Engine: each completion is `write(prompt text, sample index)`. It records every request."""

    prompt_tokens = 96

    def __init__(self, context: Any, write: Callable[[str, int], str]):
        self._context, self._write = context, write
        self.requests: list[RecordedRequest] = []
        self.max_concurrent_prompts: list[int] = []  # of each request

    def prepare_weights(self, params: Any) -> Any:
        """The parameters themselves."""
        return params

    def compile(self, weights: Any, request: Request) -> None:
        """Does nothing: there is no program."""

    def rollout(self, weights: Any, request: Request) -> Completions:
        """Writes every completion, and reports all of them to `request.on_finished` at once."""
        del weights
        self.requests.append(
            RecordedRequest(request.indices[0], len(request.prompts), request.sampling.temperature, request.step)
        )
        self.max_concurrent_prompts.append(request.max_concurrent_prompts)
        prompt_texts = [self._context.tokenizer.decode(ids) for ids in request.prompts]
        texts = [[self._write(text, g) for g in range(request.samples)] for text in prompt_texts]
        result = completions(self._context, texts, request.sampling.max_tokens)
        if request.on_finished:
            request.on_finished([FinishedSample(p, g, result.ids(p, g)) for p, g in np.ndindex(result.length_PG.shape)])
        return result
