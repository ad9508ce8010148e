"""Benchmark of a GRPO update in useful tokens per second: shared-prefix rows, naive rows, TRL's step and Tunix's.

    python benchmarks/update.py --workload=w3 --peers=naive,trl,tunix --json
    python benchmarks/update.py --workload=w3 --groups=8 --peers=naive --repeats=1

`w3`: one group of a 2304-token prompt and 8 completions of 600 tokens, a Qwen2 shape with 14.5 million random weights.
One run is loss, gradient and one optimizer step. Useful tokens are completion tokens. Ours puts one group in a
microbatch; `naive` is the same code with one completion in a row, after its own copy of the prompt. Tunix does not fit
8 completions of this length in 32 GB. It is measured on 2 completions (`tunix`, and `ours_at_2` for the same work), and
the ratio compares its useful tokens per second with ours on 8. Float32 on CPU, bfloat16 with --platform=gpu. The result
also has the distance between the gradients of naive and ours, ‖Δg‖ / ‖g‖, and the bytes of XLA's temporaries.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np
import shapes
import weights
from shapes import Workload

PEERS = ("naive", "trl", "tunix")
TUNIX_SAMPLES = 2  # the most that fit in 32 GB


def build_jobs(
    work: Workload, peers: list[str], base: dict[str, Any], options: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The job of each engine by name. If Tunix runs fewer samples, `ours_at_2` measures ours on the same number.

    Args:
      work: the workload of all engines but Tunix.
      peers: names of the other engines.
      base: fields of every job.
      options: more fields by engine.
    """
    fewer = dataclasses.replace(work, samples=min(work.samples, TUNIX_SAMPLES))
    jobs = {}
    for name in ["ours", *peers]:
        workload = shapes.as_json(fewer if name == "tunix" else work)
        jobs[name] = base | {"engine": name, "workload": workload} | options.get(name, {})
    if "tunix" in peers and fewer != work:
        jobs["ours_at_2"] = jobs["ours"] | {"workload": shapes.as_json(fewer), "gradient": ""}
    return jobs


def gradient_distance(folder: Path) -> float | None:
    """‖naive − ours‖ / ‖naive‖ of the gradients in `folder`; None unless both files exist."""
    paths = [folder / f"{name}.npy" for name in ("ours", "naive")]
    if not all(path.exists() for path in paths):
        return None
    ours, naive = map(np.load, paths)
    return float(np.linalg.norm(naive - ours) / np.linalg.norm(naive))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="w3", choices=shapes.UPDATE)
    parser.add_argument("--groups", type=int, default=1, help="number of prompts; each group is one microbatch of ours")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"comma-separated, from {', '.join(PEERS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-microbatch", type=int, default=1, help="rows in a microbatch of naive")
    parser.add_argument("--trl-microbatch", type=int, default=1, help="rows in a microbatch of TRL")
    parser.add_argument("--ours", default='{"query_chunk": 128}', help="model settings of ours and naive, as JSON")
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    args = parser.parse_args()
    work = dataclasses.replace(shapes.UPDATE[args.workload], prompts=args.groups)
    peers = measure.parse_peers(args.peers, PEERS)
    with weights.saved_weights(work.model) as folder, tempfile.TemporaryDirectory() as gradients:
        base = {"task": "update", "weights": folder, "platform": args.platform, "model": json.loads(args.ours)}
        options: dict[str, dict[str, Any]] = {
            "ours": {"gradient": f"{gradients}/ours.npy"},
            "naive": {"gradient": f"{gradients}/naive.npy", "microbatch": args.naive_microbatch},
            "trl": {"microbatch": args.trl_microbatch},
        }
        measured = measure.run_interleaved(build_jobs(work, peers, base, options), args.repeats, together=True)
        distance = gradient_distance(Path(gradients))
    about = {"device": measure.describe_machine(args.platform), "groups": args.groups, "shape": shapes.as_json(work)}
    result = measure.build_result("update", args.workload, measured, shapes.update_floor(work), about)
    result["gradient_distance"] = distance
    print(measure.table(result))
    print(f"relative distance of the gradients of naive and ours: {distance}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
