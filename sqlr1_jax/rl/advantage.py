"""Group-relative advantages and which groups teach anything, as named choices (sql-r1.md §1 and §3.11)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from sqlr1_jax import config

EPSILON = 1e-6  # the paper's, beside the standard deviation


@functools.partial(jax.jit, static_argnames=("cfg",))
def advantage(
    rewards_PGR: jax.Array,
    correct_PG: jax.Array,
    sound_P: jax.Array,
    weights_R: jax.Array,
    key: jax.Array,
    cfg: config.AdvantageConfig,
) -> tuple[jax.Array, jax.Array]:
    """Advantages [P, G] of completions, and which groups count, bool [P].

    Args:
      rewards_PGR: each reward's parts, weighted.
      correct_PG: whether a completion's result matched.
      sound_P: False where the gold failed: the whole group counts nothing.
      weights_R: the parts' weights, whose sizes normalizing each part alone would take away.
      key: shuffles advantages where cfg.shuffled asks for that control.
      cfg: the named choice.
    """
    keep_P = sound_P
    if cfg.keep == "mixed":
        keep_P &= correct_PG.any(axis=1) & ~correct_PG.all(axis=1)
    if cfg.normalize == "parts":
        adv_PG = (_normalize(rewards_PGR) * jnp.abs(weights_R)[None, None]).sum(axis=-1)
        adv_PG = _over_batch(adv_PG, keep_P)
    elif cfg.normalize == "group":
        adv_PG = _normalize(rewards_PGR.sum(axis=-1, keepdims=True))[..., 0]
    else:
        adv_PG = _centered(rewards_PGR.sum(axis=-1))
    adv_PG = jnp.where(keep_P[:, None], adv_PG, 0.0)
    return (_shuffle(adv_PG, keep_P, key) if cfg.shuffled else adv_PG), keep_P


def _normalize(rewards_PGR: jax.Array) -> jax.Array:
    """(r − mean) / (std + ε) in the group, with the unbiased standard deviation (paper, eq. of the advantage)."""
    centered_PGR = _centered(rewards_PGR)
    return centered_PGR / (centered_PGR.std(axis=1, keepdims=True, ddof=1) + EPSILON)


def _centered(x_PG: jax.Array) -> jax.Array:
    """Distances from a group's mean, exactly 0 where all are equal: else rounding would be divided by rounding."""
    shifted_PG = x_PG - x_PG[:, :1]
    return shifted_PG - shifted_PG.mean(axis=1, keepdims=True)


def _over_batch(adv_PG: jax.Array, keep_P: jax.Array) -> jax.Array:
    """GDPO's last step: the sum of normalized parts, normalized over the batch's groups that count."""
    weight_PG = jnp.broadcast_to(keep_P[:, None], adv_PG.shape).astype(adv_PG.dtype)
    count = jnp.maximum(weight_PG.sum(), 1.0)
    mean = (adv_PG * weight_PG).sum() / count
    variance = (weight_PG * (adv_PG - mean) ** 2).sum() / count
    return (adv_PG - mean) / (jnp.sqrt(variance) + EPSILON)


def _shuffle(adv_PG: jax.Array, keep_P: jax.Array, key: jax.Array) -> jax.Array:
    """The same advantages at random places among the groups that count: a batch that teaches nothing but noise."""
    out_N = jnp.broadcast_to(~keep_P[:, None], adv_PG.shape).reshape(-1)
    places_N = jnp.argsort(out_N, stable=True)
    source_N = jnp.argsort(jnp.where(out_N, 2.0, jax.random.uniform(key, out_N.shape)), stable=True)
    flat_N = adv_PG.reshape(-1)
    return jnp.zeros_like(flat_N).at[places_N].set(flat_N[source_N]).reshape(adv_PG.shape)
