"""python -m sqlr1_jax.plan --config=configs/grpo.py:7b --topology=v5e:4x4: does the config fit the chips?

Compiles the programs of a GRPO step for TPUs that this machine does not have, with the compiler that jax[tpu] installs.
It runs none of them, and prints the memory that each takes on a chip. docs/plan.md is the reference.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from sqlr1_jax import config
from sqlr1_jax.aot import topology
from sqlr1_jax.aot.compiler import HEADROOM, compile_step
from sqlr1_jax.aot.topology import GIB
from sqlr1_jax.errors import exit_on_error


def table(report: dict[str, Any]) -> str:
    """The report of compile_step as a table with one line per program."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    rows, hbm = report["rows"], f"{report['hbm'] / GIB:.2f} GiB"
    lines = [
        f"{report['model']} on {report['topology']}: {report['chips']} chips of {hbm}, mesh {mesh}",
        f"{report['training']}, the only kind of training; compiled, not run",
        f"a step: {report['prompts']} prompts × {report['samples']} samples; {rows['microbatches']} microbatches of "
        f"{rows['rows']} rows of {rows['tokens']} tokens",
        f"{'program':<20}{'peak GiB':>10}{'inputs':>9}{'temporary':>11}{'PFLOP':>9}{'compute s':>11}{'compiled s':>12}",
        *(_program_line(name, program) for name, program in report["programs"].items()),
    ]
    rows_computed = rows["microbatches"] * rows["rows"]
    if report["prompts"] < rows_computed:
        lines.append(
            f"note: an update computes {rows_computed} rows for {report['prompts']} prompts; the others are empty. "
            f"config.grpo.prompts={rows_computed} fills them."
        )
    verdict = "fits" if report["fits"] else "does not fit"
    lines.append(f"{verdict}: {report['headroom']:.1%} of HBM free at the peak, {HEADROOM:.0%} required")
    return "\n".join(lines)


def _program_line(name: str, program: dict[str, Any]) -> str:
    peak, arguments, temporaries = (program[key] / GIB for key in ("peak", "arguments", "temporaries"))
    memory = f"{peak:>10.2f}{arguments:>9.2f}{temporaries:>11.2f}"
    time = f"{program['flops'] / 1e15:>9.3f}{program['arithmetic_seconds']:>11.3f}{program['compile_seconds']:>12.0f}"
    if program["fits"]:
        verdict = "fits"
    elif program["refused"]:
        verdict = f"REFUSED: {program['refused']}"
    else:
        verdict = "OFFLOADED to the host" if program["host"] and not program["offloads"] else "TOO LARGE"
    return f"{name:<20}{memory}{time}  {verdict}"


@exit_on_error()
def absl_main(argv: list[str]) -> None:
    """Prints the table, or one JSON object; exits with status 1 if the config does not fit."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}; settings are --config.NAME=VALUE", exitcode=2)
    args = flags.FLAGS
    report = compile_step(config.freeze(args.config), topology.describe(args.topology), args.programs)
    print(json.dumps(report) if args.json else table(report))
    sys.exit(0 if report["fits"] else 1)


def main() -> None:
    """Entry point of the command; parses sys.argv."""
    # Not at import, because other commands define --config too and tests import them all.
    config_flags.DEFINE_config_file("config", None, "Config file and preset, as in configs/grpo.py:7b.")
    flags.DEFINE_string("topology", None, "TPU slice, GENERATION:SHAPE, as in v5e:4x4 or v5p:2x2x4.")
    flags.DEFINE_list("programs", [], "Programs to compile; empty: all.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of the table.")
    flags.mark_flags_as_required(["config", "topology"])
    # absl's --help shows the docstring and flags of __main__, and a console script's __main__ has neither.
    sys.modules["__main__"].__doc__ = __doc__
    for name in ("config", "topology", "programs", "json"):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    app.run(absl_main)


if __name__ == "__main__":
    main()
