from __future__ import annotations

from collections.abc import Callable

import pytest

from sqlr1_jax.report import run_record, times


def test_sections_add_up_to_the_time_of_the_steps(fake_run: Callable) -> None:
    shares = times.by_section(run_record.read_run(fake_run().settings().grpo(20).workdir), "grpo")
    seconds = {share.name: share.seconds for share in shares}
    assert seconds == pytest.approx(
        {"rollout": 22, "pack": 0.4, "reward wait": 1, "update": 16, "evaluate": 1.5, times.OTHER: 2.6}
    )
    assert sum(share.fraction for share in shares) == pytest.approx(1, abs=1e-3)


def test_stage_times_come_from_the_summary(fake_run: Callable) -> None:
    shares = times.by_stage(run_record.read_run(fake_run().whole().workdir))
    assert [share.name for share in shares] == ["Data", "Cold start", "GRPO", "Evaluation", "Export"]
    assert shares[2].fraction == pytest.approx(300 / 601)
    assert len({share.tone for share in shares}) == 5


def test_a_run_without_times_has_no_shares(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().settings().workdir)
    assert times.by_stage(record) == times.by_section(record, "grpo") == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (42.4, "42 s"), (61, "1 min 1 s"), (119.7, "2 min 0 s"), (7260, "2 h 1 min")]
)
def test_durations_as_text(seconds: float, text: str) -> None:
    assert times.format_duration(seconds) == text
