"""Sampling, in useful tokens a second: our engine, our own naive path, Tunix's sampler and transformers' generate.

    python benchmarks/rollout.py --workload=w1 --peers=naive,tunix,transformers --json

`w1`: 8 prompts of 512 tokens × 8 samples of 16–128 new tokens, a Qwen2 shape of 14.5 million random weights.
`w1-0.5b`: the shape of Qwen2.5-Coder-0.5B, 1 prompt × 8. Every sample's length is planned beforehand, the same for
all; what an engine makes past it does not count. `naive` is our engine with each prompt repeated as often as it is
sampled. Temperature 1 and no truncation everywhere; float32 on CPU, bfloat16 with --platform=gpu. Prints a table and,
with --json, one line (docs/performance.md says what is in it).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import measure
import shapes
import weights

PEERS = ("naive", "tunix", "transformers")
APART = ("w1-0.5b",)  # too large to stay in memory four times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="w1", choices=shapes.ROLLOUT)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    args = parser.parse_args()
    work = shapes.ROLLOUT[args.workload]
    engines = ["ours", *measure.names(args.peers, PEERS)]
    together = args.workload not in APART
    with weights.written(work.model) as folder:
        job: dict[str, Any] = {
            "task": "rollout", "weights": folder, "platform": args.platform, "workload": shapes.as_json(work),
        }  # fmt: skip
        measured = measure.in_turns({name: job | {"engine": name} for name in engines}, args.repeats, together)
    about = {"device": measure.machine(args.platform), "interleaved": together, "shape": shapes.as_json(work)}
    result = measure.line("rollout", args.workload, measured, shapes.rollout_floor(work), about)
    print(measure.table(result))
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
