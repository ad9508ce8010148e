"""plan: its verdicts and words anywhere; with libtpu, 0.5b compiled for four chips that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from sqlr1_jax import config, plan
from sqlr1_jax.model import flops, qwen2
from sqlr1_jax.plan import GIB, Chips, Compiled

ROOT = Path(__file__).parents[1]
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
takes_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="takes libtpu: pip install -e '.[tpu]'")


def _here(count: int) -> Chips:
    """CPU devices for chips."""
    return Chips(f"cpu:{count}", jax.devices()[:count], hosts=1, hbm=GIB, bandwidth=1e9)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    """The report on a model of a few thousand tokens, with CPU devices for chips."""
    sampling = config.Sampling(temperature=1.0, max_tokens=8)
    grpo = config.Grpo(prompts=2, samples=2, sampling=sampling, rows=config.Rows(per_microbatch=2))
    cfg = config.Config(model=config.Model(logits_chunk=0), data=config.Data(max_prompt_tokens=16), grpo=grpo)
    return plan.report(cfg, _here(2), ["weights", "score"])


def test_the_report_says_what_the_design_promises(tiny: dict[str, Any]) -> None:
    assert {"topology", "chips", "programs", "hbm", "headroom", "fits"} <= set(tiny)
    assert (tiny["chips"], tiny["hbm"], tiny["fits"]) == (2, GIB, True)
    assert tiny["training"] == "full fine-tuning"
    promised = {"peak", "arguments", "temporaries", "flops", "memory_bytes", "collective_bytes", "compile_seconds"}
    assert all(promised <= set(one) for one in tiny["programs"].values())
    worst = max(one["peak"] for one in tiny["programs"].values())
    assert tiny["headroom"] == pytest.approx(1 - worst / GIB, abs=1e-4)
    assert json.loads(json.dumps(tiny)) == tiny


def test_what_lives_through_a_program_is_in_its_memory(tiny: dict[str, Any]) -> None:
    """Score reads the reference alone, but weights and two moments, all float32, are on the chips as well."""
    halves = 4 * qwen2.count_params(qwen2.PRESETS["tiny"]) / 2
    assert tiny["programs"]["score"]["arguments"] == pytest.approx(4 * halves, rel=0.02)
    assert tiny["programs"]["weights"]["arguments"] == pytest.approx(4 * halves, rel=0.02)


def test_the_roofline_divides_arithmetic_over_all_chips_and_memory_over_one(tiny: dict[str, Any]) -> None:
    score = tiny["programs"]["score"]
    rate = 2 * flops.peak_flops(jax.devices()[0])
    assert score["arithmetic_seconds"] == pytest.approx(score["flops"] / rate)
    assert score["memory_seconds"] == pytest.approx(score["memory_bytes"] / 1e9)
    weights = 4 * qwen2.count_params(qwen2.PRESETS["tiny"])
    assert score["memory_bytes"] > weights / 2  # each chip reads at least its half


def test_the_table_says_it_in_words(tiny: dict[str, Any]) -> None:
    text = plan.table(tiny)
    assert text.startswith("tiny on cpu:2: 2 chips of 1.00 GiB, mesh replica 1 × fsdp 2 × tensor 1\nfull fine-tuning")
    assert "2 prompts × 2 samples; 1 microbatches of 2 rows of 32 tokens" in text
    assert "compiled, never run" in text
    assert text.splitlines()[-1].startswith("fits: ") and "5% asked" in text
    uneven = plan.table(tiny | {"repeated_rows": True, "fits": False})
    assert "chips repeat one another's work" in uneven
    assert "does not fit" in uneven


@pytest.mark.parametrize(
    ("compiled", "fits"),
    [
        (Compiled(peak=95), True),
        (Compiled(peak=96), False),
        (Compiled(peak=10, host=1), False),
        (Compiled(peak=10, host=1, offloads=True), True),
        (Compiled(peak=10, refused="RESOURCE_EXHAUSTED"), False),
    ],
)
def test_five_percent_stay_free_and_nothing_is_offloaded_unasked(compiled: Compiled, fits: bool) -> None:
    assert compiled.fits(hbm=100) is fits


@pytest.mark.parametrize(
    ("message", "peak"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm.", 16.5 * GIB),
        (
            "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (1.76T) exceeds available HBM",
            1.76 * 1024 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: in other words", 0),
    ],
)
def test_a_compiler_that_gives_up_says_by_how_much(message: str, peak: float) -> None:
    refused = plan.compile_program(_refused(message), "update")
    assert refused.peak == int(peak)
    assert not refused.fits(10**15)
    assert refused.refused == message


def test_another_error_is_not_taken_for_a_verdict() -> None:
    with pytest.raises(RuntimeError, match="INTERNAL"):
        plan.compile_program(_refused("INTERNAL: a bug"), "update")


def _refused(message: str) -> Any:
    """A step with an update that the compiler refuses with this message."""

    class Refused:
        @property
        def compiled(self) -> Any:
            raise jax.errors.JaxRuntimeError(message)

    return SimpleNamespace(update=Refused())


@pytest.mark.parametrize("topology", ["h100:8", "v5e", "", "v5e:3x3"])
def test_a_topology_that_is_none(topology: str) -> None:
    if topology.startswith("v5e") and not HAS_COMPILER:
        pytest.skip("libtpu knows the shapes of v5e")
    with pytest.raises(config.ConfigError, match=f"--topology={topology}: "):
        plan.describe(topology)


def test_without_the_compiler_plan_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(config.ConfigError, match=r"pip install -e '\.\[tpu\]'"):
        plan.describe("v5e:2x2")


def test_a_program_that_is_none() -> None:
    cfg = config.Config(mesh=config.Mesh(fsdp=1))
    with pytest.raises(config.ConfigError, match="there are weights, prefill, decode, score, update"):
        plan.report(cfg, _here(1), ["evaluate"])


def test_a_mesh_that_does_not_suit_the_chips() -> None:
    cfg = config.Config(mesh=config.Mesh(fsdp=3))
    with pytest.raises(config.ConfigError, match="doesn't make 4 devices"):
        plan.report(cfg, _here(4))


@takes_compiler
@pytest.mark.parametrize(("topology", "chips", "hosts"), [("v5e:4x4", 16, 4), ("v5p:2x2x4", 16, 4), ("v6e:2x4", 8, 2)])
def test_slices(topology: str, chips: int, hosts: int) -> None:
    found = plan.describe(topology)
    assert (len(found.devices), found.hosts) == (chips, hosts)


@takes_compiler
def test_half_a_billion_fit_four_small_chips() -> None:
    """Compiled with little effort, which says nearly what training's own compilation does in a tenth of the time."""
    command = [sys.executable, "-m", "sqlr1_jax.plan", "--config=configs/grpo.py:0.5b", "--topology=v5e:2x2", "--json"]
    effort = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
    settings = ["--config.grpo.rows.per_microbatch=4"]
    done = subprocess.run([*command, *settings], cwd=ROOT, env=os.environ | effort, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and found["headroom"] > 0.5
    assert list(found["programs"]) == ["weights", "prefill", "decode", "score", "update"]
    assert (found["chips"], found["hosts"], found["repeated_rows"]) == (4, 1, False)

    programs, weights = found["programs"], 494_032_768 * 4 / 4  # bytes a chip of the float32 weights
    rows = 10 * 4 * 2 * 20480  # bytes a chip: ten fields, two microbatches of one row
    assert programs["update"]["arguments"] == pytest.approx(4 * weights + 1.2 * rows, rel=0.02)
    sampler = 494_032_768 * 2  # bfloat16, whole on every chip
    slots = 2 * 24 * 20480 * 2 * 2 * 64 * 2  # bytes a chip: two prompts' keys and values in bfloat16
    assert programs["prefill"]["arguments"] == pytest.approx(4 * weights + sampler + slots, rel=0.02)
    assert programs["update"]["temporaries"] > programs["score"]["temporaries"]
    # Rows are apart and weights whole: there is nothing to exchange but a few numbers of who is done.
    assert programs["decode"]["collective_bytes"] < 4096
    assert programs["update"]["collective_bytes"] > 2 * 2 * 494_032_768
    tokens, keys = 8 * 20480, 8 * flops.row_keys(4096, 8, 2048)
    work = flops.update_flops(qwen2.PRESETS["0.5b"], tokens, keys, asked=8 * 8 * 2048)
    assert programs["update"]["flops"] == pytest.approx(work)
