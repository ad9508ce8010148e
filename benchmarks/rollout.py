"""Benchmark of sampling in useful tokens per second: our engine, `naive`, Tunix's sampler and transformers' generate.

    python benchmarks/rollout.py --workload=w1 --peers=naive,tunix,transformers --json

`w1`: 8 prompts of 512 tokens × 8 samples of 16–128 new tokens, a Qwen2 shape with 14.5 million random weights.
`w1-0.5b`: the shape of Qwen2.5-Coder-0.5B, 1 prompt × 8 samples. The length of each sample is drawn in advance and is
the same for every engine; tokens that an engine generates past it do not count. `naive` is our engine with each prompt
repeated for each sample. Temperature is 1 without truncation; float32 on CPU, bfloat16 with --platform=gpu. Prints a
table and, with --json, one line (docs/performance.md describes its fields).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import measure
import shapes
import weights

PEERS = ("naive", "tunix", "transformers")
SEQUENTIAL = ("w1-0.5b",)  # too large for the engines to be in memory at the same time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="w1", choices=shapes.ROLLOUT)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"comma-separated, from {', '.join(PEERS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    args = parser.parse_args()
    work = shapes.ROLLOUT[args.workload]
    engines = ["ours", *measure.parse_peers(args.peers, PEERS)]
    together = args.workload not in SEQUENTIAL
    with weights.saved_weights(work.model) as folder:
        job: dict[str, Any] = {
            "task": "rollout", "weights": folder, "platform": args.platform, "workload": shapes.as_json(work),
        }  # fmt: skip
        measured = measure.run_interleaved({name: job | {"engine": name} for name in engines}, args.repeats, together)
    about = {"device": measure.describe_machine(args.platform), "interleaved": together, "shape": shapes.as_json(work)}
    result = measure.build_result("rollout", args.workload, measured, shapes.rollout_floor(work), about)
    print(measure.table(result))
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
