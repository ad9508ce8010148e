"""Compiles a GRPO step's programs for a topology and reports the memory that each needs."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from sqlr1_jax.aot.programs import StepPrograms
from sqlr1_jax.aot.topology import Topology
from sqlr1_jax.config import Config
from sqlr1_jax.errors import ConfigError

log = logging.getLogger(__name__)
HEADROOM = 0.05  # share of a chip's memory that must stay free


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """Memory and compute of one program, from the compiler. Bytes are of one chip."""

    peak: int  # bytes; for a refused program, the number in the compiler's message, or 0
    arguments: int = 0  # bytes of inputs and resident arrays
    temporaries: int = 0  # bytes
    host: int = 0  # bytes offloaded to the host's memory
    offloads: bool = False  # whether the config asks for offloading (remat=offload)
    flops: float = 0.0  # on all chips, by formula (model/flops.py); not the compiler's figure
    compile_seconds: float = 0.0
    refused: str = ""  # the compiler's message, if the program needs too much memory to compile

    def fits(self, hbm: int) -> bool:
        """Whether a chip with `hbm` bytes runs it with HEADROOM free, and offloads only if the config asks for it."""
        return not self.refused and (self.offloads or not self.host) and self.peak <= (1 - HEADROOM) * hbm


def compile_program(step: StepPrograms, name: str) -> ProgramReport:
    """Compiles one of the step's programs, by its name in `step.names`.

    Raises:
      RuntimeError: the compiler failed for a reason other than memory.
    """
    start = time.perf_counter()
    try:
        program = getattr(step, name)
        memory = program.compiled.memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        return _refused(str(error), time.perf_counter() - start)
    return ProgramReport(
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        host=memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
        offloads=step.model_config.remat == "offload",
        flops=program.flops,
        compile_seconds=time.perf_counter() - start,
    )


def _refused(message: str, seconds: float) -> ProgramReport:
    """The report of a program that needs too much memory.

    Raises:
      RuntimeError: the message is about something else.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        raise RuntimeError(message)
    # Two forms: "Used 16.50G of 15.75G hbm" and "the total memory required … (1.76T) exceeds available HBM".
    used = re.search(r"(?:Used |\()([\d.]+)([KMGT])i?B?\)?(?: of| exceeds)", message)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    peak = int(float(used[1]) * scale[used[2]]) if used else 0
    return ProgramReport(peak, compile_seconds=seconds, refused=message.splitlines()[0])


def compile_step(config: Config, topology: Topology, names: Sequence[str] = ()) -> dict[str, Any]:
    """Compiles the programs of a config's GRPO step, or only those in `names`.

    Returns:
      The report as a JSON object; docs/plan.md lists its fields.

    Raises:
      ConfigError: the mesh does not fit the topology, a batch does not divide among its hosts, or a name is unknown.
      RuntimeError: the compiler failed for a reason other than memory.
    """
    step = StepPrograms(config, topology.devices)
    if unknown := set(names) - set(step.names):
        raise ConfigError(f"--programs={','.join(sorted(unknown))}: there are {', '.join(step.names)}.")
    reports = {}
    for name in names or step.names:
        log.info("compiling %s …", name)
        reports[name] = compile_program(step, name)
    records = {
        name: dataclasses.asdict(report)
        | {
            "arithmetic_seconds": topology.seconds(report.flops),
            "compile_seconds": round(report.compile_seconds, 1),
            "fits": report.fits(topology.hbm),
        }
        for name, report in reports.items()
    }
    highest_peak = max(report.peak for report in reports.values())
    rows = {"microbatches": step.microbatches, "rows": step.microbatch_rows, "tokens": step.row_tokens}
    return {
        "topology": topology.name,
        "chips": len(topology.devices),
        "hosts": topology.hosts,
        "model": config.model.size,
        "training": "full fine-tuning",
        "mesh": dict(step.mesh.shape),
        "prompts": step.prompts,
        "samples": step.row_layout.segments,
        "rows": rows,
        "programs": records,
        "hbm": topology.hbm,
        "headroom": round(1 - highest_peak / topology.hbm, 4),
        "fits": all(report.fits(topology.hbm) for report in reports.values()),
    }
