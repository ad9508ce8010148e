"""The report of compile_step, with CPU devices as chips."""

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
    """The report of two programs of the tiny model, on two devices."""
    sampling = config.SamplingConfig(temperature=1.0, max_tokens=8)
    grpo = config.GrpoConfig(prompts=2, samples=2, sampling=sampling, rows=config.RowsConfig(per_microbatch=2))
    tiny = config.Config(
        model=config.ModelConfig(logits_chunk=0), data=config.DataConfig(max_prompt_tokens=16), grpo=grpo
    )
    return compiler.compile_step(tiny, _cpu_topology(2), ["weights", "reference_logprobs"])


def test_the_report_has_the_documented_fields(report: dict[str, Any]) -> None:
    """As in docs/plan.md."""
    assert set(report) == {
        "topology", "chips", "hosts", "model", "training", "mesh", "prompts", "samples", "rows",
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
    highest_peak = max(program["peak"] for program in report["programs"].values())
    assert report["headroom"] == pytest.approx(1 - highest_peak / GIB, abs=1e-4)
    assert json.loads(json.dumps(report)) == report


def test_resident_arrays_count_as_arguments(report: dict[str, Any]) -> None:
    """`reference_logprobs` reads only the reference; the weights and two moments, all float32, are resident."""
    half = 4 * qwen2.count_params(qwen2.PRESETS["tiny"]) / 2
    assert report["programs"]["reference_logprobs"]["arguments"] == pytest.approx(4 * half, rel=0.02)
    assert report["programs"]["weights"]["arguments"] == pytest.approx(4 * half, rel=0.02)


def test_flops_are_the_models_and_divide_among_the_chips(report: dict[str, Any]) -> None:
    logprobs, keys = report["programs"]["reference_logprobs"], 2 * flops.row_keys(16, 2, 8)
    assert logprobs["flops"] == flops.forward_flops(
        qwen2.PRESETS["tiny"], tokens=2 * 32, keys=keys, logit_tokens=2 * 16
    )
    assert logprobs["arithmetic_seconds"] == logprobs["flops"] / (2 * flops.peak_flops(jax.devices()[0]))


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
def test_a_program_fits_with_five_percent_free_and_no_unwanted_offloading(report: ProgramReport, fits: bool) -> None:
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
def test_a_refusal_is_reported_with_the_memory_in_its_message(message: str, peak: float) -> None:
    report = compiler.compile_program(_FailingPrograms(message), "update")  # type: ignore[arg-type]
    assert report.peak == int(peak)
    assert not report.fits(10**15)
    assert report.refused == message


def test_other_compiler_errors_are_raised() -> None:
    with pytest.raises(RuntimeError, match="INTERNAL"):
        compiler.compile_program(_FailingPrograms("INTERNAL: a bug"), "update")  # type: ignore[arg-type]


class _FailingPrograms:
    """StepPrograms whose compilation fails with this message."""

    def __init__(self, message: str):
        self._message = message

    @property
    def update(self) -> Any:
        raise jax.errors.JaxRuntimeError(self._message)


def test_an_unknown_program_is_an_error() -> None:
    one_chip = config.Config(mesh=config.MeshConfig(fsdp=1))
    with pytest.raises(ConfigError, match="there are weights, prefill, decode, reference_logprobs, update"):
        compiler.compile_step(one_chip, _cpu_topology(1), ["evaluate"])


def test_a_mesh_that_does_not_fit_the_chips_is_an_error() -> None:
    three_chips = config.Config(mesh=config.MeshConfig(fsdp=3))
    with pytest.raises(ConfigError, match="doesn't make 4 devices"):
        compiler.compile_step(three_chips, _cpu_topology(4))
