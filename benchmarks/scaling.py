"""Benchmark of how the cost of sampling and of an update grows with prompt, completion and number of samples.

    python benchmarks/scaling.py --plot=docs/scaling.svg --json

The cells are the corners and the middle of prompt 256–4096 × completion 64–2048 × samples 1–64, with one prompt each.
The model is `small` of shapes.py, with which the table takes minutes. Each cell has its seconds (the best of its
repeats) and its floor fraction: the floor of its arithmetic (shapes.py) divided by the seconds. Prints a Markdown
table. --plot draws seconds against the floor and needs matplotlib (extra `bench`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import ours
import shapes
import weights
from shapes import Workload

from sqlr1_jax import malloc

PROMPTS, COMPLETIONS, SAMPLES = (256, 1024, 4096), (64, 512, 2048), (1, 8, 64)
FLOORS = {"rollout": shapes.rollout_floor, "update": shapes.update_floor}
QUERY_CHUNK = 128  # queries attended to at a time; bounds the attention scores in memory


def cells(model: str = "small") -> list[Workload]:
    """The corners and the middle of the grid, least arithmetic first."""
    ends = [(axis[0], axis[-1]) for axis in (PROMPTS, COMPLETIONS, SAMPLES)]
    sizes = [*itertools.product(*ends), tuple(axis[1] for axis in (PROMPTS, COMPLETIONS, SAMPLES))]
    workloads = [Workload(model, 1, g, s, t, t) for s, t, g in sizes]
    return sorted(workloads, key=shapes.update_floor)


def time_repeats(run: Callable[[], Any], repeats: int, limit_seconds: float) -> list[float]:
    """Seconds of each repeat, after one run to compile. No repeat starts after `limit_seconds` in total."""
    run()
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or sum(seconds) < limit_seconds):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure_cell(work: Workload, folder: str, repeats: int, flops_per_second: float) -> dict[str, Any]:
    """Measures sampling and the update of one cell.

    Args:
      work: the cell.
      folder: with the model's weights.
      repeats: runs after the one that compiles.
      flops_per_second: the machine's matmul rate, by which the floor becomes seconds.
    """
    row: dict[str, Any] = {"prompt": work.prompt, "completion": work.longest, "samples": work.samples}
    job = {"engine": "ours", "platform": "cpu", "weights": folder, "model": {"query_chunk": QUERY_CHUNK}}
    for task, floor in FLOORS.items():
        seconds = time_repeats(getattr(ours, task)(job, work), repeats, 10.0)
        row[task] = {"seconds": seconds, "floor_seconds": floor(work) / flops_per_second}
        row[task]["floor_fraction"] = floor(work) / flops_per_second / min(seconds)
    measure.log_progress("cell", row)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The cells as a Markdown table."""
    headers = ("prompt", "completion", "samples", "rollout s", "of floor", "update s", "of floor")
    lines = [f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
    for row in rows:
        cells_of_tasks = [f"{min(row[task]['seconds']):.3g} | {row[task]['floor_fraction']:.2f}" for task in FLOORS]
        lines.append(f"| {row['prompt']} | {row['completion']} | {row['samples']} | {' | '.join(cells_of_tasks)} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws measured seconds against the floor on log scales; on a line of slope 1, cost grows as the floor does."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for task, marker in zip(FLOORS, "os", strict=True):
        floors = [row[task]["floor_seconds"] for row in rows]
        axes.scatter(floors, [min(row[task]["seconds"]) for row in rows], marker=marker, label=task)
    ends = [min(row["rollout"]["floor_seconds"] for row in rows), max(row["update"]["floor_seconds"] for row in rows)]
    axes.plot(ends, ends, color="grey", linewidth=1, label="floor")
    axes.set(xscale="log", yscale="log", xlabel="floor (least arithmetic), seconds", ylabel="measured, seconds")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=shapes.MODELS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="file for the plot")
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    args = parser.parse_args()
    malloc.tune_malloc()
    with weights.saved_weights(args.model) as folder:
        rates: list[float] = []
        rows = []
        for work in cells(args.model):
            rates.append(measure.matmul_rate("cpu"))
            rows.append(measure_cell(work, folder, args.repeats, rates[-1]))
    print(table(rows))
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        about = {"device": measure.describe_machine("cpu"), "matmul_flops": statistics.median(rates)}
        print(json.dumps({"benchmark": "scaling", "workload": args.model, **about, "cells": rows}))


if __name__ == "__main__":
    main()
