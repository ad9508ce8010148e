"""What a rollout is asked for, and what it returns: `Request`, `Completions` and the samples that have finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sqlr1_jax.config import SamplingConfig

Ids = npt.NDArray[np.int32]


class FinishedSample(NamedTuple):
    """A sample that has ended."""

    prompt: int  # index in the request's prompts
    sample: int
    ids: Ids


class Completions(NamedTuple):
    """Sampled tokens of a request, on the host; entries past a sample's length are zero."""

    tokens_PGT: npt.NDArray[np.int32]
    logprobs_PGT: npt.NDArray[np.float32]  # under softmax(logits / temperature) before truncation
    length_PG: npt.NDArray[np.int32]  # tokens, including the stop token
    stopped_PG: npt.NDArray[np.bool_]  # False: truncated at the token limit

    def ids(self, prompt: int, sample: int) -> Ids:
        """A sample's tokens, including its stop token if it has one."""
        return self.tokens_PGT[prompt, sample, : self.length_PG[prompt, sample]]

    @classmethod
    def empty(cls, P: int, G: int, T: int) -> Completions:
        """Completions of length 0, with room for T tokens each."""
        tokens_PGT, length_PG = np.zeros((P, G, T), np.int32), np.zeros((P, G), np.int32)
        return cls(tokens_PGT, np.zeros((P, G, T), np.float32), length_PG, np.zeros((P, G), bool))


@dataclasses.dataclass(frozen=True)
class Request:
    """Prompts of this process to sample from, and how. All processes pass equally many prompts."""

    prompts: Sequence[Ids]
    samples: int  # G, per prompt
    sampling: SamplingConfig
    seed: int  # random numbers are a function of seed, step, prompt index, sample index and token index
    step: int  # training step; evaluation uses a reserved number
    # Each prompt's index among those of the step, which its random numbers depend on; None: 0, 1, 2, …
    index_P: Sequence[int] | None = None
    # How many tokens each prompt shares with others of the request, from its first on; prompts that begin with the same
    # such tokens are prefilled together, those tokens once. None: every prompt is prefilled whole.
    prefix_length_P: Sequence[int] | None = None
    # A temperature for each of a prompt's samples; empty: sampling's for all.
    temperatures: tuple[float, ...] = ()
    # Slots over all processes; 0: rollout.max_concurrent_prompts, or if that is 0 too, one slot per prompt.
    max_concurrent_prompts: int = 0
    limit_PG: npt.NDArray[np.int32] | None = None  # token limit of each sample; None: sampling.max_tokens
    # Maps the tokens so far to the length at which the completion ends, or to None if it goes on. It detects ends
    # that the device cannot, such as the end of a text that spans several tokens.
    stop_fn: Callable[[Ids], int | None] | None = None
    # Called with the samples that have ended, once per read of the device's output. It must not raise if there are
    # several processes.
    on_finished: Callable[[Sequence[FinishedSample]], None] | None = None
    # Called with all tokens so far, after each read of the device's output. What it raises, on all processes, ends the
    # rollout.
    on_read: Callable[[Completions], None] | None = None

    @property
    def indices(self) -> Sequence[int]:
        """`index_P`, or by default each prompt's position in the request."""
        return range(len(self.prompts)) if self.index_P is None else self.index_P

    @property
    def token_limit_PG(self) -> npt.NDArray[np.int32]:
        """Token limit of each sample: `limit_PG`, capped at `sampling.max_tokens`."""
        if self.limit_PG is None:
            return np.full((len(self.prompts), self.samples), self.sampling.max_tokens, np.int32)
        return np.minimum(self.limit_PG, self.sampling.max_tokens).astype(np.int32)
