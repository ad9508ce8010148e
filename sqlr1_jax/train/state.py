"""The training state and the update that all stages share; stages differ in the loss function they pass.

A batch is an array of M microbatches of rows, [M, b, T]. How many of the M hold rows is a traced number, so a step with
fewer rows costs less and compiles nothing new. A loss is a sum over tokens whose weights contain the denominator of the
global batch, so its gradient does not depend on the number of microbatches, on padding, on packing or on the mesh.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sqlr1_jax import config
from sqlr1_jax.data.packing import ONE_SIZE, Buckets, PackedRows, RowLayout
from sqlr1_jax.distributed.sharding import TRAIN_RULES, constrain
from sqlr1_jax.model import attention, logprobs, qwen2
from sqlr1_jax.train import buckets, optimizer
from sqlr1_jax.train.batch import Batch

Value = TypeVar("Value")
# Metric name -> (sum, count). Added over microbatches and devices; the host divides once, at the end.
Sums = dict[str, tuple[jax.Array, jax.Array]]
# (logp_BT, entropy_BT, a microbatch with arrays [b, T], loss_config) -> (objective, sums)
LossFn = Callable[[jax.Array, jax.Array, Batch, Any], tuple[jax.Array, Sums]]


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step; `step` is also the position in the data."""

    step: jax.Array  # int32 []: completed steps
    params: Any  # those that train: all of the model's, or with LoRA its adapters
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class UpdateSpec:
    """The static arguments of an update; XLA compiles one program for each value."""

    model: qwen2.Qwen2Config
    optimizer: config.OptimizerConfig
    steps: int  # length of the stage, for the learning rate schedule
    layout: RowLayout | None = None  # layout of shared-prefix rows; None if rows are packed
    temperature: float = 1.0  # log-probabilities are those of logits / temperature
    # How many sizes of shared-prefix rows are compiled; `layout` is the largest.
    row_buckets: Buckets = ONE_SIZE


def create_state(params: Any, spec: UpdateSpec) -> TrainState:
    """A state at step 0 with a fresh optimizer state, sharded as the parameters are."""
    tx = optimizer.make_optimizer(spec.optimizer, spec.model, spec.steps)
    init = jax.jit(tx.init, out_shardings=opt_state_shardings(params, jax.eval_shape(tx.init, params)))
    return TrainState(jnp.zeros((), jnp.int32), params, init(params))


def opt_state_shardings(params: Any, opt_state: Any) -> Any:
    """For each leaf of the optimizer state, the sharding of its parameter; None if it belongs to no parameter.

    Without these shardings, XLA would replicate the moments' initial zeros on every device.
    """
    params_by_path = dict(jax.tree_util.tree_leaves_with_path(params))

    def leaf_sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> Any:
        # optax nests a copy of the parameter tree in its state, so a suffix of the path is the parameter's path.
        suffixes = (params_by_path.get(path[i:]) for i in range(len(path)))
        return next((param.sharding for param in suffixes if param is not None and param.shape == leaf.shape), None)

    return jax.tree_util.tree_map_with_path(leaf_sharding, opt_state)


@functools.partial(jax.jit, static_argnames=("loss_fn", "loss_config", "spec"), donate_argnames=("state",))
def update(
    state: TrainState, batch: Batch, loss_fn: LossFn, loss_config: Any, spec: UpdateSpec, frozen: Any = None
) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer step over all microbatches. Donates the buffers of `state`.

    If the loss or the gradient is not finite, or the batch holds no rows, parameters and optimizer state stay the same
    and only `step` advances. The learning rate is that of `step`, whatever the steps before it did.

    Args:
      state: the step, what trains, and its optimizer state.
      batch: the microbatches.
      loss_fn: the stage's loss.
      loss_config: the loss's settings.
      spec: what else the program depends on.
      frozen: the model's other parameters; None: all train.

    Returns:
      The new state, and metrics as (sum, count). `lr` is the learning rate; `not_finite` counts steps with a loss or
      gradient that is not finite.
    """
    grads, objective, sums = compute_gradients(state.params, batch, loss_fn, loss_config, spec, frozen)
    tx = optimizer.make_optimizer(spec.optimizer, spec.model, spec.steps)
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(objective) & jnp.isfinite(norm)
    changes, opt_state = tx.update(grads, optimizer.at_step(state.opt_state, state.step), state.params)
    params = optax.apply_updates(state.params, changes)
    accepted = finite & (batch.count > 0)
    select = functools.partial(jax.tree.map, lambda new, old: jnp.where(accepted, new, old))
    new_state = TrainState(state.step + 1, select(params, state.params), select(opt_state, state.opt_state))
    one = jnp.ones(())
    rate = optimizer.schedule(spec.optimizer, spec.steps)(state.step)
    sums |= {"loss": (objective, one), "grad_norm": (norm, one), "lr": (jnp.asarray(rate, jnp.float32), one)}
    return new_state, sums | {"not_finite": (1.0 - finite, one)}


def compile_update(
    state: TrainState, empty_batch: Batch, loss_fn: LossFn, loss_config: Any, spec: UpdateSpec, frozen: Any = None
) -> TrainState:
    """Compiles `update` by running it on a batch without rows, which changes nothing; returns an equal state.

    `empty_batch` must have the shapes and shardings of the stage's batches. The buffers of `state` are donated.
    """
    state, _ = update(state, empty_batch, loss_fn, loss_config, spec, frozen)
    return state.replace(step=state.step - 1)  # type: ignore[attr-defined]


def compute_gradients(
    params: Any, batch: Batch, loss_fn: LossFn, loss_config: Any, spec: UpdateSpec, frozen: Any = None
) -> tuple[Any, jax.Array, Sums]:
    """The gradient tree of `params`, the objective and the metric sums of a batch, added over its microbatches."""

    def compute(microbatch: Batch, spec: UpdateSpec) -> tuple[tuple[jax.Array, Sums], Any]:
        def objective(params: Any) -> tuple[jax.Array, Sums]:
            logp_BT, entropy_BT = _logprobs(params | (frozen or {}), microbatch.rows, spec)
            return loss_fn(logp_BT, entropy_BT, microbatch, loss_config)

        return jax.value_and_grad(objective, has_aux=True)(params)

    def body(i: jax.Array, carry: tuple) -> tuple:
        (value, sums), grads = _compute_bucketed(compute, _microbatch(batch, i), spec)
        total_grads, total_value, total_sums = carry
        grads = jax.tree.map(jnp.add, total_grads, grads)
        return grads, total_value + value, {name: _add_sums(name, total_sums[name], sums[name]) for name in sums}

    shapes = jax.eval_shape(lambda: compute(_microbatch(batch, 0), spec))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), ((shapes[1]), *shapes[0]))
    return jax.lax.fori_loop(0, batch.count, body, zeros)


@functools.partial(jax.jit, static_argnames=("spec",))
def compute_logprobs(params: Any, batch: Batch, spec: UpdateSpec) -> jax.Array:
    """Log-probabilities [M, b, T] of a batch's targets under `params` (the reference's, or the old policy's).

    Zero at positions without loss.
    """

    def compute(microbatch: Batch, smaller: UpdateSpec) -> jax.Array:
        logp_BT, _ = _logprobs(params, microbatch.rows, smaller)
        return buckets.uncrop(logp_BT, spec.layout, smaller.layout) if spec.layout and smaller.layout else logp_BT

    def body(i: jax.Array, logp_MBT: jax.Array) -> jax.Array:
        logp_BT = _compute_bucketed(compute, _microbatch(batch, i), spec)
        return jax.lax.dynamic_update_index_in_dim(logp_MBT, logp_BT, i, 0)

    logp_dtype = jnp.promote_types(spec.model.dtype, jnp.float32)
    return jax.lax.fori_loop(0, batch.count, body, jnp.zeros(batch.rows.tokens.shape, logp_dtype))


def mean_metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """Fetches metrics from the device and divides sums by counts; leaves out metrics with a count of 0."""
    fetched = jax.device_get(dict(sums))
    return {name: float(total) / float(count) for name, (total, count) in fetched.items() if count}


def _add_sums(name: str, a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Adds sums and counts; a metric named */max keeps the larger value, with a count of 1."""
    return (jnp.maximum(a[0], b[0]), jnp.ones(())) if name.endswith("/max") else (a[0] + b[0], a[1] + b[1])


def _microbatch(batch: Batch, i: Any) -> Batch:
    """Microbatch i, its arrays [b, T]."""

    def select(x_MBT: jax.Array) -> jax.Array:
        x_BT = jax.lax.dynamic_index_in_dim(x_MBT, i, 0, keepdims=False)
        return constrain(x_BT, ("rows", None), TRAIN_RULES)

    rows, advantage_BT, old_BT, reference_BT = jax.tree.map(select, _arrays(batch))
    return Batch(rows, advantage_BT, old_BT, reference_BT, batch.count)


def _arrays(batch: Batch) -> tuple[PackedRows, jax.Array, jax.Array, jax.Array]:
    return batch.rows, batch.advantage_MBT, batch.old_MBT, batch.reference_MBT


def _compute_bucketed(compute: Callable[[Batch, UpdateSpec], Value], microbatch: Batch, spec: UpdateSpec) -> Value:
    """Calls `compute` on a microbatch cropped to the smallest layout that fits it."""
    if spec.layout is None:
        return compute(microbatch, spec)

    def compute_cropped(crop: Callable[[Any], Any], layout: RowLayout) -> Any:
        rows, advantage_BT, old_BT, reference_BT = crop(_arrays(microbatch))
        cropped = Batch(rows, advantage_BT, old_BT, reference_BT, microbatch.count)
        return compute(cropped, dataclasses.replace(spec, layout=layout))

    return buckets.apply_in_smallest_layout(compute_cropped, microbatch.rows, spec.layout, spec.row_buckets)


def _logprobs(params: Any, rows: PackedRows, spec: UpdateSpec) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies [b, T] at positions with loss, 0 elsewhere."""
    layout = spec.layout or RowLayout(0, 0, 0)
    mask = attention.Mask(rows.prefix, rows.segment, layout.prefix, layout.segment)
    hidden_BTD, _ = qwen2.forward(params, rows.tokens, rows.positions, mask, spec.model)
    # No prefix position has loss, so logits are computed for the segments only.
    prefix = layout.prefix
    logp_BT, entropy_BT = logprobs.token_logprobs(
        params,
        hidden_BTD[:, prefix:],
        rows.targets[:, prefix:],
        spec.model,
        spec.temperature,
        rows.weight[:, prefix:] > 0,
    )
    return jnp.pad(logp_BT, ((0, 0), (prefix, 0))), jnp.pad(entropy_BT, ((0, 0), (prefix, 0)))
