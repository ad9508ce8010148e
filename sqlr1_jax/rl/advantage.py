"""Advantages of completions relative to their group, and which groups take part in the update.

The formulas are in docs/method.md, section 4; `grpo.advantage` chooses among them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.config import AdvantageConfig

EPSILON = 1e-6  # added to a standard deviation before it divides; the paper's value


@functools.partial(jax.jit, static_argnames=("config",))
def compute_advantages(
    rewards_PGR: jax.Array,
    correct_PG: jax.Array,
    gold_ran_P: jax.Array,
    weights_R: jax.Array,
    key: jax.Array,
    config: AdvantageConfig,
) -> tuple[jax.Array, jax.Array]:
    """Advantages of completions relative to their group, and which groups are kept.

    Args:
      rewards_PGR: weighted reward parts, float32.
      correct_PG: whether a completion's result counts as a match.
      gold_ran_P: False if the gold query failed. Such a group is never kept, as it has no gold result.
      weights_R: weights of the parts. normalize="parts" multiplies by them again, since dividing a part by its
        standard deviation removes its weight.
      key: permutes the advantages if config.shuffled is set.
      config: the formula, and the rule by which groups are kept.

    Returns:
      Advantages [P, G], float32, zero in groups that are not kept, and whether each group is kept, bool [P].
    """
    keep_P = kept_groups(rewards_PGR, correct_PG, gold_ran_P, config.keep)
    if config.normalize == "parts":
        adv_PG = (_normalize(rewards_PGR) * jnp.abs(weights_R)[None, None]).sum(axis=-1)
        adv_PG = _normalize_over_batch(adv_PG, keep_P)
    elif config.normalize == "group":
        adv_PG = _normalize(rewards_PGR.sum(axis=-1, keepdims=True))[..., 0]
    else:
        adv_PG = _center(rewards_PGR.sum(axis=-1))
    adv_PG = jnp.where(keep_P[:, None], adv_PG, 0.0)
    return (_shuffle(adv_PG, keep_P, key) if config.shuffled else adv_PG), keep_P


def kept_groups(rewards_PGR: Any, correct_PG: Any, gold_ran_P: Any, keep: str) -> Any:
    """Which groups are trained on, bool [P], by `grpo.advantage.keep`; all arrays are JAX's, or all are numpy's."""
    if keep == "mixed":
        return gold_ran_P & correct_PG.any(axis=1) & ~correct_PG.all(axis=1)
    if keep == "varied":
        total_PG = rewards_PGR.sum(axis=-1)
        return gold_ran_P & (total_PG != total_PG[:, :1]).any(axis=1)
    return gold_ran_P


def fill_batch(keep_N: np.ndarray, size: int) -> np.ndarray:
    """Which of a step's N sampled groups are in its batch of P = `size` groups, int [P].

    The batch begins as the first round's P groups. Kept groups of later rounds, in order, replace those that are not
    kept, until none is left of either:

        round 0   kept . kept .         keep_N = [1 0 1 0  0 1 1 1], P = 4
        round 1   .    a b    c         batch  = [0 5 2 6]: a and b fill the gaps, c is not trained on

    So the array keeps the shape [P] for which everything is compiled, and without further rounds it is 0 … P − 1.
    """
    batch_P = np.arange(size)
    gaps = np.flatnonzero(~keep_N[:size])
    replacements = size + np.flatnonzero(keep_N[size:])
    filled = min(len(gaps), len(replacements))
    batch_P[gaps[:filled]] = replacements[:filled]
    return batch_P


def _normalize(rewards_PGR: jax.Array) -> jax.Array:
    """(r - mean) / (std + EPSILON) over each group, with G - 1 in the denominator of the standard deviation."""
    centered_PGR = _center(rewards_PGR)
    return centered_PGR / (centered_PGR.std(axis=1, keepdims=True, ddof=1) + EPSILON)


def _center(x_PG: jax.Array) -> jax.Array:
    """Differences from the group's mean; any axes may follow [P, G].

    The group's first value is subtracted before the mean, so equal rewards give exactly 0. Otherwise a rounding error
    would be left, and dividing it by a standard deviation of the same size would make a full-size advantage of it.
    """
    shifted_PG = x_PG - x_PG[:, :1]
    return shifted_PG - shifted_PG.mean(axis=1, keepdims=True)


def _normalize_over_batch(adv_PG: jax.Array, keep_P: jax.Array) -> jax.Array:
    """The last step of GDPO: normalizes the sum of the normalized parts over all completions of the kept groups."""
    weight_PG = jnp.broadcast_to(keep_P[:, None], adv_PG.shape).astype(adv_PG.dtype)
    count = jnp.maximum(weight_PG.sum(), 1.0)
    mean = (adv_PG * weight_PG).sum() / count
    variance = (weight_PG * (adv_PG - mean) ** 2).sum() / count
    return (adv_PG - mean) / (jnp.sqrt(variance) + EPSILON)


def _shuffle(adv_PG: jax.Array, keep_P: jax.Array, key: jax.Array) -> jax.Array:
    """Permutes the advantages among the completions of the kept groups: a control experiment without signal."""
    dropped_N = jnp.broadcast_to(~keep_P[:, None], adv_PG.shape).reshape(-1)
    # Both sorts put the kept completions first: the target in order, the source in random order. Shapes stay static.
    target_N = jnp.argsort(dropped_N, stable=True)
    source_N = jnp.argsort(jnp.where(dropped_N, 2.0, jax.random.uniform(key, dropped_N.shape)), stable=True)
    flat_N = adv_PG.reshape(-1)
    return jnp.zeros_like(flat_N).at[target_N].set(flat_N[source_N]).reshape(adv_PG.shape)
