"""Interleaved measurement of engines. Each engine has its own warm process, and one process runs at a time.

A worker loads the weights and runs once to compile. It returns its freed memory to the system while another worker
runs. Its next turn therefore starts with UNTIMED warm-up runs, which allocate that memory again; a single engine needs
them only in its first turn. Two runs are needed because glibc may allocate two blocks for a program's temporaries
before it reuses them.

Separate processes keep the thread pools of XLA and torch apart, and each engine's peak memory can be read by itself.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Facts = dict[str, Any]
UNTIMED = 2  # warm-up runs at the start of a turn


class Worker:
    """A child process of benchmarks/worker.py, which runs one engine on request.

    Attributes:
      facts: what is known of the engine. It has `absent` if the engine is not installed and `failed` if it died.
    """

    def __init__(self, job: Mapping[str, Any]):
        self.facts: Facts = {}
        path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        if job["platform"] == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        else:
            environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.facts = self._read_answer()

    @property
    def usable(self) -> bool:
        """Whether the engine is installed and alive."""
        return not {"absent", "failed"} & set(self.facts)

    def request(self, command: str) -> Facts:
        """Sends `run`, `matmul` or `rest` and waits for the answer; {} if the worker is not usable."""
        if not self.usable:
            return {}
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read_answer()

    def close(self) -> None:
        """Closes its input, which ends the process, and waits for the end."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def _read_answer(self) -> Facts:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: Facts = json.loads(line)
        else:
            answer = {"failed": f"its process ended with code {self._process.wait()}"}
        if "failed" in answer:
            self.facts |= answer
        return answer


def run_interleaved(jobs: Mapping[str, Mapping[str, Any]], repeats: int, together: bool) -> dict[str, Facts]:
    """Measures all jobs and returns facts by name: seconds of each repeat, peak_bytes, and what the engine reports.

    Args:
      jobs: by name. Each also measures the matmul rate, once a round.
      repeats: rounds, each with one turn of every job. A turn starts with untimed runs; with a single job, only the
        first turn does.
      together: if true, all workers stay warm and take turns. If false, one worker after the other does all its
        repeats, for models that do not fit in memory more than once.
    """
    if not together:
        return {name: run_interleaved({name: job}, repeats, True)[name] for name, job in jobs.items()}
    single = len(jobs) == 1
    workers = {name: _start_worker(name, job, single) for name, job in jobs.items()}
    try:
        for turn in range(repeats):
            for name, worker in workers.items():
                _take_turn(name, worker, turn, single)
    finally:
        for worker in workers.values():
            worker.close()
    return {name: worker.facts for name, worker in workers.items()}


def _start_worker(name: str, job: Mapping[str, Any], single: bool) -> Worker:
    worker = Worker(job)
    if worker.usable:
        first = worker.request("run")
        worker.facts |= {"first_seconds": first.get("seconds"), "seconds": [], "cpu_seconds": [], "matmul_flops": []}
    if not single:
        worker.request("rest")
    log_progress(name, worker.facts)
    return worker


def _take_turn(name: str, worker: Worker, turn: int, single: bool) -> None:
    for _ in range(UNTIMED if not single or turn == 0 else 0):
        worker.request("run")
    if not worker.usable:
        return
    worker.facts["matmul_flops"].append(worker.request("matmul").get("flops", 0.0))
    answer = worker.request("run")
    if "seconds" in answer:
        for field in ("seconds", "cpu_seconds"):
            worker.facts[field].append(answer.pop(field))
        worker.facts["peak_bytes"] = max(worker.facts.get("peak_bytes", 0), answer.pop("peak_bytes"))
        worker.facts |= answer
        log_progress(name, {"turn": turn, "seconds": worker.facts["seconds"][-1]})
    if not single:
        worker.request("rest")


def log_progress(name: str, facts: Facts) -> None:
    """Prints facts to the error stream."""
    print(f"{name}: {json.dumps(facts)}", file=sys.stderr, flush=True)


def build_result(
    benchmark: str, workload: str, measured: Mapping[str, Facts], floor: float, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The benchmark's JSON line: raw figures, then ratios and the floor computed from them.

    Args:
      benchmark: name of the benchmark.
      workload: name of the workload.
      measured: facts by engine, including `ours`; each has `tokens`. The matmul rates are removed from them.
      floor: the least floating-point operations of our workload.
      about: other fields of the result, such as the device.
    """
    ours = measured["ours"]
    rates = [rate for facts in measured.values() for rate in facts.pop("matmul_flops", [])]
    result = {"benchmark": benchmark, "workload": workload, **about, "ours": ours}
    result["peers"] = {name: facts for name, facts in measured.items() if name != "ours"}
    result["ratio"] = {
        name: ratio(ours, facts) for name, facts in result["peers"].items() if facts.get("seconds") and ours["seconds"]
    }
    if rates and ours.get("seconds"):
        rate = statistics.median(rates)
        result |= {"matmul_flops": rate, "floor_flops": floor, "floor_seconds": floor / rate}
        result["floor_fraction"] = floor / rate / statistics.median(ours["seconds"])
    return result


def ratio(ours: Facts, peer: Facts) -> float:
    """Our useful tokens per second divided by the peer's; both from median seconds."""
    return _token_rate(ours) / _token_rate(peer)


def _token_rate(facts: Facts) -> float:
    return float(facts["tokens"] / statistics.median(facts["seconds"]))


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    headers = ("engine", "seconds (median)", "processor seconds", "useful tokens/s", "peak MB", "ours ÷ engine")
    lines = [f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
    for name, facts in {"ours": result["ours"], **result["peers"]}.items():
        if not facts.get("seconds"):
            lines.append(f"| {name} | {facts.get('absent') or facts.get('failed')} | | | | |")
            continue
        speedup = f"{result['ratio'][name]:.2f}" if name in result["ratio"] else ""
        wall, processor = (statistics.median(facts[field]) for field in ("seconds", "cpu_seconds"))
        peak_mb = facts["peak_bytes"] / 1e6
        cells = f"{wall:.2f} | {processor:.2f} | {_token_rate(facts):.0f} | {peak_mb:.0f} | {speedup}"
        lines.append(f"| {name} | {cells} |")
    if "floor_fraction" in result:
        lines.append(
            f"\nfloor {result['floor_seconds']:.2f} s at {result['matmul_flops'] / 1e9:.0f} GFLOP/s: "
            f"fraction {result['floor_fraction']:.3f}"
        )
    return "\n".join(lines)


def matmul_rate(platform_name: str) -> float:
    """FLOP/s of a large matrix product in JAX, the best of five: float32 on CPU, bfloat16 on GPU."""
    import jax
    import jax.numpy as jnp

    size, dtype = (2048, jnp.float32) if platform_name == "cpu" else (8192, jnp.bfloat16)
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(x, x))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(product(x, x))
        times.append(time.perf_counter() - begin)
    return 2.0 * size**3 / min(times)


class PeakMemory:
    """Peak resident memory of this process during an action, above its resident memory when this object was created."""

    def __init__(self) -> None:
        self._baseline = _read_status("VmRSS")

    def measure(self, action: Callable[[], Facts]) -> tuple[Facts, int]:
        """The action's result and the peak in bytes; the peak of the process so far if the system cannot reset it."""
        reset = _reset_peak()
        result = action()
        peak = _read_status("VmHWM") if reset else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return result, max(0, peak - self._baseline)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _read_status(field: str) -> int:
    """A size from /proc/self/status in bytes; 0 if the system does not report it."""
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(f"{field}:"):
            return int(entry.split()[1]) * 1024  # reported in kB
    return 0


def describe_machine(platform_name: str) -> str:
    """The GPU's name, or the number of cores and the processor's name."""
    if platform_name != "cpu":
        names = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.split("\n")
        return names[0]
    models = [entry for entry in Path("/proc/cpuinfo").read_text().splitlines() if entry.startswith("model name")]
    return f"{os.cpu_count()} × {models[0].partition(':')[2].strip()}" if models else f"{os.cpu_count()} cores"


def parse_peers(peers: str, known: Sequence[str]) -> list[str]:
    """The peers in a comma-separated list; an unknown name ends the process with an error."""
    chosen = [peer for peer in peers.split(",") if peer]
    if unknown := set(chosen) - set(known):
        sys.exit(f"error: --peers has {', '.join(sorted(unknown))}; known peers: {', '.join(known)}.")
    return chosen
