"""The SFT stage (the paper's cold start): supervised fine-tuning on questions with answers.

A row holds one schema as its prefix and questions on it with their answers as segments. Only answer tokens have loss.
"""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.config import RowsConfig
from sqlr1_jax.distributed import collectives
from sqlr1_jax.model import flops, lora
from sqlr1_jax.train import batch, loop, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.loop import StepResult
from sqlr1_jax.train.sft_groups import STAGE, GroupSet, load_groups
from sqlr1_jax.train.state import Sums, TrainState, UpdateSpec


@dataclasses.dataclass(frozen=True)
class SftSetup:
    """What stays the same from step to step."""

    context: RunContext
    group_set: GroupSet
    update_spec: UpdateSpec
    rows_config: RowsConfig
    microbatches: batch.Microbatches


def train(context: RunContext) -> TrainState:
    """Trains to the stage's last step, from its latest checkpoint or the run's initial weights.

    Raises:
      ConfigError: the stage's data have no example to learn from, or no reasoning although the form needs it.
      packing.PackingError: a group does not fit a row; the message names the setting to raise.
    """
    setup = prepare(context)
    with jax.set_mesh(context.mesh):
        return loop.run_steps(
            context,
            STAGE,
            context.config.sft.steps,
            state.create_state(lora.split(init_params(context))[0], setup.update_spec),
            step_fn=functools.partial(train_step, setup),
            compile_fn=functools.partial(compile_update, setup),
        )


def prepare(context: RunContext) -> SftSetup:
    """Reads the stage's examples and takes one row layout for all of its steps, so that the update compiles once."""
    sft_config = context.config.sft
    group_set = load_groups(context)
    rows_config = dataclasses.replace(sft_config.rows, length=group_set.row_length)
    update_spec = UpdateSpec(
        context.model,
        sft_config.optimizer,
        sft_config.steps,
        group_set.layout,
        row_buckets=batch.row_buckets(sft_config.rows),
    )
    microbatches = batch.microbatches(sft_config.databases, sft_config.rows, context.mesh)
    return SftSetup(context, group_set, update_spec, rows_config, microbatches)


def train_step(setup: SftSetup, train_state: TrainState, step: int) -> StepResult:
    """One step of SFT on `sft.databases` groups; each process packs its own share of them."""
    begin = time.perf_counter()
    context, rows_config = setup.context, setup.rows_config
    groups, ids = setup.group_set.batch(context.config.sft.databases, context.config.seed, step)
    setup.group_set.make_ahead(context.config.sft.databases, context.config.seed, step + 1)
    rows = batch.pack_groups(groups, setup.update_spec.layout, rows_config)
    rows = rows._replace(weight=batch.loss_weights(rows, "token"))
    update_batch = batch.assemble_batch(rows, context.mesh, setup.microbatches)
    # Collectives run on the devices in order of dispatch, so after the update these two would wait for it.
    tokens = collectives.global_sum(int(np.count_nonzero(rows.weight)))
    passes = flops.update_passes(context.model)
    useful_flops = collectives.global_sum(passes * batch.forward_flops(rows, context.model))
    packed = time.perf_counter()
    frozen = context.frozen_params
    train_state, sums = state.update(train_state, update_batch, sft_loss, None, setup.update_spec, frozen)
    metrics = {"tokens": tokens, "flops": useful_flops, "time/pack": packed - begin}
    metrics["time/update"] = time.perf_counter() - packed
    return StepResult(train_state, sums, metrics, ids)


def compile_update(setup: SftSetup, train_state: TrainState) -> TrainState:
    """Compiles the stage's update on a batch without rows; returns an equal state."""
    no_rows = batch.pack_groups([], setup.update_spec.layout, setup.rows_config)
    empty_batch = batch.assemble_batch(no_rows, setup.context.mesh, setup.microbatches)
    frozen = setup.context.frozen_params
    return state.compile_update(train_state, empty_batch, sft_loss, None, setup.update_spec, frozen)


def sft_loss(logp_BT: jax.Array, entropy_BT: jax.Array, microbatch: Batch, loss_config: None) -> tuple[jax.Array, Sums]:
    """Negative log-likelihood of the answers' tokens; the loss weights sum to one over the global batch."""
    del loss_config
    loss_mask_BT = microbatch.rows.weight > 0
    count = loss_mask_BT.sum().astype(jnp.float32)
    entropy = jnp.where(loss_mask_BT, jax.lax.stop_gradient(entropy_BT), 0.0).sum()
    return -(logp_BT * microbatch.rows.weight).sum(), {"entropy": (entropy, count)}
