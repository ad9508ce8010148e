"""From groups to what an update eats: rows, their weights in the loss, and microbatches on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import numpy as np
import numpy.typing as npt

from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, PackedRows, RowLayout
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.model import flops, qwen2


@flax.struct.dataclass
class Batch:
    """One step's microbatches; arrays are [M, b, T] but for `count`."""

    rows: PackedRows  # rows.logprob: under the weights that sampled
    advantage_MBT: jax.Array  # of each place's completion; ones where the loss has none
    old_MBT: jax.Array  # log-probabilities that the ratio is taken to
    reference_MBT: jax.Array  # log-probabilities of the reference model; zeros where unused
    count: jax.Array  # microbatches that hold rows, from the front


def choose_layout(groups: Sequence[Group], cfg: config.RowsConfig) -> RowLayout | None:
    """The strided layout that every batch of a stage shares (None where rows are packed): sizes 0 mean the longest.

    A prefix takes a place even where nothing is shared, since attention to nothing has no maximum.
    """
    if cfg.layout == "packed":
        return None
    longest = packing.smallest_layout(groups)
    return RowLayout(cfg.prefix or max(1, longest.prefix), longest.segments, cfg.segment or longest.segment)


def with_row_length(cfg: config.RowsConfig, longest: int) -> config.RowsConfig:
    """The settings with a packed row's length filled in: one for all of a stage's steps, so that they compile once."""
    return dataclasses.replace(cfg, length=cfg.length or longest)


def max_microbatches(groups: int, cfg: config.RowsConfig, on: int) -> int:
    """Most microbatches of a batch of `groups`, of which each of `on` hosts feeds its share."""
    return -(-groups // (cfg.per_microbatch * on))


def pack_groups(groups: Sequence[Group], layout: RowLayout | None, cfg: config.RowsConfig) -> PackedRows:
    """Groups in rows of the stage's layout, short ones first, so that those of a microbatch fit one bucket.

    Raises:
      packing.PackingError: a group does not fit; the message names the setting to raise.
    """
    if layout is not None:
        return packing.shared_prefix_rows(
            sorted(groups, key=lambda group: packing.layout_fraction(group, layout)), layout
        )
    return packing.pack_rows(groups, cfg.length)


def loss_weights(rows: PackedRows, aggregation: str, constant: int = 1) -> npt.NDArray[np.float32]:
    """Weights [B, T] that sum a loss over places as `aggregation` says, divided by the global batch's denominator.

    token: each token 1 / all tokens (the paper's). sample: each completion's mean, then their mean (the original GRPO).
    constant: each token 1 / (completions · constant), so that a long answer is not diluted (Dr. GRPO).
    """
    counted = rows.weight > 0
    if aggregation == "token":
        return (counted / max(1.0, collectives.global_sum(int(counted.sum())))).astype(np.float32)
    width = int(rows.sample.max(initial=0)) + 1
    name = rows.prompt.astype(np.int64) * width + rows.sample
    lengths = np.bincount(name[counted])
    completions = max(1.0, collectives.global_sum(int(np.count_nonzero(lengths))))
    each = lengths[np.minimum(name, len(lengths) - 1)] if aggregation == "sample" and len(lengths) else constant
    return np.where(counted, 1.0 / (np.maximum(each, 1) * completions), 0.0).astype(np.float32)


def forward_flops(rows: PackedRows, model: qwen2.Qwen2Config) -> float:
    """Floating-point operations of one forward pass over the rows' tokens: no padding, logits where they are asked."""
    held, asked = rows.prefix > 0, float((rows.weight > 0).sum())
    # A token sees its prefix and its own segment up to itself, so as many keys as its position says.
    return flops.forward_flops(model, float(held.sum()), float((rows.positions[held] + 1).sum()), asked)


def assemble_batch(
    rows: PackedRows,
    mesh: jax.sharding.Mesh,
    per_microbatch: int,
    microbatches: int,
    advantage_PG: npt.NDArray[np.float32] | None = None,
) -> Batch:
    """Rows cut into at most `microbatches` of `per_microbatch` rows each, on the mesh, empty ones behind.

    Every host passes its own rows; `per_microbatch` is one host's share.
    """
    count = -(-len(rows.tokens) // per_microbatch)
    rows = packing.pad_rows(rows, per_microbatch * microbatches)
    advantage_BT = np.ones(rows.tokens.shape, np.float32)
    if advantage_PG is not None:
        advantage_BT = np.asarray(advantage_PG, np.float32)[rows.prompt, rows.sample]

    def cut(x_BT: np.ndarray) -> jax.Array:
        return sharding.to_global_arrays(x_BT.reshape(microbatches, per_microbatch, -1), mesh, (None, "rows", None))

    return Batch(
        rows=PackedRows(*map(cut, rows)),
        advantage_MBT=cut(advantage_BT),
        old_MBT=cut(rows.logprob),
        reference_MBT=cut(np.zeros(rows.tokens.shape, np.float32)),
        count=sharding.to_global_arrays(np.int32(collectives.global_max(count)), mesh, ()),
    )
