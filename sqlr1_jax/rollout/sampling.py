"""The next token: temperature, top-k, top-p and min-p, and one uniform number a token.

Sampling inverts the cumulative distribution, so a token costs one random number where the Gumbel trick costs one for
each word of the vocabulary; and those numbers depend on (seed, step, prompt, sample) alone, not on a sample's seat.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sqlr1_jax import config

BLOCK = 64  # tokens whose probabilities are summed before the running sum


def uniforms(seed: int, step: jax.Array, prompt_P: jax.Array, samples: int, length: int) -> jax.Array:
    """Uniform numbers [P, G, T] in [0, 1) for sample g of prompt p at a step: a function of those alone."""
    base = jax.random.fold_in(jax.random.key(seed), step)

    def one(prompt: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(base, prompt), sample), (length,))

    return jax.vmap(lambda prompt: jax.vmap(lambda sample: one(prompt, sample))(jnp.arange(samples)))(prompt_P)


def next_token(logits_PGV: jax.Array, uniform_PG: jax.Array, cfg: config.SamplingConfig) -> tuple[jax.Array, jax.Array]:
    """Tokens [P, G] and their log-probabilities under the whole distribution of logits / temperature.

    With temperature 0 the token is the likeliest and its log-probability is that at temperature 1.
    """
    scaled_PGV = logits_PGV / cfg.temperature if cfg.temperature else logits_PGV
    logp_PGV = jax.nn.log_softmax(scaled_PGV.astype(jnp.float32), axis=-1)
    if cfg.temperature:
        token_PG = _invert(truncate(logp_PGV, cfg), uniform_PG)
    else:
        # The first of the likeliest; argmax, which finds the same, takes CPUs four times as long.
        ids_V = jnp.arange(logp_PGV.shape[-1], dtype=jnp.int32)
        token_PG = jnp.where(logp_PGV == logp_PGV.max(-1, keepdims=True), ids_V, ids_V[-1]).min(-1)
    chosen_PG = jnp.take_along_axis(logp_PGV, token_PG[..., None], axis=-1)[..., 0]
    return token_PG.astype(jnp.int32), chosen_PG


def _invert(prob_PGV: jax.Array, uniform_PG: jax.Array) -> jax.Array:
    """The first token at which the running sum passes its share `uniform_PG` of the whole.

    Sums of blocks first, then one block's tokens: a running sum over a whole vocabulary is slow everywhere.
    """
    width = -prob_PGV.shape[-1] % BLOCK
    prob_PGNb = jnp.pad(prob_PGV, ((0, 0), (0, 0), (0, width))).reshape(*prob_PGV.shape[:2], -1, BLOCK)
    sums_PGN = jnp.cumsum(prob_PGNb.sum(-1), axis=-1)
    target_PG1 = uniform_PG[..., None] * sums_PGN[..., -1:]
    block_PG1 = _first_past(sums_PGN, target_PG1)
    before_PG1 = jnp.where(block_PG1 > 0, jnp.take_along_axis(sums_PGN, block_PG1 - 1, axis=-1), 0.0)
    within_PGb = jnp.take_along_axis(prob_PGNb, block_PG1[..., None], axis=2)[:, :, 0]
    token_PG1 = _first_past(jnp.cumsum(within_PGb, axis=-1), target_PG1 - before_PG1)
    return (block_PG1 * BLOCK + token_PG1)[..., 0]


def _first_past(sums_PGN: jax.Array, target_PG1: jax.Array) -> jax.Array:
    """Index [P, G, 1] of the first running sum above the target.

    Where rounding leaves none, the last that grew: what has no probability is never drawn.
    """
    past_PG1 = (sums_PGN <= target_PG1).sum(-1, keepdims=True)
    last_PG1 = (sums_PGN < sums_PGN[..., -1:]).sum(-1, keepdims=True)
    return jnp.minimum(past_PG1, last_PG1)


def truncate(logp_PGV: jax.Array, cfg: config.SamplingConfig) -> jax.Array:
    """Probabilities (not normalized) that top-k, top-p and min-p leave, each applied to the whole distribution."""
    prob_PGV = jnp.exp(logp_PGV)
    if not (cfg.top_k or cfg.top_p < 1 or cfg.min_p):
        return prob_PGV
    ranked_PGV = -jnp.sort(-prob_PGV, axis=-1)
    floor_PG1 = jnp.zeros_like(ranked_PGV[..., :1])
    if cfg.top_k:
        floor_PG1 = jnp.maximum(floor_PG1, ranked_PGV[..., cfg.top_k - 1 : cfg.top_k])
    if cfg.top_p < 1:
        before_PGV = jnp.cumsum(ranked_PGV, axis=-1) - ranked_PGV
        kept_PG1 = jnp.sum(before_PGV < cfg.top_p, axis=-1, keepdims=True)
        floor_PG1 = jnp.maximum(floor_PG1, jnp.take_along_axis(ranked_PGV, kept_PG1 - 1, axis=-1))
    floor_PG1 = jnp.maximum(floor_PG1, cfg.min_p * ranked_PGV[..., :1])
    return jnp.where(prob_PGV >= floor_PG1, prob_PGV, 0.0)
