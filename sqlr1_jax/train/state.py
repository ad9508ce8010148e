"""The training state and the one update that both stages share; they differ in the loss they pass.

A batch reaches the device as microbatches [M, b, T] of rows; how many of the M hold anything is a traced number, so
that a step with fewer rows costs less and compiles nothing new. Each loss is a sum over places whose weights carry
the global denominator, so gradients do not change with the number of microbatches, packing, padding or the mesh.
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
from sqlr1_jax.data.packing import PackedRows, RowLayout
from sqlr1_jax.distributed.sharding import TRAIN_RULES, constrain
from sqlr1_jax.model import attention, logprobs, qwen2
from sqlr1_jax.train import buckets, optimizer
from sqlr1_jax.train.batch import Batch

Value = TypeVar("Value")
# name -> (sum, count), divided once, on the host, after all microbatches and hosts are added.
Sums = dict[str, tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step; the data cursor is the step itself."""

    step: jax.Array
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class UpdateSpec:
    """The static half of an update: what XLA compiles for."""

    model: qwen2.Qwen2Config
    optimizer: config.OptimizerConfig
    steps: int  # of the stage, for the schedule
    layout: RowLayout | None = None  # of strided rows
    temperature: float = 1.0  # log-probabilities are those of logits / temperature
    length_buckets: int = 1  # sizes of shared-prefix rows, the layout the longest


# (logp_BT, entropy_BT, a microbatch with arrays [b, T], settings) -> (objective, sums)
Loss = Callable[[jax.Array, jax.Array, Batch, Any], tuple[jax.Array, Sums]]


def create_state(params: Any, program: UpdateSpec) -> TrainState:
    """A state at step 0 with a fresh optimizer."""
    tx = optimizer.make_optimizer(program.optimizer, program.model, program.steps)
    init = jax.jit(tx.init, out_shardings=opt_state_shardings(params, jax.eval_shape(tx.init, params)))
    return TrainState(jnp.zeros((), jnp.int32), params, init(params))


def opt_state_shardings(params: Any, opt_state: Any) -> Any:
    """Shardings of an optimizer's state: a moment lies where its parameter does (zeros would go to every device)."""
    homes = dict(jax.tree_util.tree_leaves_with_path(params))

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> Any:
        ends = (homes.get(path[i:]) for i in range(len(path)))
        return next((home.sharding for home in ends if home is not None and home.shape == leaf.shape), None)

    return jax.tree_util.tree_map_with_path(one, opt_state)


@functools.partial(jax.jit, static_argnames=("loss", "settings", "program"), donate_argnames=("state",))
def update(
    state: TrainState, batch: Batch, loss: Loss, settings: Any, program: UpdateSpec
) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer step over all microbatches.

    Returns the new state and its sums. Where loss or gradient is not finite, or no row was fed, weights and optimizer
    stay as they were, and only the step advances; the first is told by the sum `not_finite`.
    """
    grads, value, sums = compute_gradients(state.params, batch, loss, settings, program)
    tx = optimizer.make_optimizer(program.optimizer, program.model, program.steps)
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    changes, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    taken = finite & (batch.count > 0)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(taken, new, old))
    new = TrainState(state.step + 1, keep(params, state.params), keep(opt_state, state.opt_state))
    one = jnp.ones(())
    rate = optimizer.schedule(program.optimizer, program.steps)(state.step)
    sums |= {"loss": (value, one), "grad_norm": (norm, one), "lr": (jnp.asarray(rate, jnp.float32), one)}
    return new, sums | {"not_finite": (1.0 - finite, one)}


def compile_update(state: TrainState, nothing: Batch, loss: Loss, settings: Any, program: UpdateSpec) -> TrainState:
    """The same state, now that `update` is compiled for what a stage feeds, of which `nothing` holds no row."""
    state, _ = update(state, nothing, loss, settings, program)
    return state.replace(step=state.step - 1)  # type: ignore[attr-defined]


def compute_gradients(
    params: Any, batch: Batch, loss: Loss, settings: Any, program: UpdateSpec
) -> tuple[Any, jax.Array, Sums]:
    """Gradient tree, objective and sums of a batch: what `update` feeds the optimizer."""

    def compute(micro: Batch, program: UpdateSpec) -> tuple[tuple[jax.Array, Sums], Any]:
        def objective(params: Any) -> tuple[jax.Array, Sums]:
            logp_BT, entropy_BT = _logprobs(params, micro.rows, program)
            return loss(logp_BT, entropy_BT, micro, settings)

        return jax.value_and_grad(objective, has_aux=True)(params)

    def body(i: jax.Array, carry: tuple) -> tuple:
        (value, sums), grads = _bucketed(compute, _microbatch(batch, i), program)
        total_grads, total, total_sums = carry
        grads = jax.tree.map(jnp.add, total_grads, grads)
        return grads, total + value, {name: _add(name, total_sums[name], sums[name]) for name in sums}

    shapes = jax.eval_shape(lambda: compute(_microbatch(batch, 0), program))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), ((shapes[1]), *shapes[0]))
    return jax.lax.fori_loop(0, batch.count, body, zeros)


@functools.partial(jax.jit, static_argnames=("program",))
def compute_logprobs(params: Any, batch: Batch, program: UpdateSpec) -> jax.Array:
    """Log-probabilities [M, b, T] of a batch's targets under other weights (the reference, or the old policy)."""

    def compute(micro: Batch, cut: UpdateSpec) -> jax.Array:
        logp_BT, _ = _logprobs(params, micro.rows, cut)
        return buckets.uncrop(logp_BT, program.layout, cut.layout) if program.layout and cut.layout else logp_BT

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        logp_BT = _bucketed(compute, _microbatch(batch, i), program)
        return jax.lax.dynamic_update_index_in_dim(out, logp_BT, i, 0)

    wide = jnp.promote_types(program.model.dtype, jnp.float32)
    return jax.lax.fori_loop(0, batch.count, body, jnp.zeros(batch.rows.tokens.shape, wide))


def _add(name: str, a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Sums and counts add up; of a maximum (its count is 1) the larger stays."""
    return (jnp.maximum(a[0], b[0]), jnp.ones(())) if name.endswith("/max") else (a[0] + b[0], a[1] + b[1])


def _microbatch(batch: Batch, i: Any) -> Batch:
    """Microbatch i, its arrays [b, T]."""

    def one(x_MBT: jax.Array) -> jax.Array:
        x_BT = jax.lax.dynamic_index_in_dim(x_MBT, i, 0, keepdims=False)
        return constrain(x_BT, ("rows", None), TRAIN_RULES)

    rows, advantage_BT, old_BT, reference_BT = jax.tree.map(one, _arrays(batch))
    return Batch(rows, advantage_BT, old_BT, reference_BT, batch.count)


def _arrays(batch: Batch) -> tuple[PackedRows, jax.Array, jax.Array, jax.Array]:
    return batch.rows, batch.advantage_MBT, batch.old_MBT, batch.reference_MBT


def _bucketed(compute: Callable[[Batch, UpdateSpec], Value], micro: Batch, program: UpdateSpec) -> Value:
    """`compute` on a microbatch cut to the smallest layout that takes it."""
    if program.layout is None:
        return compute(micro, program)

    def one(cut: Callable[[Any], Any], layout: RowLayout) -> Any:
        rows, advantage_BT, old_BT, reference_BT = cut(_arrays(micro))
        part = Batch(rows, advantage_BT, old_BT, reference_BT, micro.count)
        return compute(part, dataclasses.replace(program, layout=layout))

    return buckets.on_smallest_layout(one, micro.rows, program.layout, program.length_buckets)


def _logprobs(params: Any, rows: PackedRows, program: UpdateSpec) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies [b, T] of the places that count, 0 elsewhere."""
    layout = program.layout or RowLayout(0, 0, 0)
    mask = attention.Mask(rows.prefix, rows.segment, layout.prefix, layout.segment)
    hidden_BTD, _ = qwen2.forward(params, rows.tokens, rows.positions, mask, program.model)
    behind = layout.prefix  # which asks for nothing
    asked = hidden_BTD[:, behind:], rows.targets[:, behind:], program.model, program.temperature
    found = logprobs.token_logprobs(params, *asked, rows.weight[:, behind:] > 0)
    logp_BT, entropy_BT = (jnp.pad(x_BT, ((0, 0), (behind, 0))) for x_BT in found)
    return logp_BT, entropy_BT


def mean_metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """Sums fetched from the device, divided; a metric with nothing to count is left out."""
    fetched = jax.device_get(dict(sums))
    return {name: float(total) / float(count) for name, (total, count) in fetched.items() if count}
