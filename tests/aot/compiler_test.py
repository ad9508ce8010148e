"""The report of compile_step, with CPU devices in place of chips."""

from __future__ import annotations

import json
from typing import Any

import jax
import pytest

from sqlr1_jax import config
from sqlr1_jax.aot import compiler
from sqlr1_jax.aot.compiler import ProgramReport
from sqlr1_jax.aot.topology import GIB, Topology
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import flops, qwen2


def _cpu_topology(count: int) -> Topology:
    return Topology(f"cpu:{count}", jax.devices()[:count], hosts=1, hbm=GIB)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The report of two of the tiny model's programs on two devices."""
    sampling = config.SamplingConfig(temperature=1.0, max_tokens=8)
    grpo = config.GrpoConfig(prompts=2, samples=2, sampling=sampling, rows=config.RowsConfig(per_microbatch=2))
    cfg = config.Config(
        model=config.ModelConfig(logits_chunk=0), data=config.DataConfig(max_prompt_tokens=16), grpo=grpo
    )
    return compiler.compile_step(cfg, _cpu_topology(2), ["weights", "score"])


def test_the_report_has_the_fields_of_the_reference(report: dict[str, Any]) -> None:
    """docs/plan.md lists them."""
    assert set(report) == {
        "topology", "chips", "hosts", "model", "training", "mesh", "prompts", "samples", "rows", "repeated_rows",
        "programs", "hbm", "headroom", "fits",
    }  # fmt: skip
    assert (report["chips"], report["hbm"], report["fits"]) == (2, GIB, True)
    assert report["training"] == "full fine-tuning"
    assert report["rows"] == {"microbatches": 1, "rows": 2, "tokens": 32}
    for program in report["programs"].values():
        assert set(program) == {
            "peak", "arguments", "temporaries", "host", "offloads", "flops", "arithmetic_seconds", "compile_seconds",
            "refused", "fits",
        }  # fmt: skip
    worst = max(program["peak"] for program in report["programs"].values())
    assert report["headroom"] == pytest.approx(1 - worst / GIB, abs=1e-4)
    assert json.loads(json.dumps(report)) == report


def test_resident_arrays_count_as_arguments(report: dict[str, Any]) -> None:
    """`score` reads the reference alone, but weights and two moments, all float32, are in memory too."""
    half = 4 * qwen2.count_params(qwen2.PRESETS["tiny"]) / 2
    assert report["programs"]["score"]["arguments"] == pytest.approx(4 * half, rel=0.02)
    assert report["programs"]["weights"]["arguments"] == pytest.approx(4 * half, rel=0.02)


def test_flops_are_those_of_the_model_and_divide_over_the_chips(report: dict[str, Any]) -> None:
    score, keys = report["programs"]["score"], 2 * flops.row_keys(16, 2, 8)
    assert score["flops"] == flops.forward_flops(qwen2.PRESETS["tiny"], tokens=2 * 32, keys=keys, logit_tokens=2 * 16)
    assert score["arithmetic_seconds"] == score["flops"] / (2 * flops.peak_flops(jax.devices()[0]))


@pytest.mark.parametrize(
    ("report", "fits"),
    [
        (ProgramReport(peak=95), True),
        (ProgramReport(peak=96), False),
        (ProgramReport(peak=10, host=1), False),
        (ProgramReport(peak=10, host=1, offloads=True), True),
        (ProgramReport(peak=10, refused="RESOURCE_EXHAUSTED"), False),
    ],
)
def test_a_program_fits_with_five_percent_free_and_nothing_offloaded_unasked(report: ProgramReport, fits: bool) -> None:
    assert report.fits(hbm=100) is fits


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
def test_a_refusal_is_reported_with_the_memory_that_its_message_names(message: str, peak: float) -> None:
    refused = compiler.compile_program(_Failing(message), "update")  # type: ignore[arg-type]
    assert refused.peak == int(peak)
    assert not refused.fits(10**15)
    assert refused.refused == message


def test_another_failure_of_the_compiler_is_raised() -> None:
    with pytest.raises(RuntimeError, match="INTERNAL"):
        compiler.compile_program(_Failing("INTERNAL: a bug"), "update")  # type: ignore[arg-type]


class _Failing:
    """Stands for StepPrograms: the compiler fails with a message."""

    def __init__(self, message: str):
        self._message = message

    @property
    def update(self) -> Any:
        raise jax.errors.JaxRuntimeError(self._message)


def test_an_unknown_program_is_an_error() -> None:
    cfg = config.Config(mesh=config.MeshConfig(fsdp=1))
    with pytest.raises(ConfigError, match="there are weights, prefill, decode, score, update"):
        compiler.compile_step(cfg, _cpu_topology(1), ["evaluate"])


def test_a_mesh_that_does_not_fit_the_chips_is_an_error() -> None:
    cfg = config.Config(mesh=config.MeshConfig(fsdp=3))
    with pytest.raises(ConfigError, match="doesn't make 4 devices"):
        compiler.compile_step(cfg, _cpu_topology(4))
