"""Log-probabilities of given tokens and the entropy at each place, without the logits of all places at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from sqlr1_jax.model.qwen2 import Params, Qwen2Config, mask_logits, unembedding


def token_logprobs(
    params: Params, hidden_BTD: jax.Array, targets_BT: jax.Array, cfg: Qwen2Config, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(log p(target), entropy in nats), each [B, T] in at least float32, of softmax(logits / temperature).

    Logits exist for cfg.logits_chunk places at a time and are computed again in the backward pass; with 0 they exist
    all at once and are kept.
    """
    B, T, D = hidden_BTD.shape
    table_DV = unembedding(params, cfg).astype(hidden_BTD.dtype)
    hidden_ND, targets_N = hidden_BTD.reshape(B * T, D), targets_BT.reshape(B * T)
    one = functools.partial(_logprobs, cfg=cfg, temperature=temperature)
    chunk = cfg.logits_chunk
    if not chunk:
        logp_N, entropy_N = one(table_DV, hidden_ND, targets_N)
        return logp_N.reshape(B, T), entropy_N.reshape(B, T)
    count = -(-B * T // chunk)
    padding = count * chunk - B * T
    hidden_CND = jnp.pad(hidden_ND, ((0, padding), (0, 0))).reshape(count, chunk, D)
    targets_CN = jnp.pad(targets_N, (0, padding)).reshape(count, chunk)
    again = jax.checkpoint(one)
    logp_CN, entropy_CN = jax.lax.map(lambda part: again(table_DV, *part), (hidden_CND, targets_CN))
    return logp_CN.reshape(-1)[: B * T].reshape(B, T), entropy_CN.reshape(-1)[: B * T].reshape(B, T)


def _logprobs(
    table_DV: jax.Array, hidden_ND: jax.Array, targets_N: jax.Array, *, cfg: Qwen2Config, temperature: float
) -> tuple[jax.Array, jax.Array]:
    wide = jnp.promote_types(hidden_ND.dtype, jnp.float32)
    logits_NV = mask_logits(jnp.einsum("nd,dv->nv", hidden_ND, table_DV, preferred_element_type=wide), cfg)
    logits_NV = logits_NV / temperature
    top_N1 = jax.lax.stop_gradient(logits_NV.max(-1, keepdims=True))
    weights_NV = jnp.exp(logits_NV - top_N1)
    total_N = weights_NV.sum(-1)
    log_total_N = jnp.log(total_N) + top_N1[:, 0]
    chosen_N = jnp.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]
    expected_N = (weights_NV * logits_NV).sum(-1) / total_N
    return chosen_N - log_total_N, log_total_N - expected_N
