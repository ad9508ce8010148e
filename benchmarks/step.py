"""Breakdown of the time of a whole GRPO step, from the metrics of a run.

    python benchmarks/step.py --workdir=runs/first --json     # a finished run
    python benchmarks/step.py --size=smoke --steps=12 --json  # a new short run: data, cold start, GRPO

Also says how many useful groups a minute gives: groups that were trained on. To compare settings, such as grpo.refill,
make one cold start and give each run its weights (docs/performance.md).

The phases of a step are sequential and are given as fractions of its time: `rollout` (copy of the weights for the
sampler, sampling, and submission of SQL when a sample ends), `pack`, `reward_wait` (waiting for SQL and rewards after
packing), `update` (log-probabilities of the reference, loss, gradient, optimizer) and `rest`. `execute` is the time in
which SQL ran; it overlaps the phases. The host continues while the device still computes the update, so the remainder
of an update counts as the next `rollout`. The first steps compile and are left out. Evaluations and checkpoints run
between steps and are not counted.
"""

from __future__ import annotations

import argparse
import json
import math
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

PHASES = ("rollout", "pack", "reward_wait", "update")


def fractions(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Fractions of the steps' time in the phases and `rest`, which sum to 1, and in `execute`, which overlaps them."""
    total = sum(line["time/step"] for line in lines)
    shares = {name: sum(line.get(f"time/{name}", 0.0) for line in lines) / total for name in PHASES}
    execute = sum(line.get("time/execute", 0.0) for line in lines) / total
    return shares | {"rest": 1 - sum(shares.values()), "execute": execute}


def build_result(name: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The benchmark's JSON line; `seconds` has one value per step."""
    seconds = [line["time/step"] for line in lines]
    return {
        "benchmark": "step",
        "workload": name,
        "device": measure.describe_machine("cpu"),
        "ours": {"seconds": seconds, "tokens": int(sum(line["tokens"] for line in lines))},
        "peers": {},
        "ratio": {},
        "fractions": fractions(lines),
        "steps_per_minute": 60 / statistics.median(seconds),
        # nan: the run is of a version that did not count them.
        "useful_groups_per_minute": 60 * sum(line.get("groups/trained", math.nan) for line in lines) / sum(seconds),
        "rounds_per_step": statistics.fmean(line.get("groups/rounds", math.nan) for line in lines),
    }


def run(size: str, steps: int, workdir: Path, more: Sequence[str]) -> None:
    """Runs data, cold start and `steps` of GRPO at `size` of configs/grpo.py, without evaluation."""
    command = [sys.executable, "-m", "sqlr1_jax.main", f"--config=configs/grpo.py:{size}", f"--workdir={workdir}"]
    command += ["--config.stages=('data','sft','grpo')", f"--config.grpo.steps={steps}"]
    command += ["--config.evaluate.every=0", *more]
    root = measure.HERE.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run(command, check=True, cwd=root, env=environment, stdout=sys.stderr)


def read_steps(workdir: Path, skip: int) -> list[dict[str, Any]]:
    """Metric lines of the GRPO steps after the first `skip`; ends the process with an error if there are none."""
    lines = [line for line in metrics.read_metrics(workdir / "metrics.jsonl") if line["stage"] == "grpo"]
    if len(lines) <= skip:
        counts = f"{len(lines)} steps of GRPO, and the first {skip} are left out"
        sys.exit(f"error: {workdir} has {counts}. Lower --skip or run more steps.")
    return lines[skip:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="folder of a finished run")
    parser.add_argument("--size", default="smoke", help="size in configs/grpo.py, for a new run")
    parser.add_argument("--steps", type=int, default=12, help="GRPO steps of a new run")
    parser.add_argument("--skip", type=int, default=2, help="first steps to leave out")
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    args, more = parser.parse_known_args()
    if args.workdir:
        lines, name = read_steps(args.workdir, args.skip), args.workdir.name
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(args.size, args.steps, Path(folder), more)
            lines, name = read_steps(Path(folder), args.skip), args.size
    result = build_result(name, lines)
    print("| phase | fraction of a step |\n|---|---|")
    print("\n".join(f"| {phase} | {share:.1%} |" for phase, share in result["fractions"].items()))
    print(f"\n{result['steps_per_minute']:.1f} steps per minute, {len(lines)} steps")
    useful, rounds = result["useful_groups_per_minute"], result["rounds_per_step"]
    print(f"{useful:.1f} useful groups per minute, {rounds:.2f} rounds per step")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
