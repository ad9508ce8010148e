"""Descriptions of TPU slices, to compile for them on a machine without TPUs."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import flops

GIB = 2**30
# GiB of HBM that a program may use on one chip, from the compiler's message when it refuses a program.
USABLE_GIB = {"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
# The machine types with eight chips; all others have four. libtpu assumes four.
_EIGHT_CHIP_HOSTS = ("v5e:2x4", "v6e:2x4")
# libtpu reads these when it is loaded; values that are already in the environment take precedence.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # a machine that is not a TPU host has no metadata server
    # On a TPU host, libtpu would read these two from the metadata server.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes may compile at the same time
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice to compile for."""

    name: str  # as in v5e:4x4
    devices: Sequence[Any]  # abstract, of jax.experimental.topologies
    hosts: int
    hbm: int  # usable bytes on one chip

    def seconds(self, model_flops: float) -> float:
        """Seconds that all chips together take for that many FLOPs at the vendor's peak rate."""
        return model_flops / (flops.peak_flops(self.devices[0]) * len(self.devices))


def describe(name: str) -> Topology:
    """The topology with a name like v5e:4x4. Afterwards this process computes only on CPU.

    Raises:
      ConfigError: libtpu does not know the topology, or is not installed.
    """
    generation = name.partition(":")[0]
    if generation not in USABLE_GIB:
        raise ConfigError(f"--topology={name}: takes one of {', '.join(USABLE_GIB)} with a shape, as in v5e:4x4.")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("plan compiles with libtpu, which is not installed. Run pip install -e '.[tpu]'.")
    jax.config.update("jax_platforms", "cpu")
    for variable, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {}
    if generation in ("v4", "v5p"):
        options["chip_config_name"] = "megacore"  # the two cores of a chip are one device
    if name in _EIGHT_CHIP_HOSTS:
        options["chips_per_host_bounds"] = (2, 4, 1)
    try:
        devices: list[Any] = list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except Exception as error:
        raise ConfigError(f"--topology={name}: {str(error).splitlines()[0]}") from error
    return Topology(name, devices, collectives.count_processes(devices), int(USABLE_GIB[generation] * GIB))
