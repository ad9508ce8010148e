"""A GRPO update, in useful tokens a second: shared-prompt rows, our own naive rows, TRL's step and Tunix's.

    python benchmarks/update.py --workload=w3 --peers=naive,trl,tunix --json
    python benchmarks/update.py --workload=w3 --groups=8 --peers=naive --repeats=1

`w3`: one group of a 2304-token prompt and 8 completions of 600 tokens, a Qwen2 shape of 14.5 million random weights;
loss, gradient and one optimizer step. Useful tokens are those of completions. Ours takes one group a microbatch;
`naive` is the same code on rows of one completion, each with the prompt before it. Tunix does not fit 8 completions of
this length in 32 GB: it is measured on 2 (`tunix` and, beside it, `ours_at_2`) and its useful tokens a second are set
against ours. Float32 on CPU; bfloat16 with --platform=gpu. Also told: how far the naive path's gradient is from ours,
‖Δg‖ / ‖g‖, and the bytes of temporaries that XLA asks for.
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
TUNIX_SAMPLES = 2  # all that fits


def jobs(work: Workload, peers: list[str], base: dict[str, Any], options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What each engine is asked to do; where Tunix takes fewer samples, ours is measured on as many too."""
    fewer = dataclasses.replace(work, samples=min(work.samples, TUNIX_SAMPLES))
    made = {}
    for name in ["ours", *peers]:
        own = fewer if name == "tunix" else work
        made[name] = base | {"engine": name, "workload": shapes.as_json(own)} | options.get(name, {})
    if "tunix" in peers and fewer != work:
        made["ours_at_2"] = made["ours"] | {"workload": shapes.as_json(fewer), "gradient": ""}
    return made


def gradient_distance(folder: Path) -> float | None:
    """‖naive − ours‖ / ‖naive‖, where both were written."""
    paths = [folder / f"{name}.npy" for name in ("ours", "naive")]
    if not all(path.exists() for path in paths):
        return None
    ours, naive = map(np.load, paths)
    return float(np.linalg.norm(naive - ours) / np.linalg.norm(naive))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="w3", choices=shapes.UPDATE)
    parser.add_argument("--groups", type=int, default=1, help="prompts, each a microbatch of ours")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-microbatch", type=int, default=1, help="rows")
    parser.add_argument("--trl-microbatch", type=int, default=1, help="rows")
    parser.add_argument("--ours", default='{"query_chunk": 128}', help="settings of ours and naive's model, JSON")
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    args = parser.parse_args()
    work = dataclasses.replace(shapes.UPDATE[args.workload], prompts=args.groups)
    peers = measure.names(args.peers, PEERS)
    with weights.written(work.model) as folder, tempfile.TemporaryDirectory() as written:
        base = {"task": "update", "weights": folder, "platform": args.platform, "model": json.loads(args.ours)}
        options: dict[str, dict[str, Any]] = {
            "ours": {"gradient": f"{written}/ours.npy"},
            "naive": {"gradient": f"{written}/naive.npy", "microbatch": args.naive_microbatch},
            "trl": {"microbatch": args.trl_microbatch},
        }
        measured = measure.in_turns(jobs(work, peers, base, options), args.repeats, together=True)
        distance = gradient_distance(Path(written))
    about = {"device": measure.machine(args.platform), "groups": args.groups, "shape": shapes.as_json(work)}
    result = measure.line("update", args.workload, measured, shapes.update_floor(work), about)
    result["gradient_distance"] = distance
    print(measure.table(result))
    print(f"gradient of naive against ours: {distance}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
