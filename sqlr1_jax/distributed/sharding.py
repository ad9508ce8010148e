"""The mesh, and two tables from logical axis to mesh axes: one for training, one for sampling.

Everything that lives on devices names its dimensions by logical axes ("embed", "heads", "rows", …). A table says which
mesh axes such a dimension is split over; where the dimension isn't divisible by them, trailing mesh axes are left out
until it is, so that a tensor axis wider than a model's key-value heads repeats keys and values instead of failing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sqlr1_jax import config
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError

AXES = ("replica", "fsdp", "tensor")
Rules = Mapping[str, tuple[str, ...]]
LogicalAxes = Sequence[str | None]

# Training: parameters over fsdp × tensor, activations over rows, residuals between layers over time as well.
TRAIN_RULES: Rules = {
    "rows": ("replica", "fsdp"),
    "time": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffw": ("tensor",),
    "vocab": ("tensor",),
}
# Sampling: no parameter is gathered during a step; rows take every axis but tensor.
SAMPLE_RULES: Rules = {
    "rows": ("replica", "fsdp"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffw": ("tensor",),
    "vocab": ("tensor",),
}


def make_mesh(cfg: config.MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The training mesh (replica, fsdp, tensor); a size of -1 takes what the others leave.

    Raises ConfigError when the sizes don't multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _fill([cfg.replica, cfg.fsdp, cfg.tensor], len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    if collectives.count_processes(devices) > 1:
        # By host: a row of the mesh must not reach over two, whatever would lie best on the network.
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        return Mesh(np.asarray(ordered).reshape(sizes), AXES, axis_types=axis_types)
    return jax.make_mesh(sizes, AXES, axis_types=axis_types, devices=tuple(devices))


def _fill(sizes: list[int], devices: int) -> tuple[int, ...]:
    fixed = math.prod(size for size in sizes if size > 0)
    filled = tuple(size if size > 0 else devices // fixed for size in sizes)
    if sum(size <= 0 for size in sizes) > 1 or math.prod(filled) != devices:
        shape = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(
            f"config.mesh is {shape}, which doesn't make {devices} devices; sizes multiply to the number of devices, "
            "and one of them may be -1."
        )
    return filled


def sampling_mesh(mesh: Mesh, num_kv_heads: int) -> Mesh:
    """The same devices with the tensor axis at most the key-value heads; rows take the rest."""
    tensor = math.gcd(mesh.shape["tensor"], num_kv_heads)
    spread = mesh.shape["tensor"] // tensor
    devices = mesh.devices.reshape(mesh.shape["replica"], mesh.shape["fsdp"] * spread, tensor)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition_spec(
    logical_axes: LogicalAxes, rules: Rules, shape: Sequence[int] | None = None, mesh: Any = None
) -> PartitionSpec:
    """Mesh axes of each dimension; with `shape` and `mesh`, only those that divide it.

    A mesh axis is given to the first dimension that asks for it.
    """
    taken: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for place, name in enumerate(logical_axes):
        axes = tuple(axis for axis in rules.get(name or "", ()) if axis not in taken)
        if shape is not None and mesh is not None:
            axes = _dividing(axes, shape[place], mesh.shape)
        taken.update(axes)
        entries.append(axes or None)
    while entries and entries[-1] is None:
        entries.pop()  # as XLA spells the layouts of results: in another spelling a program compiles again
    return PartitionSpec(*entries)


def _dividing(axes: tuple[str, ...], size: int, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    axes = tuple(axis for axis in axes if mesh_shape[axis] > 1)
    while axes and size % math.prod(mesh_shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes


def named_sharding(
    mesh: Mesh, logical_axes: LogicalAxes, rules: Rules, shape: Sequence[int] | None = None
) -> NamedSharding:
    """The sharding of one array on `mesh`."""
    return NamedSharding(mesh, partition_spec(logical_axes, rules, shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def to_global_arrays(tree: Any, mesh: Mesh, logical_axes: LogicalAxes = ("rows",), rules: Rules = TRAIN_RULES) -> Any:
    """Numpy arrays of this host → global arrays, dimension i of each split by `logical_axes[i]`.

    With several hosts each passes its own rows and the global array holds all of them.
    """

    def one(array: np.ndarray) -> jax.Array:
        axes = tuple(logical_axes[: array.ndim])
        rows = axes.index("rows") if "rows" in axes else None  # of a batch in microbatches the second dimension
        shape = tuple(
            size * collectives.process_count() if place == rows else size for place, size in enumerate(array.shape)
        )
        return jax.make_array_from_process_local_data(
            named_sharding(mesh, axes, rules, shape), np.asarray(array), shape
        )

    return jax.tree.map(one, tree)


def constrain(x: jax.Array, logical_axes: LogicalAxes, rules: Rules) -> jax.Array:
    """Asks the partitioner for this layout; without a mesh (`jax.set_mesh`) it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(logical_axes, rules, x.shape, mesh))


def to_local_array(array: jax.Array) -> np.ndarray:
    """This host's part of an array split by rows, as `put` would take it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
