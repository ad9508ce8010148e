"""The batch that is sampled before the update of the one before it: its completions are part of the state.

Its SQL runs while the device is at that update, so no step waits for rewards. It was sampled one update early, which
the clipped ratio to the sampler's own log-probabilities corrects, or, under the trainer's, the importance cap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sqlr1_jax import hosts, sharding
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.rl.experience import Scoring
from sqlr1_jax.rollout.engine import Completions, none_yet

NONE = -1


@dataclasses.dataclass(frozen=True)
class Sampled:
    """This host's part of a step's batch, its SQL on the way."""

    step: int
    chosen: Sequence[int]  # the problems of all hosts
    examples: Sequence[Example]
    prompts: Sequence[Prompt]
    completions: Completions
    scoring: Scoring


class Ahead:
    """Holds the next step's batch, or none; a checkpoint keeps it."""

    def __init__(self, mesh: Mesh, shape: tuple[int, int, int], again: Callable[[int, Completions], Sampled]):
        """shape: P of all hosts, G, T. again: makes a step's batch of completions that were sampled already."""
        self._mesh, self._shape, self._again = mesh, shape, again
        self._held: Sampled | None = None

    def hold(self, sampled: Sampled) -> None:
        """Keeps a batch for the step after this one."""
        self._held = sampled

    def take(self, step: int) -> Sampled | None:
        """That step's batch, if it is held."""
        held, self._held = self._held, None
        return held if held is not None and held.step == step else None

    def tree(self) -> dict[str, Any]:
        """What a checkpoint keeps: completions of all hosts, the same on each, and their step."""
        held = self._held
        made = hosts.rows(held.completions) if held else none_yet(*self._shape)
        everywhere = sharding.replicated(self._mesh)

        def put(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])

        step = np.asarray(held.step if held else NONE, np.int32)
        return {"step": put(step), "made": {name: put(array) for name, array in made._asdict().items()}}

    def restore(self, tree: dict[str, Any]) -> None:
        """Holds what `tree` gave once; its SQL runs again."""
        step, mine = int(tree["step"]), hosts.share(self._shape[0])
        made = Completions(**{name: np.array(x.addressable_data(0))[mine] for name, x in tree["made"].items()})
        self._held = self._again(step, made) if step != NONE else None
