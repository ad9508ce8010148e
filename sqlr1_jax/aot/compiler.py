"""Compiles a GRPO step's programs for a topology and reports what the compiler says of their memory."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from sqlr1_jax import config
from sqlr1_jax.aot.programs import StepPrograms
from sqlr1_jax.aot.topology import Topology
from sqlr1_jax.errors import ConfigError

log = logging.getLogger(__name__)
HEADROOM = 0.05  # share of a chip's memory that must stay free


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """What the compiler says of one program. Bytes are those of one chip."""

    peak: int
    arguments: int = 0
    temporaries: int = 0
    host: int = 0  # bytes offloaded to the host's memory
    offloads: bool = False  # whether the config asks for offloading
    flops: float = 0.0  # the model's, on all chips; not the compiler's figure
    compile_seconds: float = 0.0
    refused: str = ""  # the compiler's message, if the program needs too much memory to compile

    def fits(self, hbm: int) -> bool:
        """Whether a chip with `hbm` bytes can run it with HEADROOM to spare and nothing offloaded unasked."""
        return not self.refused and (self.offloads or not self.host) and self.peak <= (1 - HEADROOM) * hbm


def compile_program(step: StepPrograms, name: str) -> ProgramReport:
    """Compiles one of the step's programs.

    Raises:
      RuntimeError: the compiler failed for another reason than memory.
    """
    begin = time.perf_counter()
    try:
        program = getattr(step, name)
        memory = program.compiled.memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        return _refused(str(error), time.perf_counter() - begin)
    return ProgramReport(
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        host=memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
        offloads=step.model.remat == "offload",
        flops=program.flops,
        compile_seconds=time.perf_counter() - begin,
    )


def _refused(message: str, seconds: float) -> ProgramReport:
    """The report of a program that needs too much memory: the message says how much, in one of two forms."""
    if "RESOURCE_EXHAUSTED" not in message:
        raise RuntimeError(message)
    used = re.search(r"(?:Used |\()([\d.]+)([KMGT])i?B?\)?(?: of| exceeds)", message)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    peak = int(float(used[1]) * scale[used[2]]) if used else 0
    return ProgramReport(peak, compile_seconds=seconds, refused=message.splitlines()[0])


def compile_step(cfg: config.Config, topology: Topology, names: Sequence[str] = ()) -> dict[str, Any]:
    """Compiles the programs of a config's GRPO step, or those in `names`. The result can be written as JSON.

    Raises:
      ConfigError: the mesh does not fit the topology, or no program has such a name.
      RuntimeError: the compiler failed for another reason than memory.
    """
    step = StepPrograms(cfg, topology.devices, topology.hosts)
    if unknown := set(names) - set(step.names):
        raise ConfigError(f"--programs={','.join(sorted(unknown))}: there are {', '.join(step.names)}.")
    reports = {}
    for name in names or step.names:
        log.info("compiling %s …", name)
        reports[name] = compile_program(step, name)
    worst = max(report.peak for report in reports.values())
    rows = {"microbatches": step.microbatches, "rows": step.microbatch_rows, "tokens": step.row_tokens}
    return {
        "topology": topology.name,
        "chips": len(topology.devices),
        "hosts": topology.hosts,
        "model": cfg.model.size,
        "training": "full fine-tuning",
        "mesh": dict(step.mesh.shape),
        "prompts": step.prompts,
        "samples": step.row_layout.segments,
        "rows": rows,
        "repeated_rows": bool(step.microbatch_rows % (step.mesh.shape["replica"] * step.mesh.shape["fsdp"])),
        "programs": {name: _as_dict(report, topology) for name, report in reports.items()},
        "hbm": topology.hbm,
        "headroom": round(1 - worst / topology.hbm, 4),
        "fits": all(report.fits(topology.hbm) for report in reports.values()),
    }


def _as_dict(report: ProgramReport, topology: Topology) -> dict[str, Any]:
    return dataclasses.asdict(report) | {
        "arithmetic_seconds": topology.seconds(report.flops),
        "compile_seconds": round(report.compile_seconds, 1),
        "fits": report.fits(topology.hbm),
    }
