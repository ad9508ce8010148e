"""The processes of one run, one a host: who comes first, whose share is whose, and what they tell each other.

Alone, a process is the first, its share is everything and what it tells comes back. Telling waits for the devices. What
tells (all from `total` down) must be called by every host, in the same order: what may differ between hosts, like
what they find in the shared folder, is agreed on first.
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
from sqlr1_jax.errors import ConfigError

Value = TypeVar("Value")


def initialize() -> None:
    """Makes this process one of the run's: found by JAX on a TPU slice, under Slurm, Kubernetes or Open MPI.

    Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. To be called before JAX is used.

    Raises:
      ConfigError: nothing says who the others are.
    """
    many, here = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from train/interrupt.py
    try:
        jax.distributed.initialize(num_processes=int(many) if many else None, process_id=int(here) if here else None)
    except ValueError as error:
        raise ConfigError(
            f"--distributed, but nothing says who the other processes are ({error}) Set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID on each, or leave --distributed out."
        ) from error


def process_count() -> int:
    """How many there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def count_processes(devices: Iterable[jax.Device]) -> int:
    """How many have these devices, which may be those of a topology that is not here."""
    return len({device.process_index for device in devices})


def is_primary() -> bool:
    """Whether this is the host that writes what is written once."""
    return process_index() == 0


def local_slice(number: int) -> slice:
    """This host's part of `number` things that every host has a list of; the parts of all hosts follow each other."""
    return slice(number * process_index() // process_count(), number * (process_index() + 1) // process_count())


def global_sum(value: float) -> float:
    """The sum of a number that each host has: a global denominator."""
    return float(np.sum(allgather_arrays(np.asarray([value], np.float64))))


def global_max(value: int) -> int:
    """The largest of the hosts' numbers: a shape on which they agree."""
    return int(np.max(allgather_arrays(np.asarray([value], np.int64))))


def allgather_arrays(arrays: Value) -> Value:
    """A tree of numpy arrays, each host's rows behind the rows of the hosts before it; as many on every host."""
    if process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    # As bytes: 64-bit numbers would be cut to 32 on their way over the devices.
    def over_devices(array: np.ndarray) -> np.ndarray:
        flat = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        every = np.asarray(multihost_utils.process_allgather(flat, tiled=True))
        return np.frombuffer(every.tobytes(), array.dtype).reshape(-1, *array.shape[1:])

    return jax.tree.map(over_devices, arrays)


def allgather_objects(value: Value) -> list[Value]:
    """What each host passes, in the hosts' order; anything that can be pickled."""
    if process_count() == 1:
        return [value]
    raw = np.frombuffer(pickle.dumps(value), np.uint8)
    length = 1 << (global_max(len(raw)) - 1).bit_length()  # few lengths: each is a program of its own
    padded = np.zeros((1, length), np.uint8)
    padded[0, : len(raw)] = raw
    return [pickle.loads(row.tobytes()) for row in allgather_arrays(padded)]  # the end of a pickle is marked in it


def allgather_list(mine: list[Value]) -> list[Value]:
    """The hosts' lists as one, each behind those of the hosts before it."""
    return [one for theirs in allgather_objects(mine) for one in theirs]


def broadcast(value: Value) -> Value:
    """What the first host passes."""
    return allgather_objects(value)[0]


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """Ends when every host is through; what fails on one fails on all. Nothing within may talk."""
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        if process_count() == 1:
            raise
        mine = error
    failed = [error for error in allgather_objects(mine) if error is not None]
    if failed:
        raise mine or failed[0]


def run_on_primary(action: Callable[..., Any], *arguments: Any) -> None:
    """What the first host does while the others wait; where it fails, it fails on all. It may not talk."""
    with sync_errors():
        if is_primary():
            action(*arguments)


def check_batch_sizes(cfg: Config, training: Mesh, sampling: Mesh) -> None:
    """Each host must hold whole rows of every batch that cfg.stages feed, and as many as the others.

    Raises:
      ConfigError: a batch does not part evenly; the message names the setting.
    """
    hosts = count_processes(training.devices.flat)
    if hosts == 1:
        return
    rows = training.devices.reshape(-1, training.shape["tensor"])
    if any(count_processes(row) > 1 for row in rows):
        raise ConfigError(
            f"config.mesh.tensor={training.shape['tensor']} reaches over several hosts, which have "
            f"{training.devices.size // hosts} devices each: a row of the mesh must stay on one."
        )
    sampled = sampling.devices.reshape(-1, sampling.shape["tensor"])
    for stage, name, size, parts in (
        ("sft", "sft.databases", cfg.sft.databases, hosts),
        ("sft", "sft.rows.per_microbatch", cfg.sft.rows.per_microbatch * hosts, len(rows)),
        ("grpo", "grpo.rows.per_microbatch", cfg.grpo.rows.per_microbatch * hosts, len(rows)),
        ("grpo", "grpo.prompts", cfg.grpo.prompts, len(sampled)),
        ("grpo", "rollout.max_concurrent_prompts", cfg.rollout.max_concurrent_prompts, len(sampled)),
        ("evaluate", "evaluate.max_concurrent_prompts", cfg.evaluate.max_concurrent_prompts, len(sampled)),
    ):
        if stage in cfg.stages and size % parts:
            whole = f", {size} on {hosts} hosts," if name.endswith("per_microbatch") else ""
            raise ConfigError(
                f"config.{name} is {size // hosts if whole else size}{whole} and does not part into {parts} equal "
                f"shares, one for each {'host' if parts == hosts else 'row of the mesh'}: choose a multiple."
            )
