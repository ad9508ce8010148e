"""Where a whole GRPO step's time goes, from the metrics of a real run.

    python benchmarks/step.py --workdir=runs/first --json     # a run that is there
    python benchmarks/step.py --size=smoke --steps=12 --json  # a short one of its own: data, cold start, GRPO

The parts follow each other in a step and are given as fractions of it: `rollout` (the sampler's copy of the weights
made anew, sampling, SQL handed over as samples end), `pack`, `reward_wait` (what SQL and rewards still take when
sampling and packing are done), `update` (log-probabilities of the reference, loss, gradient, optimizer), and `rest`.
`execute` is how long SQL was at work beside them. The host goes on while the device is still at the update, so what is
left of an update counts to the next `rollout`.
The first steps compile and are left out; evaluations and checkpoints stand between steps and are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure

from sqlr1_jax.train import metrics

PARTS = ("rollout", "pack", "reward_wait", "update")


def fractions(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Each part's share of the steps' time, the rest's, and beside them that of `execute`."""
    total = sum(line["time/step"] for line in lines)
    shares = {name: sum(line.get(f"time/{name}", 0.0) for line in lines) / total for name in PARTS}
    beside = sum(line.get("time/execute", 0.0) for line in lines) / total
    return shares | {"rest": 1 - sum(shares.values()), "execute": beside}


def result(name: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The benchmark's line; seconds are those of each step."""
    seconds = [line["time/step"] for line in lines]
    return {
        "benchmark": "step",
        "workload": name,
        "device": measure.machine("cpu"),
        "ours": {"seconds": seconds, "tokens": int(sum(line["tokens"] for line in lines))},
        "peers": {},
        "ratio": {},
        "fractions": fractions(lines),
        "steps_per_minute": 60 / statistics.median(seconds),
    }


def run(size: str, steps: int, workdir: Path, more: Sequence[str]) -> None:
    """A run of `size` with so many steps of GRPO, nothing evaluated."""
    command = [sys.executable, "-m", "sqlr1_jax.main", f"--config=configs/grpo.py:{size}", f"--workdir={workdir}"]
    command += ["--config.stages=('data','sft','grpo')", f"--config.grpo.steps={steps}"]
    command += ["--config.evaluate.every=0", *more]
    root = measure.HERE.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run(command, check=True, cwd=root, env=environment, stdout=sys.stderr)


def steps_of(workdir: Path, skip: int) -> list[dict[str, Any]]:
    """GRPO's lines but for the first `skip`; ends the process where none is left."""
    lines = [line for line in metrics.read_metrics(workdir / "metrics.jsonl") if line["stage"] == "grpo"]
    if len(lines) <= skip:
        sys.exit(f"error: {workdir} has {len(lines)} steps of GRPO, and {skip} are left out; give it more.")
    return lines[skip:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="a finished run")
    parser.add_argument("--size", default="smoke", help="of configs/grpo.py, for a run of its own")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip", type=int, default=2, help="first steps to leave out")
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    args, more = parser.parse_known_args()
    if args.workdir:
        lines, name = steps_of(args.workdir, args.skip), args.workdir.name
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(args.size, args.steps, Path(folder), more)
            lines, name = steps_of(Path(folder), args.skip), args.size
    made = result(name, lines)
    print("| part | of a step |\n|---|---|")
    print("\n".join(f"| {part} | {share:.1%} |" for part, share in made["fractions"].items()))
    print(f"\n{made['steps_per_minute']:.1f} steps a minute, {len(lines)} steps")
    if args.json:
        print(json.dumps(made))


if __name__ == "__main__":
    main()
