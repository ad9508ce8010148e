from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import measure
import numpy as np
import pytest
import worker

from sqlr1_jax import malloc


def _facts(seconds: list[float], tokens: int = 100, **more: Any) -> dict[str, Any]:
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": seconds, "peak_bytes": 3_000_000, **more}


def test_ratio_divides_tokens_per_median_second() -> None:
    measured = {
        "ours": _facts([1.0, 9.0, 2.0], matmul_flops=[10.0, 30.0]),
        "tunix": _facts([8.0, 8.0, 1.0], tokens=50, matmul_flops=[20.0]),
        "trl": {"absent": "No module named 'trl'"},
    }
    result = measure.build_result("update", "w3", measured, 20.0, {"groups": 1})
    assert result["ratio"] == {"tunix": (100 / 2) / (50 / 8)}
    assert result["peers"]["trl"] == {"absent": "No module named 'trl'"}
    assert result["ours"]["seconds"] == [1.0, 9.0, 2.0]
    assert result["matmul_flops"] == 20.0 and result["floor_seconds"] == 1.0 and result["floor_fraction"] == 0.5
    assert {"benchmark", "workload", "ours", "peers", "ratio", "floor_seconds", "floor_fraction"} <= set(result)
    json.dumps(result)


def test_table_has_a_row_per_engine_and_names_absent_engines() -> None:
    measured = {"ours": _facts([2.0]), "naive": _facts([5.0]), "trl": {"absent": "no trl"}}
    text = measure.table(measure.build_result("rollout", "w1", measured, 1.0, {}))
    assert "| ours | 2.00 | 2.00 | 50 | 3 |  |" in text
    assert "| naive | 5.00 | 5.00 | 20 | 3 | 2.50 |" in text
    assert "| trl | no trl |" in text


def _serve(job: dict[str, Any], requests: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The worker's answers to `requests`."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(requests))
    worker.serve(job, output)
    return [json.loads(line) for line in output.getvalue().splitlines()]


JOB = {
    "engine": "trl", "task": "update", "platform": "cpu",
    "workload": {"model": "nano", "prompts": 1, "samples": 2, "prompt": 4, "shortest": 3, "longest": 3, "seed": 0},
}  # fmt: skip


def test_missing_engine_is_reported_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker.MODULES, "trl", "no_such_module")
    assert _serve(JOB, "run\n", monkeypatch) == [{"absent": "No module named 'no_such_module'"}]


def test_worker_reports_time_and_peak_memory_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays: list[np.ndarray] = []  # each run keeps 40 MB more

    class Engine:
        @staticmethod
        def update(job: dict[str, Any], work: Any) -> Any:
            def run() -> dict[str, float]:
                arrays.append(np.ones(40_000_000 // 8))
                return {"loss": 2.0}

            return run

    monkeypatch.setitem(worker.MODULES, "trl", "an_engine")
    monkeypatch.setitem(sys.modules, "an_engine", Engine)  # type: ignore[arg-type]
    runs_before_trim: list[int] = []
    trim_heap = malloc.trim_heap
    monkeypatch.setattr(malloc, "trim_heap", lambda: (runs_before_trim.append(len(arrays)), trim_heap()))  # type: ignore[func-returns-value]
    started, first, second, rested = _serve(JOB, "run\nrun\nrest\n", monkeypatch)
    assert started == {"tokens": 6, "prompts": 1, "samples": 2}
    assert first["loss"] == 2.0 and 0 < first["seconds"] < 60 and first["cpu_seconds"] > 0
    assert rested == {} and runs_before_trim == [0, 2]
    assert first["peak_bytes"] >= 40_000_000 and first["peak_bytes"] + 30_000_000 <= second["peak_bytes"]


def test_dead_worker_is_reported_with_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    code = "import sys; print('{}', flush=True); sys.stdin.readline(); sys.exit(7)"
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start([sys.executable, "-c", code], **options))
    facts = measure.run_interleaved({"ours": {"platform": "cpu"}}, 2, together=True)
    assert facts["ours"]["failed"] == "its process ended with code 7" and facts["ours"]["seconds"] == []


@pytest.mark.parametrize(
    ("names", "commands"),
    [(["ours"], ["run", "run", "run", "matmul", "run", "matmul", "run"]),
     (["ours", "naive"], ["run", "rest"] + 2 * ["run", "run", "matmul", "run", "rest"])],
)  # fmt: skip
def test_turns_start_with_untimed_runs_except_later_turns_of_a_single_engine(
    names: list[str], commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: dict[str, list[str]] = {}

    class Worker:
        def __init__(self, job: dict[str, Any]):
            self.usable, self._commands = True, requests.setdefault(job["engine"], [])
            self.facts: dict[str, Any] = {}

        def request(self, command: str) -> dict[str, Any]:
            self._commands.append(command)
            seconds = float(self._commands.count("run"))
            return {"seconds": seconds, "cpu_seconds": seconds, "peak_bytes": 1} if command == "run" else {}

        def close(self) -> None: ...

    monkeypatch.setattr(measure, "Worker", Worker)
    facts = measure.run_interleaved({name: {"engine": name} for name in names}, 2, together=True)
    timed = [4.0, 5.0] if len(names) == 1 else [4.0, 7.0]
    assert requests == dict.fromkeys(names, commands)
    assert {name: facts[name]["seconds"] for name in names} == dict.fromkeys(names, timed)


def test_unknown_peer_is_an_error_that_names_it() -> None:
    assert measure.parse_peers("naive,trl", ("naive", "trl", "tunix")) == ["naive", "trl"]
    with pytest.raises(SystemExit, match="--peers has vllm; known peers: naive, trl"):
        measure.parse_peers("naive,vllm", ("naive", "trl"))


def test_matmul_rate_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """By this clock, the five products of 2048 × 2048 take 3, 1, 4, 1.5 and 5 seconds."""
    clock = itertools.accumulate([0.0, 3.0, 9.0, 1.0, 9.0, 4.0, 9.0, 1.5, 9.0, 5.0])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert measure.matmul_rate("cpu") == 2 * 2048**3 / 1.0
    assert next(clock, None) is None
