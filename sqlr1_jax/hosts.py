"""The processes of one run, one a host: who comes first, whose share is whose, and what they tell each other.

Alone, a process is the first, its share is everything and what it tells comes back. Functions that talk must be called
by every host, in the same order.
"""

from __future__ import annotations

import os
import pickle
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from sqlr1_jax.config import Config, ConfigError

Arrays = TypeVar("Arrays")


def join() -> None:
    """Makes this process one of the run's: found by JAX on a TPU slice, under Slurm, Kubernetes or Open MPI.

    Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. To be called before JAX is used.

    Raises:
      ConfigError: nothing says who the others are.
    """
    count, here = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None, process_id=int(here) if here else None
        )
    except ValueError as error:
        raise ConfigError(
            f"--distributed, but nothing says who the other processes are ({error}) Set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID on each, or leave --distributed out."
        ) from error


def first() -> bool:
    """Whether this is the host that writes what is written once."""
    return jax.process_index() == 0


def share(count: int) -> slice:
    """This host's part of `count` things that every host has a list of; the parts of all hosts follow each other."""
    here, hosts = jax.process_index(), jax.process_count()
    return slice(count * here // hosts, count * (here + 1) // hosts)


def total(value: float) -> float:
    """The sum of a number that each host has: a global denominator."""
    return float(np.sum(rows(np.asarray([value], np.float64))))


def largest(value: int) -> int:
    """The largest of the hosts' numbers: a shape on which they agree."""
    return int(np.max(rows(np.asarray([value], np.int64))))


def rows(arrays: Arrays) -> Arrays:
    """A tree of numpy arrays, each host's rows behind the rows of the hosts before it; as many on every host."""
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    # As bytes: 64-bit numbers would be cut to 32 on their way over the devices.
    def over_devices(array: np.ndarray) -> np.ndarray:
        flat = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        every = np.asarray(multihost_utils.process_allgather(flat, tiled=True))
        return np.frombuffer(every.tobytes(), array.dtype).reshape(-1, *array.shape[1:])

    return jax.tree.map(over_devices, arrays)


def gather(value: Any) -> list[Any]:
    """What each host passes, in the hosts' order; anything that can be pickled."""
    if jax.process_count() == 1:
        return [value]
    raw = np.frombuffer(pickle.dumps(value), np.uint8)
    padded = np.zeros((1, largest(len(raw))), np.uint8)
    padded[0, : len(raw)] = raw
    return [pickle.loads(row.tobytes()) for row in rows(padded)]  # the end of a pickle is marked in it


def wait(where: str) -> None:
    """Returns when every host is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)


def check(cfg: Config, training: Mesh, sampling: Mesh) -> None:
    """Each host must hold whole rows of every batch, and as many as the others.

    Raises:
      ConfigError: a batch does not part evenly; the message names the setting.
    """
    hosts = jax.process_count()
    if hosts == 1:
        return
    rows = training.devices.reshape(-1, training.shape["tensor"])
    if any(len({device.process_index for device in row}) > 1 for row in rows):
        raise ConfigError(
            f"config.mesh.tensor={training.shape['tensor']} reaches over several hosts: a row must stay on one of them."
        )
    sampled = sampling.devices.reshape(-1, sampling.shape["tensor"])
    for name, size, parts in (
        ("cold_start.databases", cfg.cold_start.databases, hosts),
        ("cold_start.rows.per_microbatch", cfg.cold_start.rows.per_microbatch * hosts, len(rows)),
        ("grpo.rows.per_microbatch", cfg.grpo.rows.per_microbatch * hosts, len(rows)),
        ("grpo.prompts", cfg.grpo.prompts, len(sampled)),
        ("evaluate.prompts", cfg.evaluate.prompts, len(sampled)),
    ):
        if size % parts:
            whole = f", {size} on {hosts} hosts," if name.endswith("per_microbatch") else ""
            raise ConfigError(
                f"config.{name} is {size // hosts if whole else size}{whole} and does not part into {parts} equal "
                f"shares, one for each {'host' if parts == hosts else 'row of the mesh'}: choose a multiple."
            )
