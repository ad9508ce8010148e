"""Communication between the processes of one run; there is one process per host.

Each collective is a small JAX program, queued behind all programs already dispatched, so the call blocks until the
devices have finished those.
**Every process must call them, the same ones in the same order, or the run hangs:**

    allgather_arrays  allgather_objects  allgather_list  broadcast  global_sum  global_max  sync_errors  run_on_primary

So a branch around one of them must depend only on values that all processes share. A value that may differ between
processes, such as whether a file exists in a shared folder, must be made equal with `broadcast` first.

The others do not communicate: initialize, process_count, process_index, count_processes, is_primary, local_slice,
check_batch_sizes. With a single process, collectives return their argument without running a program.

Shapes: H processes. B is an array's leading dimension. It is the same on all processes, but may differ from array to
array.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from sqlr1_jax.config import Config
from sqlr1_jax.distributed import watchdog
from sqlr1_jax.errors import ConfigError

Value = TypeVar("Value")


def initialize() -> None:
    """Connects this process to the others. Must be called before any other use of JAX.

    JAX finds the other processes on a TPU slice and under Slurm, Kubernetes or Open MPI. Elsewhere the environment
    variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set.

    Raises:
      ConfigError: neither the environment nor JAX knows the other processes.
    """
    num_processes, process_id = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    # JAX's preemption service would handle SIGTERM in place of train/interrupt.py.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            num_processes=int(num_processes) if num_processes else None,
            process_id=int(process_id) if process_id else None,
        )
    except ValueError as error:
        raise ConfigError(
            f"--distributed: the other processes are unknown ({error}) Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID for each process, or omit --distributed."
        ) from error


def process_count() -> int:
    """Number of processes, H; 1 without --distributed."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """This process's index in 0 … H - 1."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def count_processes(devices: Iterable[jax.Device]) -> int:
    """Number of processes that own these devices; the devices may be abstract, of a topology to compile for."""
    return len({device.process_index for device in devices})


def is_primary() -> bool:
    """Whether this is process 0, which writes the files that exist once per run."""
    return process_index() == 0


def local_slice(count: int) -> slice:
    """This process's part of a list of `count` items that all processes have.

    The parts are contiguous, in the order of the processes, and their sizes differ by at most 1.
    """
    return slice(count * process_index() // process_count(), count * (process_index() + 1) // process_count())


def global_sum(value: float) -> float:
    """The sum of all processes' values, in float64. Collective."""
    return float(np.sum(allgather_arrays(np.asarray([value], np.float64))))


def global_max(value: int) -> int:
    """The maximum of all processes' values, such as a size from which all must derive the same shape. Collective."""
    return int(np.max(allgather_arrays(np.asarray([value], np.int64))))


def allgather_arrays(arrays: Value) -> Value:
    """Concatenates each array of a tree over all processes. Collective.

    Args:
      arrays: a tree of numpy arrays [B, …], with the same shapes and dtypes on all processes.

    Returns:
      The tree with arrays [H × B, …], in the order of the processes, on every process.
    """
    if process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    # Devices would cast 64-bit numbers to 32 bits, so every array is sent as bytes.
    def allgather(array: np.ndarray) -> np.ndarray:
        local_bytes = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        with watchdog.waiting():
            global_bytes = np.asarray(multihost_utils.process_allgather(local_bytes, tiled=True))
        return np.frombuffer(global_bytes.tobytes(), array.dtype).reshape(-1, *array.shape[1:])

    return jax.tree.map(allgather, arrays)


def allgather_objects(value: Value) -> list[Value]:
    """All processes' values, in the order of the processes. Collective.

    Args:
      value: any object that can be pickled; its size may differ between processes.

    Returns:
      H values.
    """
    if process_count() == 1:
        return [value]
    pickled = np.frombuffer(pickle.dumps(value), np.uint8)
    # Padded to a power of two, because each length compiles a program.
    padded_length = 1 << (global_max(len(pickled)) - 1).bit_length()
    padded = np.zeros((1, padded_length), np.uint8)
    padded[0, : len(pickled)] = pickled
    return [pickle.loads(row.tobytes()) for row in allgather_arrays(padded)]  # pickle ignores bytes after its end mark


def allgather_list(local: list[Value]) -> list[Value]:
    """Concatenates the processes' lists, in the order of the processes; lengths may differ. Collective."""
    return [item for process_items in allgather_objects(local) for item in process_items]


def broadcast(value: Value) -> Value:
    """Process 0's value, on every process. Collective."""
    return allgather_objects(value)[0]


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """A block in which an exception on one process is raised on all. Collective at the end of the block.

    The block must not contain collectives, because a process that fails before one would leave the others waiting.

    Raises:
      Exception: this process's exception; if it has none, that of the first process that failed.
    """
    local_error: Exception | None = None
    try:
        yield
    except Exception as error:
        if process_count() == 1:
            raise
        local_error = error
    errors = [error for error in allgather_objects(local_error) if error is not None]
    if errors:
        raise local_error or errors[0]


def run_on_primary(action: Callable[..., Any], *arguments: Any) -> None:
    """Calls `action(*arguments)` on process 0 while the others wait. Collective, but `action` must not be.

    Raises:
      Exception: what `action` raised, on every process.
    """
    with sync_errors():
        if is_primary():
            action(*arguments)


def check_batch_sizes(config: Config, training_mesh: Mesh) -> None:
    """Checks that the processes can share every batch of the config's stages equally.

    A data-parallel group is the set of devices with the same replica and fsdp coordinates; they hold the same examples.

    Raises:
      ConfigError: a data-parallel group spans processes, or a batch does not divide evenly; it names the setting.
    """
    processes = count_processes(training_mesh.devices.flat)
    if processes == 1:
        return
    training_rows = training_mesh.devices.reshape(-1, training_mesh.shape["tensor"])
    if any(count_processes(row) > 1 for row in training_rows):
        raise ConfigError(
            f"config.mesh.tensor={training_mesh.shape['tensor']} spans several hosts, which have "
            f"{training_mesh.devices.size // processes} devices each. Set it to at most that, so that tensor "
            "parallelism stays within a host."
        )
    for stage, name, size in (
        ("sft", "sft.databases", config.sft.databases),
        ("grpo", "grpo.prompts", config.grpo.prompts),
    ):
        if stage in config.stages and size % processes:
            raise ConfigError(
                f"config.{name} is {size}, which does not divide evenly among {processes} hosts. "
                f"Set it to a multiple of {processes}."
            )
