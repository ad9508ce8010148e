"""The device mesh, and the tables that map logical axes to mesh axes: one for training, one for sampling.

The mesh has three axes:

    replica   data parallelism: each replica has its own examples and a copy of the parameters
    fsdp      data parallelism with the parameters and the optimizer state sharded
    tensor    tensor parallelism: heads, feed-forward and vocabulary are split

Code names the dimensions of an array by logical axes ("rows", "embed", "heads" …) and never by mesh axes. A table
(rules) says over which mesh axes each logical axis is split:

    logical axis   dimension                          TRAIN_RULES       SAMPLE_RULES
    rows           batch rows, prompts, slots         replica × fsdp    replica × fsdp
    time           tokens, between layers             tensor            –
    embed          model width D of a parameter       fsdp              –
    heads          query heads                        tensor            tensor
    kv_heads       key-value heads                    tensor            tensor
    ffw            feed-forward width                 tensor            tensor
    vocab          vocabulary                         tensor            tensor

Axes not in a table ("layers", None) are not split. If a dimension is not divisible by its mesh axes, trailing mesh axes
are dropped until it is. So a tensor axis wider than the number of key-value heads replicates keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sqlr1_jax.config import MeshConfig
from sqlr1_jax.distributed import collectives, watchdog
from sqlr1_jax.errors import ConfigError

AXES = ("replica", "fsdp", "tensor")
Rules = Mapping[str, tuple[str, ...]]
LogicalAxes = Sequence[str | None]

# Parameters are sharded over fsdp × tensor and gathered over fsdp per layer. Splitting "time" over tensor between
# layers (sequence parallelism) divides the residual stream that is saved for the backward pass.
TRAIN_RULES: Rules = {
    "rows": ("replica", "fsdp"),
    "time": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffw": ("tensor",),
    "vocab": ("tensor",),
}
# Parameters are replicated over fsdp, since a decode step is too short to gather them. "time" is not split, because a
# decode step has one token per sample.
SAMPLE_RULES: Rules = {
    "rows": ("replica", "fsdp"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffw": ("tensor",),
    "vocab": ("tensor",),
}


def make_mesh(mesh_config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The training mesh (replica, fsdp, tensor).

    Args:
      mesh_config: sizes of the axes; one of them may be -1, for all remaining devices.
      devices: None for all devices of the run.

    Raises:
      ConfigError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _resolve_sizes([mesh_config.replica, mesh_config.fsdp, mesh_config.tensor], len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    if collectives.count_processes(devices) > 1:
        # Ordered by process, so that the devices of a tensor group belong to one process. jax.make_mesh would order
        # them by network topology.
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        return Mesh(np.asarray(ordered).reshape(sizes), AXES, axis_types=axis_types)
    return jax.make_mesh(sizes, AXES, axis_types=axis_types, devices=tuple(devices))


def _resolve_sizes(sizes: list[int], num_devices: int) -> tuple[int, ...]:
    """The sizes with -1 replaced."""
    known = math.prod(size for size in sizes if size > 0)
    resolved = tuple(size if size > 0 else num_devices // known for size in sizes)
    if sum(size <= 0 for size in sizes) > 1 or math.prod(resolved) != num_devices:
        shape = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(
            f"config.mesh is {shape}, which doesn't make {num_devices} devices. The product of the sizes must be the "
            "number of devices; one size may be -1, for the remaining devices."
        )
    return resolved


def data_parallel_size(mesh: Mesh) -> int:
    """Number of data-parallel groups: sets of devices that compute the same rows, each a tensor group."""
    return mesh.shape["replica"] * mesh.shape["fsdp"]


def sampling_mesh(mesh: Mesh, num_kv_heads: int) -> Mesh:
    """The same devices in the same order, with a tensor axis that divides the key-value heads.

    The rest of the tensor axis is moved to fsdp, which splits rows, because a wider tensor axis would replicate the KV
    cache.
    """
    tensor = math.gcd(mesh.shape["tensor"], num_kv_heads)
    moved = mesh.shape["tensor"] // tensor
    devices = mesh.devices.reshape(mesh.shape["replica"], mesh.shape["fsdp"] * moved, tensor)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition_spec(
    logical_axes: LogicalAxes, rules: Rules, shape: Sequence[int] | None = None, mesh: Any = None
) -> PartitionSpec:
    """The mesh axes of each dimension of an array.

    Args:
      logical_axes: one name per dimension; None for a dimension that is not split.
      rules: the table.
      shape: with `mesh`, leaves out mesh axes that do not divide a dimension.
      mesh: concrete or abstract.

    A mesh axis that two dimensions could use goes to the first.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for dim, name in enumerate(logical_axes):
        axes = tuple(axis for axis in rules.get(name or "", ()) if axis not in used)
        if shape is not None and mesh is not None:
            axes = _dividing_axes(axes, shape[dim], mesh.shape)
        used.update(axes)
        entries.append(axes or None)
    while entries and entries[-1] is None:
        entries.pop()  # XLA omits trailing None in output shardings; a spec spelled differently would recompile
    return PartitionSpec(*entries)


def _dividing_axes(axes: tuple[str, ...], size: int, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The longest prefix of `axes`, without axes of size 1, whose product divides `size`."""
    axes = tuple(axis for axis in axes if mesh_shape[axis] > 1)
    while axes and size % math.prod(mesh_shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes


def named_sharding(
    mesh: Mesh, logical_axes: LogicalAxes, rules: Rules, shape: Sequence[int] | None = None
) -> NamedSharding:
    """The sharding of an array on `mesh`; arguments as in `partition_spec`."""
    return NamedSharding(mesh, partition_spec(logical_axes, rules, shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def to_global_arrays(tree: Any, mesh: Mesh, logical_axes: LogicalAxes = ("rows",), rules: Rules = TRAIN_RULES) -> Any:
    """Global arrays from each process's local rows. It copies host to device and does not communicate.

    Args:
      tree: numpy arrays, whose "rows" dimension has this process's B rows; the same B on all processes.
      mesh: the mesh of the global arrays.
      logical_axes: axes of the first dimensions; an array with fewer dimensions uses only the first of them.
      rules: the table.

    Returns:
      The tree with jax.Arrays that have H × B rows for H processes. Arrays without a "rows" dimension keep their shape.
    """

    def to_global(array: np.ndarray) -> jax.Array:
        axes = tuple(logical_axes[: array.ndim])
        # Not always dimension 0: in a batch of microbatches [M, b, T] it is dimension 1.
        rows_dim = axes.index("rows") if "rows" in axes else None
        shape = tuple(
            size * collectives.process_count() if dim == rows_dim else size for dim, size in enumerate(array.shape)
        )
        return jax.make_array_from_process_local_data(
            named_sharding(mesh, axes, rules, shape), np.asarray(array), shape
        )

    return jax.tree.map(to_global, tree)


def constrain(x: jax.Array, logical_axes: LogicalAxes, rules: Rules) -> jax.Array:
    """Constrains the sharding of `x` inside jit; without a mesh (jax.set_mesh) of several devices, returns `x`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(logical_axes, rules, x.shape, mesh))


def gather_to_host(array: jax.Array) -> np.ndarray:
    """The whole array on every process's host. Collective if its parts are on several processes."""
    if not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        with watchdog.waiting():
            array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def to_local_array(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split only over dimension 0, or all of a replicated one.

    The inverse of `to_global_arrays` for rows. It waits until the array is computed.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    # Devices of a tensor group hold equal shards, so one per start index is enough.
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
