"""One engine in a process of its own: reads `run`, `matmul` and `rest`, answers each with a line of JSON.

    python benchmarks/worker.py '{"engine": "ours", "task": "rollout", …}'

Started by measure.py. What libraries print goes to the error stream.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

import measure
import shapes

from sqlr1_jax import malloc

PEERS = ("tunix", "transformers", "trl")
MODULES = {"ours": "ours", "naive": "ours"} | {name: f"peers.{name}" for name in PEERS}


def serve(job: dict[str, Any], output: Any) -> None:
    """Answers requests until the input ends."""

    def answer(facts: measure.Facts) -> None:
        output.write(json.dumps(facts) + "\n")
        output.flush()

    work = shapes.Workload(**job["workload"])
    try:
        run = getattr(importlib.import_module(MODULES[job["engine"]]), job["task"])(job, work)
    except ImportError as error:
        answer({"absent": str(error)})
        return
    measure.trim_heap()  # else runs would reuse what loading freed, and the peak would not show it
    held = measure.Memory()
    answer({"tokens": work.tokens, "prompts": work.prompts, "samples": work.samples})
    for request in sys.stdin:
        if request.strip() == "matmul":
            answer({"flops": measure.matmul_rate(job["platform"])})
            continue
        if request.strip() == "rest":
            measure.trim_heap()
            answer({})
            continue

        def timed() -> measure.Facts:
            begin, spent = time.perf_counter(), time.process_time()
            facts = run()
            return {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - spent, **facts}

        facts, peak = held.during(timed)
        answer({"peak_bytes": peak, **facts})  # an engine on a GPU tells its own


def main() -> None:
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    malloc.tune_malloc()
    try:
        serve(json.loads(sys.argv[1]), output)
    except Exception as error:
        traceback.print_exc()
        output.write(json.dumps({"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}) + "\n")
        output.flush()


if __name__ == "__main__":
    main()
