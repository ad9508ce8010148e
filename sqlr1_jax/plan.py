"""python -m sqlr1_jax.plan --config=configs/grpo.py:7b --topology=v5e:4x4: will it fit? Compiled here, never run.

Compiles for TPU chips that are not here, with the compiler that jax[tpu] brings, the very functions that training jits:
their inputs are shapes with layouts. Each program is handed, beside what it reads, every array that lives on the chips
while it runs (optimiser, reference model, sampler's weights), so that the compiler's peak is the chip's.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from sqlr1_jax import config, hlo, hosts
from sqlr1_jax.aot.programs import Step
from sqlr1_jax.model import flops

log = logging.getLogger(__name__)
# GiB of HBM that a program may use on one chip, as the compiler states it when it refuses one.
USABLE_GIB = {"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
BANDWIDTH = {"v4": 1.2e12, "v5e": 8.19e11, "v5p": 2.765e12, "v6e": 1.64e12}  # vendor's bytes a second of a chip's HBM
HEADROOM = 0.05
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chips:
    """A TPU slice that is not here."""

    topology: str
    devices: Sequence[Any]
    hosts: int
    hbm: int  # usable bytes a chip
    bandwidth: float  # of it, bytes a second

    def roofline(self, one: Compiled) -> dict[str, float]:
        """The least seconds that a program's arithmetic and its memory take, by the vendor's figures."""
        rate = flops.peak_flops(self.devices[0]) * len(self.devices)
        return {"arithmetic_seconds": one.flops / rate, "memory_seconds": one.memory_bytes / self.bandwidth}


@dataclasses.dataclass
class Compiled:
    """What the compiler says of a program; bytes are those of one chip."""

    peak: int
    arguments: int = 0
    temporaries: int = 0
    host: int = 0  # offloaded to the host's memory
    offloads: bool = False  # which the config asks for
    flops: float = 0.0
    memory_bytes: int = 0  # read from and written to HBM
    collective_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0
    refused: str = ""  # the compiler's reason, where it gave up

    def fits(self, hbm: int) -> bool:
        return not self.refused and (self.offloads or not self.host) and self.peak <= (1 - HEADROOM) * hbm


def describe(topology: str) -> Chips:
    """The chips that a name like v5e:4x4 stands for.

    Raises:
      config.ConfigError: no such topology, or no compiler for it here.
    """
    generation = topology.partition(":")[0]
    if generation not in USABLE_GIB:
        raise config.ConfigError(f"--topology={topology}: takes {', '.join(USABLE_GIB)} with a shape, as v5e:4x4.")
    if importlib.util.find_spec("libtpu") is None:
        raise config.ConfigError("plan compiles with libtpu, which is not here: pip install -e '.[tpu]'.")
    from jax.experimental import topologies

    _quiet()
    megacore = {"chip_config_name": "megacore"} if generation in ("v4", "v5p") else {}
    try:
        devices: list[Any] = list(topologies.get_topology_desc(topology, platform="tpu", **megacore).devices)
    except Exception as error:
        raise config.ConfigError(f"--topology={topology}: {str(error).splitlines()[0]}") from error
    return Chips(topology, devices, hosts.of(devices), int(USABLE_GIB[generation] * GIB), BANDWIDTH[generation])


def _quiet() -> None:
    """The machine is no TPU host: libtpu must not ask for one's metadata, complain, nor keep others from compiling."""
    jax.config.update("jax_platforms", "cpu")
    silence = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }
    nowhere = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    together = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in (silence | nowhere | together).items():
        os.environ.setdefault(name, value)


def compile_program(step: Step, name: str) -> Compiled:
    """Compiles one of a step's programs and reads what the compiler says of it."""
    begin = time.perf_counter()
    try:
        program = getattr(step, name)
        done = program.compiled
    except jax.errors.JaxRuntimeError as error:
        return _refused(str(error), time.perf_counter() - begin)
    seconds, memory, text = time.perf_counter() - begin, done.memory_analysis(), done.as_text()
    return Compiled(
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        host=memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
        offloads=step.model.remat == "offload",
        flops=program.flops,
        memory_bytes=hlo.memory_bytes(text, program.turns),
        collective_bytes=hlo.collective_bytes(text, program.turns),
        compile_seconds=seconds,
    )


def _refused(message: str, seconds: float) -> Compiled:
    """What a program would have used, from the error of a compiler that gave up.

    Raises:
      RuntimeError: it gave up for another reason than memory.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        raise RuntimeError(message)
    used = re.search(r"(?:Used |\()([\d.]+)([KMGT])i?B?\)?(?: of| exceeds)", message)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    peak = int(float(used[1]) * scale[used[2]]) if used else 0
    return Compiled(peak, compile_seconds=seconds, refused=message.splitlines()[0])


def report(cfg: config.Config, chips: Chips, names: Sequence[str] = ()) -> dict[str, Any]:
    """Compiles the programs of a config's GRPO step and says what they need; `names` picks some.

    Raises:
      config.ConfigError: the mesh does not suit the chips, or no program has such a name.
    """
    step = Step(cfg, chips.devices, chips.hosts)
    if unknown := set(names) - set(step.names):
        raise config.ConfigError(f"--programs={','.join(sorted(unknown))}: there are {', '.join(step.names)}.")
    compiled = {}
    for name in names or step.names:
        log.info("compiling %s …", name)
        compiled[name] = compile_program(step, name)
    worst = max(one.peak for one in compiled.values())
    return {
        "topology": chips.topology,
        "chips": len(chips.devices),
        "hosts": chips.hosts,
        "model": cfg.model.size,
        "training": "full fine-tuning",
        "mesh": dict(step.mesh.shape),
        "prompts": step.prompts,
        "samples": step.layout.segments,
        "rows": {"microbatches": step.microbatches, "rows": step.rows, "tokens": step.row_tokens},
        "repeated_rows": bool(step.rows % (step.mesh.shape["replica"] * step.mesh.shape["fsdp"])),
        "programs": {name: _as_dict(one, chips.hbm) | chips.roofline(one) for name, one in compiled.items()},
        "hbm": chips.hbm,
        "headroom": round(1 - worst / chips.hbm, 4),
        "fits": all(one.fits(chips.hbm) for one in compiled.values()),
    }


def _as_dict(one: Compiled, hbm: int) -> dict[str, Any]:
    by_kind = one.collective_bytes
    return dataclasses.asdict(one) | {
        "collective_bytes": sum(by_kind.values()),
        "collectives": by_kind,
        "compile_seconds": round(one.compile_seconds, 1),
        "fits": one.fits(hbm),
    }


def table(found: dict[str, Any]) -> str:
    """The report for a person."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    rows = found["rows"]
    lines = [
        f"{found['model']} on {found['topology']}: {found['chips']} chips of {found['hbm'] / GIB:.2f} GiB, mesh {mesh}",
        f"{found['training']}, the only kind for now; compiled, never run",
        f"a step: {found['prompts']} prompts × {found['samples']} samples; {rows['microbatches']} microbatches of "
        f"{rows['rows']} rows of {rows['tokens']} tokens",
        f"{'program':<9}{'peak GiB':>10}{'inputs':>9}{'temporary':>11}{'PFLOP':>9}{'compute s':>11}{'HBM GiB':>10}"
        f"{'HBM s':>11}{'moved GiB':>11}{'compiled s':>12}",
    ]
    for name, one in found["programs"].items():
        numbers = f"{one['peak'] / GIB:>10.2f}{one['arguments'] / GIB:>9.2f}{one['temporaries'] / GIB:>11.2f}"
        numbers += f"{one['flops'] / 1e15:>9.3f}{one['arithmetic_seconds']:>11.3f}{one['memory_bytes'] / GIB:>10.1f}"
        numbers += f"{one['memory_seconds']:>11.3f}{one['collective_bytes'] / GIB:>11.2f}"
        verdict = "fits" if one["fits"] else _why(one)
        lines.append(f"{name:<9}{numbers}{one['compile_seconds']:>12.0f}  {verdict}")
    if found["repeated_rows"]:
        lines.append(
            "note: a microbatch's rows don't divide among replica × fsdp, so chips repeat one another's work; "
            "set config.grpo.rows.per_microbatch (rows of one host) or the mesh."
        )
    verdict = "fits" if found["fits"] else "does not fit"
    lines.append(f"{verdict}: {found['headroom']:.1%} of HBM free at the peak, {HEADROOM:.0%} asked")
    return "\n".join(lines)


def _why(one: dict[str, Any]) -> str:
    if one["refused"]:
        return f"REFUSED: {one['refused']}"
    return "OFFLOADED to the host" if one["host"] and not one["offloads"] else "TOO LARGE"


def main(argv: list[str]) -> None:
    """Prints the table, or one JSON object; exits with 1 where the config does not fit."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}; settings are --config.NAME=VALUE")
    asked = flags.FLAGS
    try:
        found = report(config.freeze(asked.config), describe(asked.topology), asked.programs)
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(found) if asked.json else table(found))
    sys.exit(0 if found["fits"] else 1)


def _define_flags() -> None:
    """Not at import: other commands have a --config of their own, and tests import them all."""
    config_flags.DEFINE_config_file("config", None, "A config file, as in configs/grpo.py:7b.")
    flags.DEFINE_string("topology", None, "Chips, GENERATION:SHAPE, as in v5e:4x4 or v5p:2x2x4.")
    flags.DEFINE_list("programs", [], "Compile these alone; empty: all.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    flags.mark_flags_as_required(["config", "topology"])


if __name__ == "__main__":
    _define_flags()
    app.run(main)
