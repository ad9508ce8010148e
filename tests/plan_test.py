"""The plan command: its table and, if libtpu is installed, a run that compiles the 0.5b model for four chips."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax import plan
from sqlr1_jax.aot.topology import GIB
from sqlr1_jax.model import flops, qwen2

ROOT = Path(__file__).parents[1]
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
requires_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs libtpu: pip install -e '.[tpu]'")

PROGRAM = {
    "peak": 3 * GIB, "arguments": 2 * GIB, "temporaries": GIB, "host": 0, "offloads": False, "flops": 4e15,
    "arithmetic_seconds": 1.5, "compile_seconds": 7.0, "refused": "", "fits": True,
}  # fmt: skip
REPORT = {
    "topology": "v5e:2x1", "chips": 2, "hosts": 1, "model": "tiny", "training": "full fine-tuning",
    "mesh": {"replica": 1, "fsdp": 2, "tensor": 1}, "prompts": 2, "samples": 4,
    "rows": {"microbatches": 1, "rows": 2, "tokens": 32}, "programs": {"update": PROGRAM},
    "hbm": 4 * GIB, "headroom": 0.25, "fits": True,
}  # fmt: skip


def test_the_table_has_a_line_per_program() -> None:
    assert plan.table(REPORT).splitlines() == [
        "tiny on v5e:2x1: 2 chips of 4.00 GiB, mesh replica 1 × fsdp 2 × tensor 1",
        "full fine-tuning, the only kind of training; compiled, not run",
        "a step: 2 prompts × 4 samples; 1 microbatches of 2 rows of 32 tokens",
        "program               peak GiB   inputs  temporary    PFLOP  compute s  compiled s",
        "update                    3.00     2.00       1.00    4.000      1.500           7  fits",
        "fits: 25.0% of HBM free at the peak, 5% required",
    ]


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "TOO LARGE"),
        ({"host": 1}, "OFFLOADED to the host"),
        ({"host": 1, "offloads": True}, "TOO LARGE"),
        ({"refused": "RESOURCE_EXHAUSTED: Used 5G"}, "REFUSED: RESOURCE_EXHAUSTED: Used 5G"),
    ],
)
def test_the_table_says_why_a_program_does_not_fit(changed: dict[str, Any], verdict: str) -> None:
    report = REPORT | {"programs": {"update": PROGRAM | changed | {"fits": False}}, "fits": False}
    lines = plan.table(report).splitlines()
    assert lines[4].endswith(f"7  {verdict}") and lines[-1].startswith("does not fit: ")


def test_the_table_notes_empty_rows() -> None:
    assert "computes 8 rows for 6 prompts" in plan.table(
        REPORT | {"prompts": 6, "rows": {"microbatches": 1, "rows": 8, "tokens": 32}}
    )
    assert "note: " not in plan.table(REPORT)


@requires_compiler
def test_half_a_billion_parameters_fit_four_chips() -> None:
    """With little compiler effort, which takes a tenth of the time and gives nearly the same peaks."""
    command = [sys.executable, "-m", "sqlr1_jax.plan", "--config=configs/grpo.py:0.5b", "--topology=v5e:2x2", "--json"]
    effort = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | effort, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["fits"] and report["headroom"] > 0.5
    assert list(report["programs"]) == ["weights", "prefill", "decode", "reference_logprobs", "update"]
    assert (report["chips"], report["hosts"]) == (4, 1)

    programs, weights = report["programs"], 494_032_768 * 4 / 4  # bytes per chip, float32
    rows = 10 * 4 * 2 * 20480  # bytes per chip: ten fields, two microbatches of one row
    assert programs["update"]["arguments"] == pytest.approx(4 * weights + 1.2 * rows, rel=0.02)
    sampler = 494_032_768 * 2  # bfloat16, replicated
    slots = 2 * 24 * 20480 * 2 * 2 * 64 * 2  # bytes per chip: keys and values of two prompts in bfloat16
    assert programs["prefill"]["arguments"] == pytest.approx(4 * weights + sampler + slots, rel=0.02)
    assert programs["update"]["temporaries"] > programs["reference_logprobs"]["temporaries"]
    tokens, keys = 8 * 20480, 8 * flops.row_keys(4096, 8, 2048)
    update_flops = flops.update_flops(qwen2.PRESETS["0.5b"], tokens, keys, logit_tokens=8 * 8 * 2048)
    assert programs["update"]["flops"] == pytest.approx(update_flops)
