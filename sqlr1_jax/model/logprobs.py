"""Log-probabilities of given tokens and the entropy at each place, without the logits of all places at once.

Both have a gradient of their own: of a place's logits l, with p = softmax(l) and H its entropy,
∂ log p(y) / ∂l = onehot(y) − p and ∂H / ∂l = −p (log p + H): the backward pass needs the logits and two numbers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sqlr1_jax.distributed.sharding import TRAIN_RULES, constrain, partition_spec
from sqlr1_jax.model.qwen2 import Params, Qwen2Config, mask_logits, unembedding

Arrays = tuple[jax.Array, ...]


def token_logprobs(
    params: Params,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    cfg: Qwen2Config,
    temperature: float = 1.0,
    counted_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(log p(target), entropy in nats), each [B, T] in at least float32, of softmax(logits / temperature).

    Where `counted_BT` is False both are 0. On each chip logits exist for cfg.logits_chunk places at a time, of counted
    places alone, and are computed again in the backward pass; with 0 they exist all at once and are kept.
    """
    counted_BT = jnp.ones(targets_BT.shape, bool) if counted_BT is None else counted_BT
    # Whole on every chip but for the vocabulary: split by D, each chunk's logits would be summed between the chips.
    hidden_BTD = constrain(hidden_BTD, ("rows", None, None), TRAIN_RULES)
    table_DV = constrain(unembedding(params, cfg).astype(hidden_BTD.dtype), (None, "vocab"), TRAIN_RULES)
    if cfg.logits_chunk:
        found = _chunked(table_DV, hidden_BTD, targets_BT, counted_BT, cfg, temperature)
    else:
        found = _whole(table_DV, hidden_BTD, targets_BT, cfg, temperature)
    logp_BT, entropy_BT = (jnp.where(counted_BT, x_BT, 0.0) for x_BT in found)
    return logp_BT, entropy_BT


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _whole(
    table_DV: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array, cfg: Qwen2Config, temperature: float
) -> Arrays:
    return _whole_forward(table_DV, hidden_BTD, targets_BT, cfg, temperature)[0]


def _whole_forward(
    table_DV: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array, cfg: Qwen2Config, temperature: float
) -> tuple[Arrays, Arrays]:
    logits_BTV = _logits(table_DV, hidden_BTD, cfg, temperature)
    logp_BT, *numbers = _read(logits_BTV, targets_BT)
    return (logp_BT, numbers[0]), (table_DV, hidden_BTD, targets_BT, logits_BTV, *numbers)


def _whole_backward(cfg: Qwen2Config, temperature: float, kept: Arrays, slopes: Arrays) -> tuple:
    table_DV, hidden_BTD, targets_BT, logits_BTV, *numbers = kept
    slope_BTV = _slope(logits_BTV, targets_BT, numbers, slopes, temperature).astype(table_DV.dtype)
    return *_through(slope_BTV, table_DV, hidden_BTD), None


_whole.defvjp(_whole_forward, _whole_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(
    table_DV: jax.Array,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    counted_BT: jax.Array,
    cfg: Qwen2Config,
    temperature: float,
) -> Arrays:
    return _chunked_forward(table_DV, hidden_BTD, targets_BT, counted_BT, cfg, temperature)[0]


def _chunked_forward(
    table_DV: jax.Array,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    counted_BT: jax.Array,
    cfg: Qwen2Config,
    temperature: float,
) -> tuple[Arrays, Arrays]:
    """Counted places are moved to the front of their rows, so that only chunks that hold some are computed."""
    width, order_BT, count = _chunks(counted_BT, cfg.logits_chunk)
    places = _front(hidden_BTD, order_BT), _front(targets_BT, order_BT)

    def one(i: jax.Array, done: Arrays) -> Arrays:
        hidden_BtD, targets_Bt = (_piece(x, i, width) for x in places)
        new = _read(_logits(table_DV, hidden_BtD, cfg, temperature), targets_Bt)
        return tuple(_put(x, part, i, width) for x, part in zip(done, new, strict=True))

    wide = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    nothing = jnp.zeros(order_BT.shape, wide)
    logp_BT, *numbers = jax.lax.fori_loop(0, count, one, (nothing, nothing, nothing))
    found = _back(logp_BT, order_BT, counted_BT.shape[1]), _back(numbers[0], order_BT, counted_BT.shape[1])
    return found, (table_DV, hidden_BTD, targets_BT, counted_BT, *numbers)


def _chunked_backward(cfg: Qwen2Config, temperature: float, kept: Arrays, slopes: Arrays) -> tuple:
    table_DV, hidden_BTD, targets_BT, counted_BT, *numbers = kept
    width, order_BT, count = _chunks(counted_BT, cfg.logits_chunk)
    hidden_BTD, targets_BT, *slopes_BT = (_front(x, order_BT) for x in (hidden_BTD, targets_BT, *slopes))

    def one(i: jax.Array, done: Arrays) -> Arrays:
        hidden_BtD, targets_Bt, *known = (_piece(x, i, width) for x in (hidden_BTD, targets_BT, *numbers, *slopes_BT))
        logits_BtV = _logits(table_DV, hidden_BtD, cfg, temperature)
        slope_BtV = _slope(logits_BtV, targets_Bt, known[:2], known[2:], temperature).astype(table_DV.dtype)
        more_DV, slope_BtD = _through(slope_BtV, table_DV, hidden_BtD)
        return done[0] + more_DV, _put(done[1], slope_BtD, i, width)

    slope_DV, slope_BTD = jax.lax.fori_loop(0, count, one, (jnp.zeros_like(table_DV), jnp.zeros_like(hidden_BTD)))
    return slope_DV, _back(slope_BTD, order_BT, counted_BT.shape[1]), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _chunks(counted_BT: jax.Array, places: int) -> tuple[int, jax.Array, jax.Array]:
    """Of a chunk its width in time; where each row's places come from, counted ones first; how many chunks hold some.

    Chunks are cut from time, so that each holds places of every row and no chip waits for another's.
    """
    B, T = counted_BT.shape
    width = min(T, max(1, places // _rows_a_chip(B)))
    order_BT = jnp.argsort(~counted_BT, axis=1, stable=True)
    order_BT = jnp.pad(order_BT, ((0, 0), (0, -T % width)), constant_values=T)
    return width, order_BT, -(-counted_BT.sum(1).max() // width)


def _rows_a_chip(rows: int) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return rows
    return NamedSharding(mesh, partition_spec(("rows",), TRAIN_RULES, (rows,), mesh)).shard_shape((rows,))[0]


def _front(x: jax.Array, order_BT: jax.Array) -> jax.Array:
    """Places in that order, zeros for those past the end."""
    order = order_BT.reshape(*order_BT.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, order, axis=1, mode="fill", fill_value=0)


def _back(x: jax.Array, order_BT: jax.Array, length: int) -> jax.Array:
    """The inverse of `_front`."""
    return _front(x, jnp.argsort(order_BT[:, :length], axis=1))


def _piece(x: jax.Array, i: jax.Array, width: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * width, width, axis=1)


def _put(x: jax.Array, part: jax.Array, i: jax.Array, width: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, i * width, axis=1)


def _logits(table_DV: jax.Array, hidden_BTD: jax.Array, cfg: Qwen2Config, temperature: float) -> jax.Array:
    wide = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    logits_BTV = jnp.einsum("btd,dv->btv", hidden_BTD, table_DV, preferred_element_type=wide)
    return mask_logits(logits_BTV, cfg) / temperature


def _read(logits_BTV: jax.Array, targets_BT: jax.Array) -> Arrays:
    """Log-probabilities of the targets, entropies, and log-sum-exps."""
    top_BT1 = logits_BTV.max(-1, keepdims=True)
    weights_BTV = jnp.exp(logits_BTV - top_BT1)
    total_BT = weights_BTV.sum(-1)
    log_total_BT = jnp.log(total_BT) + top_BT1[..., 0]
    # Where the vocabulary is split, each chip looks for the target among its own, and one sum tells.
    chosen_BT = jnp.where(_is_target(logits_BTV, targets_BT), logits_BTV, 0.0).sum(-1)
    expected_BT = (weights_BTV * logits_BTV).sum(-1) / total_BT
    return chosen_BT - log_total_BT, log_total_BT - expected_BT, log_total_BT


def _slope(logits_BTV: jax.Array, targets_BT: jax.Array, numbers: Any, slopes: Any, temperature: float) -> jax.Array:
    """Gradient of the logits before the temperature, from those of log-probability and entropy."""
    (entropy_BT1, log_total_BT1), (logp_slope_BT1, entropy_slope_BT1) = (
        [x[..., None] for x in pair] for pair in (numbers, slopes)
    )
    logp_BTV = logits_BTV - log_total_BT1
    p_BTV = jnp.exp(logp_BTV)
    slope_BTV = -p_BTV * (logp_slope_BT1 + entropy_slope_BT1 * (logp_BTV + entropy_BT1))
    return (slope_BTV + jnp.where(_is_target(logits_BTV, targets_BT), logp_slope_BT1, 0.0)) / temperature


def _is_target(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(targets_BT.dtype, logits_BTV.shape, 2) == targets_BT[..., None]


def _through(slope_BTV: jax.Array, table_DV: jax.Array, hidden_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of table and hidden states from that of the logits."""
    return jnp.einsum("btd,btv->dv", hidden_BTD, slope_BTV), jnp.einsum("btv,dv->btd", slope_BTV, table_DV)
