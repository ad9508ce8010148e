from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.train import metrics
from sqlr1_jax.train.metrics import Metrics


def _tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each tag, read by TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    tags = reader.Tags()["tensors"]
    return {
        tag: [(event.step, float(event.tensor_proto.float_val[0])) for event in reader.Tensors(tag)] for tag in tags
    }


def _write_losses(workdir: Path, stage: str, *steps: int) -> None:
    with Metrics(workdir, stage) as log:
        for step in steps:
            log.write(step, {"loss": float(step)})


def test_lines_hold_stage_step_and_values(tmp_path: Path) -> None:
    with Metrics(tmp_path, "grpo") as log:
        log.write(1, {"loss": 0.5, "reward/mean": -1.0})
        log.write(2, {"loss": 0.25})
    assert metrics.read_metrics(tmp_path / "metrics.jsonl") == [
        {"stage": "grpo", "step": 1, "loss": 0.5, "reward/mean": -1.0},
        {"stage": "grpo", "step": 2, "loss": 0.25},
    ]


def test_a_missing_file_reads_as_no_lines(tmp_path: Path) -> None:
    assert metrics.read_metrics(tmp_path / "metrics.jsonl") == []


def test_every_line_is_json_for_any_value(tmp_path: Path) -> None:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    with Metrics(tmp_path, "grpo") as log:

        @given(st.floats())
        def check(value: float) -> None:
            log.write(1, {"kl": value})
            last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
            assert json.loads(last, parse_constant=refuse)["kl"] == (value if math.isfinite(value) else None)

        check()


def test_truncate_deletes_only_later_steps_of_the_same_stage(tmp_path: Path) -> None:
    _write_losses(tmp_path, "sft", 1, 2, 3)
    _write_losses(tmp_path, "grpo", 1, 2, 3)
    with Metrics(tmp_path, "grpo") as log:
        log.truncate(1)
        log.write(2, {"loss": 20.0})
    lines = [(line["stage"], line["step"], line["loss"]) for line in metrics.read_metrics(tmp_path / "metrics.jsonl")]
    assert lines == [("sft", s, float(s)) for s in (1, 2, 3)] + [("grpo", 1, 1.0), ("grpo", 2, 20.0)]


def test_tensorboard_has_the_lines_of_the_file_and_no_step_twice(tmp_path: Path) -> None:
    _write_losses(tmp_path, "sft", 1, 2)
    _write_losses(tmp_path, "grpo", 1, 2, 3)
    with Metrics(tmp_path, "grpo") as log:
        log.truncate(2)
        log.write(3, {"loss": 30.0, "kl": math.nan})
    assert _tensorboard_scalars(tmp_path / "tensorboard") == {
        "sft/loss": [(1, 1.0), (2, 2.0)],
        "grpo/loss": [(1, 1.0), (2, 2.0), (3, 30.0)],
    }


def test_an_unfinished_last_line_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write_losses(tmp_path, "grpo", 1, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    with caplog.at_level(logging.WARNING):
        assert [line["step"] for line in metrics.read_metrics(path)] == [1]
    assert "metrics.jsonl, line 2 is not JSON" in caplog.text
    assert "cut short" in caplog.text
    with Metrics(tmp_path, "grpo") as log:
        log.truncate(1)
        log.write(2, {"loss": 2.0})
    assert [line["step"] for line in metrics.read_metrics(path)] == [1, 2]


def test_a_kill_during_truncation_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_losses(tmp_path, "grpo", 1, 2, 3)
    before = (tmp_path / "metrics.jsonl").read_text()

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Metrics(tmp_path, "grpo").truncate(1)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_the_console_shows_one_line_per_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Metrics(tmp_path, "grpo") as log:
        log.write(12, {"loss": 0.123456, "reward/mean": 1.5, "sql/p50_ms": 3.0, "kl": math.inf})
    assert caplog.messages == ["grpo    12  loss 0.1235  mean 1.5"]
