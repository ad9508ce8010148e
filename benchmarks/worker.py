"""Worker process of one engine: reads the requests `run`, `matmul` and `rest`, and answers each with a line of JSON.

    python benchmarks/worker.py '{"engine": "ours", "task": "rollout", …}'

measure.py starts it. Output of libraries goes to the error stream.
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
    """Loads the engine of `job`, then answers requests until the input ends."""

    def answer(facts: measure.Facts) -> None:
        output.write(json.dumps(facts) + "\n")
        output.flush()

    work = shapes.Workload(**job["workload"])
    try:
        run = getattr(importlib.import_module(MODULES[job["engine"]]), job["task"])(job, work)
    except ImportError as error:
        answer({"absent": str(error)})
        return
    malloc.trim_heap()  # otherwise a run could reuse memory that loading freed, and the peak would not show it
    memory = measure.PeakMemory()
    answer({"tokens": work.tokens, "prompts": work.prompts, "samples": work.samples})
    for request in sys.stdin:
        if request.strip() == "matmul":
            answer({"flops": measure.matmul_rate(job["platform"])})
            continue
        if request.strip() == "rest":
            malloc.trim_heap()
            answer({})
            continue

        def timed() -> measure.Facts:
            wall_start, processor_start = time.perf_counter(), time.process_time()
            facts = run()
            wall, processor = time.perf_counter() - wall_start, time.process_time() - processor_start
            return {"seconds": wall, "cpu_seconds": processor, **facts}

        facts, peak = memory.measure(timed)
        answer({"peak_bytes": peak, **facts})  # an engine on a GPU reports the device's peak instead


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
