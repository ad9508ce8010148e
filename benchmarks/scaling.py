"""How the cost of sampling and of an update grows with the prompt, the completion and the number of samples.

    python benchmarks/scaling.py --plot=docs/scaling.svg --json

The corners of prompt 256–4096 × completion 64–2048 × samples 1–64 and the diagonal between them, on a model small
enough for minutes (`small` of shapes.py), one prompt each. Of every cell: seconds (the best of its repeats), and the
fraction that the floor of its arithmetic is of them (shapes.py). Prints a Markdown table; --plot draws seconds over the
floor, which matplotlib (extra `bench`) is needed for.
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
QUERY_CHUNK = 128  # bounds the scores of the largest cell


def cells(model: str = "small") -> list[Workload]:
    """The corners, and the middle that makes them a diagonal, smallest first."""
    ends = [(axis[0], axis[-1]) for axis in (PROMPTS, COMPLETIONS, SAMPLES)]
    sizes = [*itertools.product(*ends), tuple(axis[1] for axis in (PROMPTS, COMPLETIONS, SAMPLES))]
    made = [Workload(model, 1, g, s, t, t) for s, t, g in sizes]
    return sorted(made, key=shapes.update_floor)


def timed(run: Callable[[], Any], repeats: int, patience: float) -> list[float]:
    """Seconds of each repeat after one to compile; a cell that takes more than `patience` is not repeated."""
    run()
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or sum(seconds) < patience):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return seconds


def cell(work: Workload, folder: str, repeats: int, rate: float) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"prompt": work.prompt, "completion": work.longest, "samples": work.samples}
    job = {"engine": "ours", "platform": "cpu", "weights": folder, "model": {"query_chunk": QUERY_CHUNK}}
    for task, floor in FLOORS.items():
        seconds = timed(getattr(ours, task)(job, work), repeats, 10.0)
        row[task] = {"seconds": seconds, "floor_seconds": floor(work) / rate}
        row[task]["floor_fraction"] = floor(work) / rate / min(seconds)
    measure.say("cell", row)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    heads = ("prompt", "completion", "samples", "rollout s", "of floor", "update s", "of floor")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        parts = [f"{min(row[task]['seconds']):.3g} | {row[task]['floor_fraction']:.2f}" for task in FLOORS]
        lines.append(f"| {row['prompt']} | {row['completion']} | {row['samples']} | {' | '.join(parts)} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds over the floor's, both logarithmic; along a line of slope 1 cost grows as the floor does."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for task, mark in zip(FLOORS, "os", strict=True):
        floors = [row[task]["floor_seconds"] for row in rows]
        axes.scatter(floors, [min(row[task]["seconds"]) for row in rows], marker=mark, label=task)
    ends = [min(row["rollout"]["floor_seconds"] for row in rows), max(row["update"]["floor_seconds"] for row in rows)]
    axes.plot(ends, ends, color="grey", linewidth=1, label="floor")
    axes.set(xscale="log", yscale="log", xlabel="floor: least arithmetic, seconds", ylabel="measured, seconds")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=shapes.MODELS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    args = parser.parse_args()
    malloc.tune_malloc()
    with weights.written(args.model) as folder:
        rates: list[float] = []
        rows = []
        for work in cells(args.model):
            rates.append(measure.matmul_rate("cpu"))
            rows.append(cell(work, folder, args.repeats, rates[-1]))
    print(table(rows))
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        about = {"device": measure.machine("cpu"), "matmul_flops": statistics.median(rates)}
        print(json.dumps({"benchmark": "scaling", "workload": args.model, **about, "cells": rows}))


if __name__ == "__main__":
    main()
