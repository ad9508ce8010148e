"""GRPO's clipped loss with a KL term of the right sign, as a sum over places (sql-r1.md §1, defect 5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sqlr1_jax import config
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.state import Sums


def grpo_loss(
    logp_BT: jax.Array, entropy_BT: jax.Array, micro: Batch, cfg: config.GrpoConfig
) -> tuple[jax.Array, Sums]:
    """Objective to minimise, policy + kl · KL − entropy · H, and its metrics as (sum, count).

    The rows' weights carry the aggregation and the global denominator, so this is a plain sum: it may be cut into
    microbatches at will. KL is the k3 estimate, exp(ref − logp) − (ref − logp) − 1 ≥ 0, and it is added: the further
    from the reference, the higher the loss.
    """
    weight_BT, advantage_BT = micro.rows.weight, micro.advantage_MBT
    counted_BT = weight_BT > 0
    # Where nothing counts, a place may hold anything; from here on it holds 0, since exp of it would be infinite and
    # the gradient of where(…, inf, 0) is 0 · inf.
    logp_BT, old_BT, reference_BT, sampled_BT = (
        jnp.where(counted_BT, x_BT, 0.0) for x_BT in (logp_BT, micro.old_MBT, micro.reference_MBT, micro.rows.logprob)
    )
    ratio_BT = jnp.exp(logp_BT - old_BT)
    clipped_BT = jnp.clip(ratio_BT, 1 - cfg.clip, 1 + cfg.clip_high)
    policy_BT = jnp.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    if cfg.importance_cap:
        policy_BT *= jnp.minimum(jnp.exp(old_BT - sampled_BT), cfg.importance_cap)
    objective_BT = -policy_BT - cfg.entropy * entropy_BT
    binding_BT = jnp.where(advantage_BT > 0, ratio_BT > 1 + cfg.clip_high, ratio_BT < 1 - cfg.clip)
    metrics = {
        "entropy": entropy_BT,
        "clip_fraction": binding_BT & (advantage_BT != 0),
        "ratio/mean": ratio_BT,
        "logprob_mismatch": jnp.exp(jnp.abs(logp_BT - sampled_BT)),
    }
    if cfg.kl:
        gap_BT = reference_BT - logp_BT
        metrics["kl"] = jnp.exp(gap_BT) - gap_BT - 1
        objective_BT += cfg.kl * metrics["kl"]
    total_BT = jnp.where(counted_BT, objective_BT, 0.0)
    sums = {name: _sum(x_BT, counted_BT) for name, x_BT in metrics.items()}
    sums["ratio/max"] = (jnp.max(jnp.where(counted_BT, ratio_BT, 0.0)), jnp.ones(()))
    return (total_BT * weight_BT).sum(), sums


def _sum(x_BT: jax.Array, counted_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    chosen_BT = jnp.where(counted_BT, x_BT.astype(jnp.float32), 0.0)
    return jax.lax.stop_gradient(chosen_BT.sum()), counted_BT.sum().astype(jnp.float32)
