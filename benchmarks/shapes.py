"""Workloads of the speed benchmarks, the same for every engine: models, prompts, sample lengths and FLOP floors.

The floor is the least number of floating-point operations that gives the result: each prompt is computed once,
attention covers only visible keys, and logits are computed only for completion tokens. The floor divided by the
machine's measured matmul rate is a lower bound of the time of any exact computation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from sqlr1_jax.model import flops, qwen2
from sqlr1_jax.model.qwen2 import Qwen2Config

# `small` is the model of scaling.py, whose table takes minutes with it; `nano` is for tests.
MODELS: dict[str, Qwen2Config] = {
    "14.5m": Qwen2Config(4096, 384, 6, 6, 2, 64, 1536, tied=True),
    "0.5b": qwen2.PRESETS["0.5b"],
    "small": Qwen2Config(1024, 128, 2, 4, 2, 32, 512, tied=True),
    "nano": Qwen2Config(64, 16, 2, 2, 1, 8, 32, tied=True),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """P prompts of one length, and G samples of each prompt with `shortest` to `longest` new tokens.

    Attributes:
      model: a name in MODELS.
      prompts: number of prompts, P.
      samples: samples of each prompt, G.
      prompt: tokens of a prompt, S.
      shortest: least new tokens of a sample.
      longest: most new tokens of a sample, T.
      seed: of all random tokens, lengths and advantages.
    """

    model: str
    prompts: int
    samples: int
    prompt: int
    shortest: int
    longest: int
    seed: int = 0

    @property
    def config(self) -> Qwen2Config:
        """The model's config, in float32."""
        return MODELS[self.model]

    def prompts_PS(self) -> npt.NDArray[np.int32]:
        """Random token ids. Ids 0 and 1 do not occur, since some engines need them for padding and end of text."""
        rng = np.random.default_rng(self.seed)
        return rng.integers(2, self.config.vocab_size, (self.prompts, self.prompt)).astype(np.int32)

    def lengths_PG(self) -> npt.NDArray[np.int32]:
        """Number of new tokens of each sample."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.integers(self.shortest, self.longest + 1, (self.prompts, self.samples)).astype(np.int32)

    def completions_PGT(self) -> npt.NDArray[np.int32]:
        """Token ids to train on, padded with 0 past each sample's length."""
        rng = np.random.default_rng(self.seed + 2)
        ids = rng.integers(2, self.config.vocab_size, (self.prompts, self.samples, self.longest))
        return np.where(np.arange(self.longest) < self.lengths_PG()[..., None], ids, 0).astype(np.int32)

    def advantage_PG(self) -> npt.NDArray[np.float32]:
        """A random advantage for each completion."""
        rng = np.random.default_rng(self.seed + 3)
        return rng.standard_normal((self.prompts, self.samples)).astype(np.float32)

    @property
    def tokens(self) -> int:
        """Number of useful tokens: those of all completions."""
        return int(self.lengths_PG().sum())


def forward_floor(work: Workload) -> float:
    """FLOPs of one forward pass over each prompt once and over all completions, with logits of completion tokens only.

    A prompt's last token is counted once for each completion, since it predicts the completion's first token.
    """
    prefix = work.prompt - 1
    lengths_N = work.lengths_PG().ravel().astype(float)
    keys = work.prompts * prefix * (prefix + 1) / 2 + (lengths_N * prefix + lengths_N * (lengths_N + 1) / 2).sum()
    prefix_tokens = float(work.prompts * prefix)
    return flops.forward_flops(work.config, prefix_tokens + lengths_N.sum(), keys, logit_tokens=lengths_N.sum())


def rollout_floor(work: Workload) -> float:
    """FLOPs of sampling: prefill and one forward pass of each new token."""
    return forward_floor(work)


def update_floor(work: Workload) -> float:
    """FLOPs of a training step: the forward pass, and twice as many for the backward pass."""
    return 3 * forward_floor(work)


ROLLOUT = {
    "w1": Workload("14.5m", 8, 8, 512, 16, 128),
    "w1-0.5b": Workload("0.5b", 1, 8, 512, 16, 128),
    "nano": Workload("nano", 2, 3, 12, 2, 6),
}
UPDATE = {
    "w3": Workload("14.5m", 1, 8, 2304, 600, 600),
    "w3-1x2": Workload("14.5m", 1, 2, 2304, 600, 600),
    "nano": Workload("nano", 2, 3, 12, 6, 6),
}


def as_json(work: Workload) -> dict[str, Any]:
    """The workload's fields, for a worker's job and for the result."""
    return dataclasses.asdict(work)
