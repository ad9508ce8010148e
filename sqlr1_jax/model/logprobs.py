"""Log-probabilities of given tokens and the entropy at each place, without the logits of all places at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sqlr1_jax.model.qwen2 import Params, Qwen2Config, mask_logits, unembedding
from sqlr1_jax.sharding import TRAIN_RULES, constrain, spec


def token_logprobs(
    params: Params, hidden_BTD: jax.Array, targets_BT: jax.Array, cfg: Qwen2Config, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(log p(target), entropy in nats), each [B, T] in at least float32, of softmax(logits / temperature).

    On each chip logits exist for cfg.logits_chunk places at a time and are computed again in the backward pass; with 0
    they exist all at once and are kept.
    """
    B, T, D = hidden_BTD.shape
    # Whole on every chip but for the vocabulary: split by D, each chunk's logits would be summed between the chips.
    hidden_BTD = constrain(hidden_BTD, ("rows", None, None), TRAIN_RULES)
    table_DV = constrain(unembedding(params, cfg).astype(hidden_BTD.dtype), (None, "vocab"), TRAIN_RULES)
    one = functools.partial(_logprobs, cfg=cfg, temperature=temperature)
    if not cfg.logits_chunk:
        return one(table_DV, hidden_BTD, targets_BT)
    # Chunks are cut from time, so that each holds places of every row and no chip waits for another's.
    width = min(T, max(1, cfg.logits_chunk // _rows_a_chip(B)))
    count = -(-T // width)
    padding = count * width - T
    hidden_BCtD = jnp.pad(hidden_BTD, ((0, 0), (0, padding), (0, 0))).reshape(B, count, width, D)
    targets_BCt = jnp.pad(targets_BT, ((0, 0), (0, padding))).reshape(B, count, width)
    again = jax.checkpoint(one)
    parts = hidden_BCtD.swapaxes(0, 1), targets_BCt.swapaxes(0, 1)
    logp_CBt, entropy_CBt = jax.lax.map(lambda part: again(table_DV, *part), parts)
    logp_BT, entropy_BT = (x.swapaxes(0, 1).reshape(B, -1)[:, :T] for x in (logp_CBt, entropy_CBt))
    return logp_BT, entropy_BT


def _rows_a_chip(rows: int) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return rows
    return NamedSharding(mesh, spec(("rows",), TRAIN_RULES, (rows,), mesh)).shard_shape((rows,))[0]


def _logprobs(
    table_DV: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array, *, cfg: Qwen2Config, temperature: float
) -> tuple[jax.Array, jax.Array]:
    wide = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    logits_BTV = mask_logits(jnp.einsum("btd,dv->btv", hidden_BTD, table_DV, preferred_element_type=wide), cfg)
    logits_BTV = logits_BTV / temperature
    top_BT1 = jax.lax.stop_gradient(logits_BTV.max(-1, keepdims=True))
    weights_BTV = jnp.exp(logits_BTV - top_BT1)
    total_BT = weights_BTV.sum(-1)
    log_total_BT = jnp.log(total_BT) + top_BT1[..., 0]
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    expected_BT = (weights_BTV * logits_BTV).sum(-1) / total_BT
    return chosen_BT - log_total_BT, log_total_BT - expected_BT
