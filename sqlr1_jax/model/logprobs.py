"""Log-probabilities of given tokens and the entropy at each position, without the logits of all positions at once.

Both have a custom gradient. For a position's logits l, with p = softmax(l) and entropy H,
∂ log p(y) / ∂l = onehot(y) − p and ∂H / ∂l = −p (log p + H), so the backward pass needs l, its log-sum-exp and H.
"""

# Compaction by the loss mask, for B = 2 rows of T = 8 positions ("x": in the loss) and chunks of width 2:
#
#     loss_mask_BT         order_BT: positions in the loss first
#     . . x x x . x .      2 3 | 4 6 | 0 1 | 5 7
#     . . . . . x x .      5 6 | 0 1 | 2 3 | 4 7
#                          1st   2nd   never computed: num_chunks = ceil(max. of the rows' sums / width) = 2
#
# Only [B, width, V] logits exist at a time. Chunks are cut from time, so that each holds positions of every row and all
# devices of the row axis work on each chunk. The loop's trip count depends on the data, and JAX cannot differentiate
# such a loop in reverse mode: hence the custom gradient, which recomputes each chunk's logits.

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sqlr1_jax.distributed.sharding import TRAIN_RULES, constrain, partition_spec
from sqlr1_jax.model.ops import einsum_f32
from sqlr1_jax.model.qwen2 import Params, Qwen2Config, mask_logits, unembedding

Arrays = tuple[jax.Array, ...]


def token_logprobs(
    params: Params,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    config: Qwen2Config,
    temperature: float = 1.0,
    loss_mask_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(log p(target), entropy in nats), each [B, T] in at least float32, of softmax(logits / temperature).

    Args:
      params: the model's parameters. With LoRA the unembedding is frozen and gets no gradient.
      hidden_BTD: the model's output at each position.
      targets_BT: the token ids whose log-probabilities are computed.
      config: with logits_chunk > 0, each device holds the logits of that many positions at a time and recomputes them
        in the backward pass; with 0, all logits exist at once and are saved.
      temperature: divides the logits.
      loss_mask_BT: positions to compute; the others get 0. None: all.
    """
    loss_mask_BT = jnp.ones(targets_BT.shape, bool) if loss_mask_BT is None else loss_mask_BT
    # Shard only rows and vocabulary. If D were sharded, each chunk's logits would need an all-reduce.
    hidden_BTD = constrain(hidden_BTD, ("rows", None, None), TRAIN_RULES)
    table_DV = constrain(unembedding(params, config).astype(hidden_BTD.dtype), (None, "vocab"), TRAIN_RULES)
    if config.logits_chunk:
        logp_BT, entropy_BT = _chunked(table_DV, hidden_BTD, targets_BT, loss_mask_BT, config, temperature)
    else:
        logp_BT, entropy_BT = _unchunked(table_DV, hidden_BTD, targets_BT, config, temperature)
    return jnp.where(loss_mask_BT, logp_BT, 0.0), jnp.where(loss_mask_BT, entropy_BT, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _unchunked(
    table_DV: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array, config: Qwen2Config, temperature: float
) -> Arrays:
    """(log p(target), entropy), each [B, T], from all logits at once."""
    return _unchunked_forward(table_DV, hidden_BTD, targets_BT, config, temperature)[0]


def _unchunked_forward(
    table_DV: jax.Array, hidden_BTD: jax.Array, targets_BT: jax.Array, config: Qwen2Config, temperature: float
) -> tuple[Arrays, Arrays]:
    logits_BTV = _logits(table_DV, hidden_BTD, config, temperature)
    logp_BT, entropy_BT, logsumexp_BT = _token_stats(logits_BTV, targets_BT)
    return (logp_BT, entropy_BT), (table_DV, hidden_BTD, targets_BT, logits_BTV, entropy_BT, logsumexp_BT)


def _unchunked_backward(config: Qwen2Config, temperature: float, residuals: Arrays, cotangents: Arrays) -> tuple:
    table_DV, hidden_BTD, targets_BT, logits_BTV, entropy_BT, logsumexp_BT = residuals
    dlogits_BTV = _dlogits(logits_BTV, targets_BT, (entropy_BT, logsumexp_BT), cotangents, temperature)
    dlogits_BTV = dlogits_BTV.astype(table_DV.dtype)
    dtable_DV = None if config.lora_rank else _dtable(dlogits_BTV, hidden_BTD)
    return dtable_DV, _dhidden(dlogits_BTV, table_DV), None


_unchunked.defvjp(_unchunked_forward, _unchunked_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(
    table_DV: jax.Array,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    loss_mask_BT: jax.Array,
    config: Qwen2Config,
    temperature: float,
) -> Arrays:
    """(log p(target), entropy), each [B, T], from the logits of one chunk of positions after another."""
    return _chunked_forward(table_DV, hidden_BTD, targets_BT, loss_mask_BT, config, temperature)[0]


def _chunked_forward(
    table_DV: jax.Array,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    loss_mask_BT: jax.Array,
    config: Qwen2Config,
    temperature: float,
) -> tuple[Arrays, Arrays]:
    T = loss_mask_BT.shape[1]
    width, order_BT, num_chunks = _compaction(loss_mask_BT, config.logits_chunk)
    inputs = _reorder(hidden_BTD, order_BT), _reorder(targets_BT, order_BT)

    def fill_chunk(i: jax.Array, outputs: Arrays) -> Arrays:
        hidden_BtD, targets_Bt = (jax.lax.dynamic_slice_in_dim(x, i * width, width, axis=1) for x in inputs)
        stats = _token_stats(_logits(table_DV, hidden_BtD, config, temperature), targets_Bt)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, chunk, i * width, axis=1)
            for x, chunk in zip(outputs, stats, strict=True)
        )

    zeros_BT = jnp.zeros(order_BT.shape, jnp.promote_types(hidden_BTD.dtype, jnp.float32))
    stats = jax.lax.fori_loop(0, num_chunks, fill_chunk, (zeros_BT, zeros_BT, zeros_BT))
    logp_BT, entropy_BT, logsumexp_BT = stats
    # Entropy and log-sum-exp stay in the compacted order, in which the backward pass reads them.
    outputs = _restore_order(logp_BT, order_BT, T), _restore_order(entropy_BT, order_BT, T)
    return outputs, (table_DV, hidden_BTD, targets_BT, loss_mask_BT, entropy_BT, logsumexp_BT)


def _chunked_backward(config: Qwen2Config, temperature: float, residuals: Arrays, cotangents: Arrays) -> tuple:
    table_DV, hidden_BTD, targets_BT, loss_mask_BT, entropy_BT, logsumexp_BT = residuals
    width, order_BT, num_chunks = _compaction(loss_mask_BT, config.logits_chunk)
    hidden_BTD, targets_BT, *cotangents_BT = (_reorder(x, order_BT) for x in (hidden_BTD, targets_BT, *cotangents))
    inputs = hidden_BTD, targets_BT, entropy_BT, logsumexp_BT, *cotangents_BT

    def add_chunk(i: jax.Array, gradients: tuple[jax.Array | None, jax.Array]) -> tuple[jax.Array | None, jax.Array]:
        hidden_BtD, targets_Bt, entropy_Bt, logsumexp_Bt, *cotangents_Bt = (
            jax.lax.dynamic_slice_in_dim(x, i * width, width, axis=1) for x in inputs
        )
        logits_BtV = _logits(table_DV, hidden_BtD, config, temperature)
        dlogits_BtV = _dlogits(logits_BtV, targets_Bt, (entropy_Bt, logsumexp_Bt), tuple(cotangents_Bt), temperature)
        dlogits_BtV = dlogits_BtV.astype(table_DV.dtype)
        dtable_DV, dhidden_BTD = gradients
        dtable_DV = None if dtable_DV is None else dtable_DV + _dtable(dlogits_BtV, hidden_BtD)
        dhidden_BtD = _dhidden(dlogits_BtV, table_DV)
        return dtable_DV, jax.lax.dynamic_update_slice_in_dim(dhidden_BTD, dhidden_BtD, i * width, axis=1)

    zeros = None if config.lora_rank else jnp.zeros_like(table_DV), jnp.zeros_like(hidden_BTD)
    dtable_DV, dhidden_BTD = jax.lax.fori_loop(0, num_chunks, add_chunk, zeros)
    return dtable_DV, _restore_order(dhidden_BTD, order_BT, loss_mask_BT.shape[1]), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _compaction(loss_mask_BT: jax.Array, logits_chunk: int) -> tuple[int, jax.Array, jax.Array]:
    """(chunk width in time, each row's positions with those in the loss first, number of chunks that hold any)."""
    B, T = loss_mask_BT.shape
    mesh, device_rows = jax.sharding.get_abstract_mesh(), B
    if not mesh.empty:
        rows_sharding = NamedSharding(mesh, partition_spec(("rows",), TRAIN_RULES, (B,), mesh))
        device_rows = rows_sharding.shard_shape((B,))[0]
    width = min(T, max(1, logits_chunk // device_rows))
    order_BT = jnp.argsort(~loss_mask_BT, axis=1, stable=True)
    # The last chunk is filled up with index T, which `_reorder` reads as 0.
    order_BT = jnp.pad(order_BT, ((0, 0), (0, -T % width)), constant_values=T)
    return width, order_BT, -(-loss_mask_BT.sum(1).max() // width)


def _reorder(x: jax.Array, order_BT: jax.Array) -> jax.Array:
    """The positions of x [B, T, …] in that order; 0 for indices past the end."""
    order = order_BT.reshape(*order_BT.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, order, axis=1, mode="fill", fill_value=0)


def _restore_order(x: jax.Array, order_BT: jax.Array, length: int) -> jax.Array:
    """The inverse of `_reorder`: [B, length, …], gathered by the inverse permutation."""
    return _reorder(x, jnp.argsort(order_BT[:, :length], axis=1))


def _logits(table_DV: jax.Array, hidden_BTD: jax.Array, config: Qwen2Config, temperature: float) -> jax.Array:
    """Logits / temperature in at least float32; ids past the tokenizer's are masked."""
    return mask_logits(einsum_f32("btd,dv->btv", hidden_BTD, table_DV), config) / temperature


def _token_stats(logits_BTV: jax.Array, targets_BT: jax.Array) -> Arrays:
    """(log p(target), entropy, log-sum-exp), each [B, T]."""
    max_BT1 = logits_BTV.max(-1, keepdims=True)
    weights_BTV = jnp.exp(logits_BTV - max_BT1)
    total_BT = weights_BTV.sum(-1)
    logsumexp_BT = jnp.log(total_BT) + max_BT1[..., 0]
    # A masked sum, not a gather: with the vocabulary sharded, each device looks for the target among its own ids, and
    # one sum over devices finds it.
    target_BT = jnp.where(_is_target(logits_BTV, targets_BT), logits_BTV, 0.0).sum(-1)
    mean_BT = (weights_BTV * logits_BTV).sum(-1) / total_BT
    return target_BT - logsumexp_BT, logsumexp_BT - mean_BT, logsumexp_BT


def _dlogits(
    logits_BTV: jax.Array, targets_BT: jax.Array, stats: Arrays, cotangents: Arrays, temperature: float
) -> jax.Array:
    """Cotangent of the logits before the temperature.

    Args:
      logits_BTV: after the temperature.
      targets_BT: target ids.
      stats: entropy and log-sum-exp, each [B, T].
      cotangents: of log p(target) and of the entropy, each [B, T].
      temperature: divides the logits.
    """
    entropy_BT1, logsumexp_BT1 = (x[..., None] for x in stats)
    dlogp_BT1, dentropy_BT1 = (x[..., None] for x in cotangents)
    logp_BTV = logits_BTV - logsumexp_BT1
    p_BTV = jnp.exp(logp_BTV)
    dlogits_BTV = -p_BTV * (dlogp_BT1 + dentropy_BT1 * (logp_BTV + entropy_BT1))
    return (dlogits_BTV + jnp.where(_is_target(logits_BTV, targets_BT), dlogp_BT1, 0.0)) / temperature


def _is_target(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """onehot(target) as bools [B, T, V]."""
    return jax.lax.broadcasted_iota(targets_BT.dtype, logits_BTV.shape, 2) == targets_BT[..., None]


def _dtable(dlogits_BTV: jax.Array, hidden_BTD: jax.Array) -> jax.Array:
    """Cotangent of the table [D, V]."""
    return jnp.einsum("btd,btv->dv", hidden_BTD, dlogits_BTV)


def _dhidden(dlogits_BTV: jax.Array, table_DV: jax.Array) -> jax.Array:
    """Cotangent of the hidden states [B, T, D]."""
    return einsum_f32("btv,dv->btd", dlogits_BTV, table_DV).astype(table_DV.dtype)
