"""The GRPO loss: a clipped policy term, a KL term and an entropy bonus (docs/method.md, section 5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sqlr1_jax.config import GrpoConfig
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.state import Sums

# Limit of a difference of log-probabilities before exp, in nats. exp(88) overflows float32; exp(20) is 5e8. verl has
# the same limit.
MAX_LOG_RATIO = 20.0


def grpo_loss(logp_BT: jax.Array, entropy_BT: jax.Array, micro: Batch, config: GrpoConfig) -> tuple[jax.Array, Sums]:
    """The loss of a microbatch, to minimize, and its metrics.

        ratio   = exp(logp - old)
        clipped = clip(ratio, 1 - config.clip, 1 + config.clip_high)
        policy  = min(ratio * advantage, clipped * advantage)
        kl      = exp(reference - logp) - (reference - logp) - 1
        loss    = sum(weight * (-policy + config.kl * kl - config.entropy * entropy))

    The KL term is never negative and is added, so distance from the reference model raises the loss. If
    config.importance_cap is set, `policy` is multiplied by min(exp(old - sampled), config.importance_cap).

    If logp - old or reference - logp of a token exceeds ±MAX_LOG_RATIO, it is clamped before exp, and the coefficient
    of its term is 0: one token cannot decide the loss or the gradient. Metrics of these terms hold the clamped values,
    and `clamped_fraction` counts the tokens.

    The weights contain the aggregation and its global denominator, so the loss is a plain sum, and sums over
    microbatches add up to the loss of the batch.

    Args:
      logp_BT: log-probabilities of the target tokens under the weights that are trained, float32.
      entropy_BT: entropy of each token's distribution, in nats.
      micro: a microbatch: rows, advantages, and the log-probabilities to compare with, each [B, T].
      config: coefficients and clip range.

    Returns:
      The loss, a scalar, and metrics by name as (sum, count) over the tokens with weight > 0.
    """
    weight_BT, advantage_BT = micro.rows.weight, micro.advantage_MBT
    loss_mask_BT = weight_BT > 0
    # Masked tokens may hold any log-probability. Set them to 0 before exp, not after: the gradient of
    # where(mask, exp(x), 0) is 0 * inf = nan if exp overflows.
    logp_BT, old_BT, reference_BT, sampled_BT = (
        jnp.where(loss_mask_BT, x_BT, 0.0) for x_BT in (logp_BT, micro.old_MBT, micro.reference_MBT, micro.rows.logprob)
    )
    # The clamp changes what has no gradient: old, the reference and the coefficients. A clamp of the differences would
    # change how XLA fuses the gradient, and so the last bits of steps in which no token is clamped.
    old_BT, far_from_old_BT = _clamp_to(logp_BT, old_BT)
    advantage_BT = jnp.where(far_from_old_BT, 0.0, advantage_BT)
    ratio_BT = jnp.exp(logp_BT - old_BT)
    clipped_BT = jnp.clip(ratio_BT, 1 - config.clip, 1 + config.clip_high)
    policy_BT = jnp.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    if config.importance_cap:
        policy_BT *= jnp.minimum(jnp.exp(old_BT - sampled_BT), config.importance_cap)
    objective_BT = -policy_BT - config.entropy * entropy_BT
    # Clipping sets the policy term's gradient to zero in two cases: the advantage is positive and the ratio is above
    # its upper bound, or the advantage is negative and the ratio is below its lower bound.
    binding_BT = jnp.where(advantage_BT > 0, ratio_BT > 1 + config.clip_high, ratio_BT < 1 - config.clip)
    metrics = {
        "entropy": entropy_BT,
        "clip_fraction": binding_BT & (advantage_BT != 0),
        "ratio/mean": ratio_BT,
        "logprob_mismatch": jnp.exp(jnp.abs(logp_BT - _clamp_to(logp_BT, sampled_BT)[0])),
        "clamped_fraction": far_from_old_BT,
    }
    if config.kl:
        reference_BT, far_BT = _clamp_to(logp_BT, reference_BT)
        gap_BT = reference_BT - logp_BT
        metrics["kl"] = jnp.exp(gap_BT) - gap_BT - 1
        objective_BT += jnp.where(far_BT, 0.0, config.kl) * metrics["kl"]
        metrics["clamped_fraction"] |= far_BT
    masked_BT = jnp.where(loss_mask_BT, objective_BT, 0.0)
    sums = {name: _masked_sum(x_BT, loss_mask_BT) for name, x_BT in metrics.items()}
    sums["ratio/max"] = (jnp.max(jnp.where(loss_mask_BT, ratio_BT, 0.0)), jnp.ones(()))
    return (masked_BT * weight_BT).sum(), sums


def _clamp_to(logp_BT: jax.Array, other_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`other_BT`, moved to within MAX_LOG_RATIO of `logp_BT`, and whether it was further away; without a gradient."""
    logp_BT = jax.lax.stop_gradient(logp_BT)
    far_BT = jnp.abs(other_BT - logp_BT) > MAX_LOG_RATIO
    nearest_BT = logp_BT + jnp.clip(other_BT - logp_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.where(far_BT, nearest_BT, other_BT), far_BT


def _masked_sum(x_BT: jax.Array, loss_mask_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum, count) of a metric over the tokens with loss; no gradient flows through metrics."""
    masked_BT = jnp.where(loss_mask_BT, x_BT.astype(jnp.float32), 0.0)
    return jax.lax.stop_gradient(masked_BT.sum()), loss_mask_BT.sum().astype(jnp.float32)
