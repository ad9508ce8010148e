"""Sampling of the next token: temperature, top-k, top-p and min-p, by inverting the cumulative distribution.

Inversion takes one uniform number per token; the Gumbel trick takes one per vocabulary entry. The numbers are a
function of (seed, step, prompt, sample, token index) only, so a sample does not depend on its slot or its batch.

Shapes: P prompts, G samples per prompt, T tokens of a sample, V vocabulary, N blocks of b = BLOCK tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sqlr1_jax.config import SamplingConfig

BLOCK = 64  # tokens per block of the two-level cumulative sum


def uniforms(seed: int, step: jax.Array, prompt_P: jax.Array, samples: int, length: int) -> jax.Array:
    """Uniform random numbers [P, G, T] in [0, 1), float32.

    Args:
      seed: of the run.
      step: training step.
      prompt_P: each prompt's index within the step.
      samples: G.
      length: T.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), step)

    def sample_uniforms(prompt: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(step_key, prompt), sample), (length,))

    return jax.vmap(lambda prompt: jax.vmap(lambda sample: sample_uniforms(prompt, sample))(jnp.arange(samples)))(
        prompt_P
    )


def next_tokens(
    logits_PGV: jax.Array, uniform_PG: jax.Array, sampling_config: SamplingConfig, temperature_PG: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`next_token` with a temperature for each sample, which replaces sampling_config's; 0 is greedy."""
    sampled_PG = temperature_PG > 0
    scaled_PGV = logits_PGV / jnp.where(sampled_PG, temperature_PG, 1.0)[..., None]
    logp_PGV = jax.nn.log_softmax(scaled_PGV.astype(jnp.float32), axis=-1)
    drawn_PG = _invert_cdf(truncate(logp_PGV, sampling_config), uniform_PG)
    token_PG = jnp.where(sampled_PG, drawn_PG, _likeliest(logp_PGV))
    return token_PG.astype(jnp.int32), _select(logp_PGV, token_PG)


def next_token(
    logits_PGV: jax.Array, uniform_PG: jax.Array, sampling_config: SamplingConfig
) -> tuple[jax.Array, jax.Array]:
    """Samples one token of every sample.

    Args:
      logits_PGV: float32.
      uniform_PG: random numbers in [0, 1).
      sampling_config: temperature and truncation. Temperature 0 is greedy decoding.

    Returns:
      Tokens int32 [P, G], and their log-probabilities float32 [P, G] under softmax(logits / temperature) before
      truncation, which is the distribution that the trainer computes. Under greedy decoding the temperature of the
      log-probabilities is 1.
    """
    temperature = sampling_config.temperature
    scaled_PGV = logits_PGV / temperature if temperature else logits_PGV
    logp_PGV = jax.nn.log_softmax(scaled_PGV.astype(jnp.float32), axis=-1)
    if temperature:
        token_PG = _invert_cdf(truncate(logp_PGV, sampling_config), uniform_PG)
    else:
        token_PG = _likeliest(logp_PGV)
    return token_PG.astype(jnp.int32), _select(logp_PGV, token_PG)


def _likeliest(logp_PGV: jax.Array) -> jax.Array:
    """The lowest id among the maxima, which is what argmax returns; argmax is four times slower on CPU."""
    ids_V = jnp.arange(logp_PGV.shape[-1], dtype=jnp.int32)
    return jnp.where(logp_PGV == logp_PGV.max(-1, keepdims=True), ids_V, ids_V[-1]).min(-1)


def _select(logp_PGV: jax.Array, token_PG: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logp_PGV, token_PG[..., None], axis=-1)[..., 0]


def _invert_cdf(prob_PGV: jax.Array, uniform_PG: jax.Array) -> jax.Array:
    """The first token [P, G] at which the cumulative probability exceeds `uniform_PG` times the total.

    A cumulative sum over a whole vocabulary is slow on every backend, so it has two levels:

        prob_PGV ── pad, reshape ──► prob_PGNb ── sum over b ──► cumsum over N ──► block that contains the target
                                         └────────────── that block's b tokens ──► cumsum over b ──► token in it
    """
    padding = -prob_PGV.shape[-1] % BLOCK
    prob_PGNb = jnp.pad(prob_PGV, ((0, 0), (0, 0), (0, padding))).reshape(*prob_PGV.shape[:2], -1, BLOCK)
    sums_PGN = jnp.cumsum(prob_PGNb.sum(-1), axis=-1)
    # The probabilities need not sum to 1: truncation leaves some out, and the target is a share of what remains.
    target_PG1 = uniform_PG[..., None] * sums_PGN[..., -1:]
    block_PG1 = _first_above(sums_PGN, target_PG1)
    before_PG1 = jnp.where(block_PG1 > 0, jnp.take_along_axis(sums_PGN, block_PG1 - 1, axis=-1), 0.0)
    block_PGb = jnp.take_along_axis(prob_PGNb, block_PG1[..., None], axis=2)[:, :, 0]
    token_PG1 = _first_above(jnp.cumsum(block_PGb, axis=-1), target_PG1 - before_PG1)
    return (block_PG1 * BLOCK + token_PG1)[..., 0]


def _first_above(sums_PGN: jax.Array, target_PG1: jax.Array) -> jax.Array:
    """Index [P, G, 1] of the first cumulative sum above the target.

    If rounding leaves no sum above the target, the last entry with nonzero probability, so that a zero-probability
    entry is never sampled.
    """
    first_PG1 = (sums_PGN <= target_PG1).sum(-1, keepdims=True)
    last_PG1 = (sums_PGN < sums_PGN[..., -1:]).sum(-1, keepdims=True)
    return jnp.minimum(first_PG1, last_PG1)


def truncate(logp_PGV: jax.Array, sampling_config: SamplingConfig) -> jax.Array:
    """Probabilities [P, G, V] after top-k, top-p and min-p; tokens that they exclude get 0.

    Each of the three applies to the whole distribution, and the result is not normalized. Ties with the least
    probable kept token are kept too.
    """
    prob_PGV = jnp.exp(logp_PGV)
    top_k, top_p, min_p = sampling_config.top_k, sampling_config.top_p, sampling_config.min_p
    if not (top_k or top_p < 1 or min_p):
        return prob_PGV
    ranked_PGV = -jnp.sort(-prob_PGV, axis=-1)
    # Each truncation keeps the tokens above some probability; the highest of these thresholds wins.
    threshold_PG1 = jnp.zeros_like(ranked_PGV[..., :1])
    if top_k:
        threshold_PG1 = jnp.maximum(threshold_PG1, ranked_PGV[..., top_k - 1 : top_k])
    if top_p < 1:
        # The smallest set with probability top_p: a token is in it if the more probable ones sum to less.
        before_PGV = jnp.cumsum(ranked_PGV, axis=-1) - ranked_PGV
        count_PG1 = jnp.sum(before_PGV < top_p, axis=-1, keepdims=True)
        threshold_PG1 = jnp.maximum(threshold_PG1, jnp.take_along_axis(ranked_PGV, count_PG1 - 1, axis=-1))
    threshold_PG1 = jnp.maximum(threshold_PG1, min_p * ranked_PGV[..., :1])
    return jnp.where(prob_PGV >= threshold_PG1, prob_PGV, 0.0)
