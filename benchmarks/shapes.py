"""What the speed benchmarks compute, the same for every engine: models, prompts, planned lengths, and the work's floor.

The floor is the least arithmetic that gives the result: each prompt once, attention to what may be seen, logits where a
token is chosen or counted. Over the machine's measured matmul rate it is the time that nothing exact can beat.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from sqlr1_jax.model import flops, qwen2
from sqlr1_jax.model.qwen2 import Qwen2Config

# Qwen2's form at 14.5 million parameters, and at a size whose whole scaling table takes minutes.
MODELS: dict[str, Qwen2Config] = {
    "14.5m": Qwen2Config(4096, 384, 6, 6, 2, 64, 1536, tied=True),
    "0.5b": qwen2.PRESETS["0.5b"],
    "small": Qwen2Config(1024, 128, 2, 4, 2, 32, 512, tied=True),
    "nano": Qwen2Config(64, 16, 2, 2, 1, 8, 32, tied=True),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """P prompts of one length, G samples of each, and from `shortest` to `longest` new tokens a sample."""

    model: str
    prompts: int
    samples: int
    prompt: int
    shortest: int
    longest: int
    seed: int = 0

    @property
    def config(self) -> Qwen2Config:
        """The model's shape, in float32."""
        return MODELS[self.model]

    def prompts_PS(self) -> npt.NDArray[np.int32]:
        """Random token ids; 0 and 1 are left to engines that need a padding and an end."""
        rng = np.random.default_rng(self.seed)
        return rng.integers(2, self.config.vocab_size, (self.prompts, self.prompt)).astype(np.int32)

    def lengths_PG(self) -> npt.NDArray[np.int32]:
        """New tokens of each sample."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.integers(self.shortest, self.longest + 1, (self.prompts, self.samples)).astype(np.int32)

    def completions_PGT(self) -> npt.NDArray[np.int32]:
        """Token ids to train on; those past a sample's length are 0."""
        rng = np.random.default_rng(self.seed + 2)
        ids = rng.integers(2, self.config.vocab_size, (self.prompts, self.samples, self.longest))
        return np.where(np.arange(self.longest) < self.lengths_PG()[..., None], ids, 0).astype(np.int32)

    def advantage_PG(self) -> npt.NDArray[np.float32]:
        """An advantage for each completion."""
        rng = np.random.default_rng(self.seed + 3)
        return rng.standard_normal((self.prompts, self.samples)).astype(np.float32)

    @property
    def tokens(self) -> int:
        """Useful ones: those of completions, as planned."""
        return int(self.lengths_PG().sum())


def forward_floor(work: Workload) -> float:
    """Operations of one forward pass over every prompt, once, and its completions; logits of completions alone.

    A prompt's last token is counted with each completion that it begins: what it predicts there is the first token.
    """
    prefix = work.prompt - 1
    lengths_N = work.lengths_PG().ravel().astype(float)
    keys = work.prompts * prefix * (prefix + 1) / 2 + (lengths_N * prefix + lengths_N * (lengths_N + 1) / 2).sum()
    prefixes = float(work.prompts * prefix)
    return flops.forward_flops(work.config, prefixes + lengths_N.sum(), keys, logit_tokens=lengths_N.sum())


def rollout_floor(work: Workload) -> float:
    """Of sampling: prefill, and a forward pass of each token."""
    return forward_floor(work)


def update_floor(work: Workload) -> float:
    """Of a training step: the forward pass, and twice as much backward."""
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
    """The workload's numbers, for a worker and for the result."""
    return dataclasses.asdict(work)
