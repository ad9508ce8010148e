"""Prompts in, completions out: batches of one shape, prefilled once a prompt and decoded for all its samples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from sqlr1_jax import config, sharding
from sqlr1_jax.model import qwen2
from sqlr1_jax.rollout import decode, sampling


class Completions(NamedTuple):
    """What was sampled, on the host; places past a sample's length hold zeros."""

    tokens_PGT: npt.NDArray[np.int32]
    logprobs_PGT: npt.NDArray[np.float32]  # under logits / temperature, as sampled
    length_PG: npt.NDArray[np.int32]  # the stop token counted
    stopped_PG: npt.NDArray[np.bool_]  # False: cut off

    def ids(self, prompt: int, sample: int) -> npt.NDArray[np.int32]:
        """A sample's tokens, its stop token (where it has one) included."""
        return self.tokens_PGT[prompt, sample, : self.length_PG[prompt, sample]]


@dataclasses.dataclass(frozen=True)
class Engine:
    """What stays the same from rollout to rollout. Prompts are padded to `prompt_tokens`: one shape, compiled once."""

    model: qwen2.Qwen2Config  # in the sampler's dtype
    mesh: Mesh
    stop: tuple[int, ...]
    prompt_tokens: int

    def weights(self, params: Any) -> Any:
        """The sampler's copy of the training weights: cast, and laid out by SAMPLE_RULES."""
        return _reshard(params, self.model, self.mesh)

    def rollout(
        self,
        weights: Any,
        prompts: Sequence[npt.NDArray[np.int32]],
        samples: int,
        settings: config.Sampling,
        seed: int,
        step: int,
        first: int = 0,
    ) -> Completions:
        """Samples every prompt `samples` times.

        Args:
          weights: of `weights`.
          prompts: token ids, each at most prompt_tokens long.
          samples: G.
          settings: temperature, truncation, length.
          seed: with step, prompt and sample index the whole source of chance.
          step: of training; evaluations take one of their own.
          first: index of the first prompt within the step (or set), so that a batch's cut changes nothing.
        """
        tokens_PS, length_P, last_P = self._pad(prompts)
        put = functools.partial(sharding.put, mesh=self.mesh, rules=sharding.SAMPLE_RULES)
        with jax.set_mesh(self.mesh):
            cache = decode.prefill(
                weights, put(tokens_PS), put(length_P), samples, settings.max_tokens, self.model
            )
            index_P = put(first + np.arange(len(prompts), dtype=np.int32))
            uniform_PGT = _uniforms(np.int32(step), index_P, seed, samples, settings.max_tokens)
            decoded, _ = decode.decode(
                weights, cache, put(last_P), uniform_PGT, self.stop, self.model, settings
            )
        return Completions(*map(sharding.fetch, decoded))

    def _pad(self, prompts: Sequence[npt.NDArray[np.int32]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prompts without their last tokens [P, S], their lengths, and the last tokens."""
        tokens_PS = np.zeros((len(prompts), self.prompt_tokens), np.int32)
        for row, prompt in zip(tokens_PS, prompts, strict=True):
            row[: len(prompt) - 1] = prompt[:-1]
        length_P = np.asarray([len(prompt) - 1 for prompt in prompts], np.int32)
        return tokens_PS, length_P, np.asarray([prompt[-1] for prompt in prompts], np.int32)


_uniforms = jax.jit(
    lambda step, index_P, seed, samples, length: sampling.uniforms(seed, step, index_P, samples, length),
    static_argnums=(2, 3, 4),
)


@functools.partial(jax.jit, static_argnames=("cfg", "mesh"))
def _reshard(params: Any, cfg: qwen2.Qwen2Config, mesh: Mesh) -> Any:
    def one(spec: qwen2.ParamSpec, param: jax.Array) -> jax.Array:
        layout = sharding.named(mesh, spec.logical_axes, sharding.SAMPLE_RULES, spec.shape)
        return jax.lax.with_sharding_constraint(param.astype(cfg.dtype), layout)

    return jax.tree.map(one, qwen2.abstract(cfg), params, is_leaf=qwen2.is_spec)
