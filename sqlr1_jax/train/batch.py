"""Turns groups into the batch of one update: rows, their loss weights, and microbatches on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import numpy as np
import numpy.typing as npt

from sqlr1_jax.config import RowsConfig
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Buckets, Group, PackedRows, RowLayout
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.model import flops, qwen2


@flax.struct.dataclass
class Batch:
    """The microbatches of one update; every array except `count` is [M, b, T].

    There are M microbatches of b rows, which all processes share. A loss receives one microbatch as a Batch whose
    arrays are [b, T].
    """

    rows: PackedRows  # rows.logprob: log-probabilities under the weights that sampled
    advantage_MBT: jax.Array  # of the completion that a token belongs to
    old_MBT: jax.Array  # log-probabilities under the old policy, the denominator of the ratio
    reference_MBT: jax.Array  # log-probabilities under the reference model; zeros if the loss does not use them
    count: jax.Array  # int32 []: microbatches that hold rows; they come first


def choose_layout(groups: Sequence[Group], rows_config: RowsConfig) -> RowLayout | None:
    """The layout of shared-prefix rows for all batches of a stage; None if rows are packed.

    A setting of 0 means the longest prefix or segment among `groups`. The prefix has at least one position, because
    attention over no keys is undefined.
    """
    if rows_config.layout == "packed":
        return None
    longest = packing.smallest_layout(groups)
    prefix = rows_config.prefix or max(1, longest.prefix)
    return RowLayout(prefix, longest.segments, rows_config.segment or longest.segment)


def row_buckets(rows_config: RowsConfig) -> Buckets:
    """How many sizes of prefixes and segments a stage compiles."""
    return Buckets(rows_config.prefix_buckets, rows_config.segment_buckets)


def with_row_length(rows_config: RowsConfig, longest: int) -> RowsConfig:
    """Replaces length 0 by `longest`, so that all steps share one shape and compile once."""
    return dataclasses.replace(rows_config, length=rows_config.length or longest)


class Microbatches(NamedTuple):
    """The size of a stage's microbatches, the same in all steps."""

    rows: int  # of this process in each, an equal number for each of its data-parallel groups
    limit: int  # M, the most that an update can need


def microbatches(num_groups: int, rows_config: RowsConfig, mesh: jax.sharding.Mesh) -> Microbatches:
    """As few microbatches as `rows.per_microbatch` allows for `num_groups` groups of all processes, equally full.

    Each data-parallel group of the mesh computes rows of its own, so one config serves any mesh.
    """
    data_parallel = sharding.data_parallel_size(mesh)
    count = -(-num_groups // (rows_config.per_microbatch * data_parallel))
    rows = -(-num_groups // (count * data_parallel)) * data_parallel
    return Microbatches(rows // collectives.count_processes(mesh.devices.flat), count)


def pack_groups(groups: Sequence[Group], layout: RowLayout | None, rows_config: RowsConfig) -> PackedRows:
    """Rows of the groups in the stage's layout (None: packed).

    Shared-prefix rows are sorted by length, so that rows of one microbatch fit one length bucket.

    Raises:
      packing.PackingError: a group does not fit; the message names the setting to raise.
    """
    if layout is None:
        return packing.pack_rows(groups, rows_config.length)
    short_first = sorted(groups, key=lambda group: packing.layout_fraction(group, layout))
    return packing.shared_prefix_rows(short_first, layout)


def loss_weights(rows: PackedRows, aggregation: str, constant: int = 1) -> npt.NDArray[np.float32]:
    """Weights [B, T] such that the weighted sum of token losses is the chosen aggregate over the global batch.

    A token with loss (rows.weight > 0) gets 1 / denominator, all others 0.

    Args:
      rows: this process's rows; every process must call this function with its own.
      aggregation: "token": the mean over all tokens (the paper's). "sample": the mean over completions of each
        completion's mean (the original GRPO). "constant": each completion's sum divided by `constant`, averaged over
        completions, so that tokens of long answers weigh as much as others (Dr. GRPO).
      constant: the length that "constant" divides by.

    Raises:
      ValueError: `aggregation` has another value.
    """
    loss_mask_BT = rows.weight > 0
    denominator_BT: float | npt.NDArray[np.float64]
    if aggregation == "token":
        denominator_BT = max(1.0, collectives.global_sum(int(loss_mask_BT.sum())))
    elif aggregation in ("sample", "constant"):
        lengths_BT, completions = _completion_lengths(rows, loss_mask_BT)
        tokens_BT = lengths_BT if aggregation == "sample" else constant
        denominator_BT = np.maximum(tokens_BT, 1) * max(1.0, collectives.global_sum(completions))
    else:
        raise ValueError(f"grpo.aggregation is {aggregation!r}; it must be 'token', 'sample' or 'constant'.")
    return np.where(loss_mask_BT, 1.0 / denominator_BT, 0.0).astype(np.float32)


def _completion_lengths(rows: PackedRows, loss_mask_BT: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], int]:
    """Tokens with loss in the completion of each position, int64 [B, T], and how many completions have any."""
    max_samples = int(rows.sample.max(initial=0)) + 1
    completion_BT = rows.prompt.astype(np.int64) * max_samples + rows.sample
    lengths = np.bincount(completion_BT[loss_mask_BT], minlength=int(completion_BT.max(initial=0)) + 1)
    return lengths[completion_BT], int(np.count_nonzero(lengths))


def forward_flops(rows: PackedRows, model: qwen2.Qwen2Config) -> float:
    """Floating-point operations of one forward pass over the rows, without padding.

    Logits are counted only at positions with loss.
    """
    is_token = rows.prefix > 0
    # A token attends to its prefix and to its own segment up to itself: position + 1 keys.
    keys = float((rows.positions[is_token] + 1).sum())
    return flops.forward_flops(model, float(is_token.sum()), keys, float((rows.weight > 0).sum()))


def assemble_batch(
    rows: PackedRows,
    mesh: jax.sharding.Mesh,
    size: Microbatches,
    advantage_PG: npt.NDArray[np.float32] | None = None,
) -> Batch:
    """Splits rows into microbatches and moves them to the mesh; every process must call it with its own rows.

    Args:
      rows: this process's rows, whose weights are loss weights; empty rows are appended to fill the batch.
      mesh: the training mesh.
      size: of the stage's microbatches.
      advantage_PG: advantages by rows.prompt and rows.sample; None: 1 everywhere.

    Raises:
      packing.PackingError: there are more rows than microbatches can hold.
    """
    count = -(-len(rows.tokens) // size.rows)
    rows = packing.pad_rows(rows, size.rows * size.limit)
    advantage_BT = np.ones(rows.tokens.shape, np.float32)
    if advantage_PG is not None:
        advantage_BT = np.asarray(advantage_PG, np.float32)[rows.prompt, rows.sample]

    def to_microbatches(x_BT: np.ndarray) -> jax.Array:
        return sharding.to_global_arrays(x_BT.reshape(size.limit, size.rows, -1), mesh, (None, "rows", None))

    return Batch(
        rows=PackedRows(*map(to_microbatches, rows)),
        advantage_MBT=to_microbatches(advantage_BT),
        old_MBT=to_microbatches(rows.logprob),
        reference_MBT=to_microbatches(np.zeros(rows.tokens.shape, np.float32)),
        # The update runs the same number of microbatches on all processes; a process with fewer rows
        # computes empty microbatches.
        count=sharding.to_global_arrays(np.int32(collectives.global_max(count)), mesh, ()),
    )
