from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.report import run_record


def test_a_folder_that_is_not_a_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json\. Check --workdir="):
        run_record.read_run(tmp_path)


def test_a_run_that_has_just_started_has_only_settings(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().settings().workdir)
    assert record.setting("grpo.samples") == 8
    assert record.setting("grpo.sample", "none") == "none"
    assert record.latest is None
    assert (record.metrics, record.rollouts, record.summary) == ({}, [], {})


def test_a_complete_run_has_metrics_rollouts_and_evaluations(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().whole().workdir)
    assert len(record.steps("sft", "loss")) == 90
    assert [step for step, _ in record.steps("grpo", "evaluate/ex")] == [20, 40, 60]
    assert [(step, len(lines)) for step, lines in record.rollouts] == [(1, 4), (60, 4)]
    assert record.after is not None
    assert record.after.figures["heldout"]["n"] == len(record.after.correct()) == 210


def test_sft_subset_accuracy_is_that_of_the_cold_start(fake_run: Callable) -> None:
    run = fake_run().whole()
    record = run_record.read_run(run.workdir)
    correct = list(record.before.correct().values())  # type: ignore[union-attr]
    assert record.sft_subset_accuracy() == pytest.approx(sum(correct) / len(correct), abs=0.1)
    whole_set = dict(record.config) | {"evaluate": {"subset": len(correct)}}
    (run.workdir / "config.json").write_text(json.dumps(whole_set))
    assert run_record.read_run(run.workdir).sft_subset_accuracy() == sum(correct) / len(correct)


def test_an_incomplete_evaluation_is_skipped(fake_run: Callable) -> None:
    run = fake_run().settings().evaluation("sft", cured=False)
    (run.workdir / "evaluation" / "sft" / "figures.json").unlink()
    assert run_record.read_run(run.workdir).before is None


def test_without_grpo_there_is_no_evaluation_after(fake_run: Callable) -> None:
    run = fake_run().settings().evaluation("sft", cured=False).evaluation("final", cured=False)
    assert run_record.read_run(run.workdir).after is None
    assert run_record.read_run(run.grpo().workdir).after is not None


def test_a_final_evaluation_alone_is_the_latest(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().settings().evaluation("final", cured=True).workdir)
    assert record.before is None
    assert record.latest is record.after is not None


def test_broken_files_are_skipped_and_named(fake_run: Callable, caplog: pytest.LogCaptureFixture) -> None:
    run = fake_run().whole()
    (run.workdir / "summary.json").write_text('{"seconds"')
    with (run.workdir / "rollouts" / "step_000060.jsonl").open("a") as file:
        file.write('{"id": "gr')
    with caplog.at_level(logging.WARNING):
        record = run_record.read_run(run.workdir)
    assert record.summary == {}
    assert len(record.rollouts[1][1]) == 4
    assert "summary.json" in caplog.text
    assert "step_000060.jsonl, line 5" in caplog.text


def test_only_rollouts_of_the_first_and_last_step_are_read(fake_run: Callable) -> None:
    run = fake_run().settings().grpo()
    source = (run.workdir / "rollouts" / "step_000001.jsonl").read_text()
    for step in random.Random(0).sample(range(2, 60), 5):
        (run.workdir / "rollouts" / f"step_{step:06d}.jsonl").write_text(source)
    assert [step for step, _ in run_record.read_run(run.workdir).rollouts] == [1, 60]
