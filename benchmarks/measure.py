"""How engines are measured: each in a process of its own that stays warm, one at work at a time, in turns.

A worker loads the weights and is run once to compile. While others are at work it gives its freed memory back. So its
turn (alone, its first one) begins with runs that are not timed, after which it has the memory that it has at work. Two
of them, since glibc may take two blocks for a program's temporaries before it goes on with what it has.
Processes of their own keep the thread pools of XLA and torch apart and make each one's peak memory a figure of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
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
UNTIMED = 2  # runs that a turn begins with


class Worker:
    """benchmarks/worker.py as a child that runs on request. An engine that is missing or dies is told by its facts."""

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
        self.facts = self._answer()

    @property
    def usable(self) -> bool:
        """Whether it can be asked to run."""
        return not {"absent", "failed"} & set(self.facts)

    def ask(self, what: str) -> Facts:
        """Has it do something, and waits: run, matmul, or rest. One that is not usable says nothing."""
        if not self.usable:
            return {}
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Facts:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: Facts = json.loads(line)
        else:
            answer = {"failed": f"its process ended with code {self._process.wait()}"}
        if "failed" in answer:
            self.facts |= answer
        return answer


def in_turns(jobs: Mapping[str, Mapping[str, Any]], repeats: int, together: bool) -> dict[str, Facts]:
    """Every job's facts: seconds of each repeat, peak_bytes and what the engine says of itself.

    Args:
      jobs: by name; each measures the matmul rate too, once a round.
      repeats: rounds; each turn in them, of a single job the first one, begins with untimed runs.
      together: all workers stay warm, and each round has a turn of each. False: one worker after the other does all its
        repeats, for models that do not fit memory more than once.
    """
    if not together:
        return {name: one for part in jobs for name, one in in_turns({part: jobs[part]}, repeats, True).items()}
    alone = len(jobs) == 1
    workers = {name: _started(name, job, alone) for name, job in jobs.items()}
    try:
        for turn in range(repeats):
            for name, worker in workers.items():
                _take_turn(name, worker, turn, alone)
    finally:
        for worker in workers.values():
            worker.close()
    return {name: worker.facts for name, worker in workers.items()}


def _started(name: str, job: Mapping[str, Any], alone: bool) -> Worker:
    worker = Worker(job)
    if worker.usable:
        first = worker.ask("run")
        worker.facts |= {"first_seconds": first.get("seconds"), "seconds": [], "cpu_seconds": [], "matmul_flops": []}
    if not alone:
        worker.ask("rest")
    say(name, worker.facts)
    return worker


def _take_turn(name: str, worker: Worker, turn: int, alone: bool) -> None:
    for _ in range(UNTIMED if not alone or turn == 0 else 0):
        worker.ask("run")
    if not worker.usable:
        return
    worker.facts["matmul_flops"].append(worker.ask("matmul").get("flops", 0.0))
    answer = worker.ask("run")
    if "seconds" in answer:
        for name_of_list in ("seconds", "cpu_seconds"):
            worker.facts[name_of_list].append(answer.pop(name_of_list))
        worker.facts["peak_bytes"] = max(worker.facts.get("peak_bytes", 0), answer.pop("peak_bytes"))
        worker.facts |= answer
        say(name, {"turn": turn, "seconds": worker.facts["seconds"][-1]})
    if not alone:
        worker.ask("rest")


def say(name: str, facts: Facts) -> None:
    """Progress, to the error stream."""
    print(f"{name}: {json.dumps(facts)}", file=sys.stderr, flush=True)


def line(
    benchmark: str, workload: str, measured: Mapping[str, Facts], floor: float, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The result: raw figures first, then what follows from them.

    Args:
      benchmark: its name.
      workload: its name.
      measured: facts by engine, `ours` among them; each has `tokens`.
      floor: operations that our workload needs at least.
      about: what else was set.
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
    """Our useful tokens a second over the peer's, of the medians."""
    return _speed(ours) / _speed(peer)


def _speed(facts: Facts) -> float:
    return float(facts["tokens"] / statistics.median(facts["seconds"]))


def table(result: Mapping[str, Any]) -> str:
    """The result for reading, in Markdown."""
    heads = ("way", "seconds (median)", "processor seconds", "useful tokens/s", "peak MB", "ours ÷ it")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, facts in {"ours": result["ours"], **result["peers"]}.items():
        if not facts.get("seconds"):
            lines.append(f"| {name} | {facts.get('absent') or facts.get('failed')} | | | | |")
            continue
        share = f"{result['ratio'][name]:.2f}" if name in result["ratio"] else ""
        median, spent = (statistics.median(facts[field]) for field in ("seconds", "cpu_seconds"))
        cells = f"{median:.2f} | {spent:.2f} | {_speed(facts):.0f} | {facts['peak_bytes'] / 1e6:.0f} | {share}"
        lines.append(f"| {name} | {cells} |")
    if "floor_fraction" in result:
        lines.append(
            f"\nfloor {result['floor_seconds']:.2f} s at {result['matmul_flops'] / 1e9:.0f} GFLOP/s: "
            f"fraction {result['floor_fraction']:.3f}"
        )
    return "\n".join(lines)


def matmul_rate(platform_name: str) -> float:
    """Operations a second of a large matrix product in JAX, the best of five: float32 on CPU, bfloat16 on GPU."""
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


class Memory:
    """This process's resident bytes at their highest in an action, over what it held when this was made."""

    def __init__(self) -> None:
        self._base = _status("VmRSS")

    def during(self, action: Callable[[], Facts]) -> tuple[Facts, int]:
        """The action's result and the peak; where the system keeps one peak alone, that of the process so far."""
        reset = _reset_peak()
        result = action()
        peak = _status("VmHWM") if reset else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return result, max(0, peak - self._base)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    """A size in /proc/self/status, in bytes; 0 if the system does not report it."""
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(f"{field}:"):
            return int(entry.split()[1]) * 1024  # reported in kB
    return 0


def trim_heap() -> None:
    """Returns freed memory to the system; does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def machine(platform_name: str) -> str:
    """The machine in a few words."""
    if platform_name != "cpu":
        names = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.split("\n")
        return names[0]
    models = [entry for entry in Path("/proc/cpuinfo").read_text().splitlines() if entry.startswith("model name")]
    return f"{os.cpu_count()} × {models[0].partition(':')[2].strip()}" if models else f"{os.cpu_count()} cores"


def names(peers: str, known: Sequence[str]) -> list[str]:
    """The peers of a command line; an unknown one ends the process."""
    chosen = [peer for peer in peers.split(",") if peer]
    if unknown := set(chosen) - set(known):
        sys.exit(f"error: --peers has {', '.join(sorted(unknown))}; there are {', '.join(known)}.")
    return chosen
