"""Runs benchmarks/endurance.py as a user would and checks that no resource of the executor grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROWTH = {"descriptors": 2, "threads": 0, "megabytes": 16, "worker_megabytes": 8, "children": 0, "files": 0}


@pytest.mark.parametrize(
    "count", [8_000, pytest.param(1_000_000, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])]
)
def test_resources_do_not_grow_with_the_number_of_completions(count: int) -> None:
    command = [sys.executable, "benchmarks/endurance.py", f"--count={count}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert sum(result["outcomes"].values()) == count
    assert {"match", "mismatch", "syntax_error", "denied", "too_large", "timeout"} <= set(result["outcomes"])
    assert set(result["samples"]) == set(GROWTH)
    for name, values in result["samples"].items():
        settled = values[len(values) // 4 :]
        assert max(settled[len(settled) // 2 :]) - max(settled[: len(settled) // 2]) <= GROWTH[name], (name, values)
