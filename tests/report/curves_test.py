from __future__ import annotations

import json
from collections.abc import Callable

from sqlr1_jax.report import charts, curves, page, run_record
from sqlr1_jax.rl import reward
from sqlr1_jax.sql.outcome import OutcomeKind

STYLE = (page.TEMPLATES / "style.css").read_text(encoding="utf-8")


def test_every_outcome_and_line_has_a_color() -> None:
    assert set(curves.OUTCOME_TONES) == set(OutcomeKind)
    for tone in {*curves.OUTCOME_TONES.values(), *curves.GROUP_TONES.values(), *charts.LINE_TONES}:
        assert f".tone-{tone} {{" in STYLE


def test_every_reward_part_is_drawn(fake_run: Callable) -> None:
    run = fake_run().settings()
    values = {f"reward/{name}": 1.0 for name in reward.PARTS}
    (run.workdir / "metrics.jsonl").write_text(json.dumps({"stage": "grpo", "step": 1, **values}) + "\n")
    [chart] = [chart for chart in curves.grpo(run_record.read_run(run.workdir)) if chart.title == "Reward by part"]
    assert [series.name for series in chart.series] == list(reward.PARTS)


def test_a_complete_run_has_all_charts_of_grpo(fake_run: Callable) -> None:
    by_title = {chart.title: chart for chart in curves.grpo(run_record.read_run(fake_run().whole().workdir))}
    assert list(by_title)[:5] == [
        "Accuracy during training",
        "Reward",
        "Reward by part",
        "Groups",
        "Outcomes of the samples",
    ]
    assert {"KL to the cold start", "Entropy", "Trainer vs. sampler", "Completion length"} <= set(by_title)
    assert [series.name for series in by_title["Reward by part"].series] == list(reward.PAPER_PARTS)
    assert [series.name for series in by_title["Groups"].series] == ["all right", "mixed", "all wrong"]
    # Outcomes that never occurred are not in the legend.
    assert [series.name for series in by_title["Outcomes of the samples"].series] == [
        "match",
        "mismatch",
        "syntax_error",
    ]


def test_the_accuracy_curve_starts_with_the_cold_start(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().whole().workdir)
    accuracy = curves.grpo(record)[0]
    assert json.loads(accuracy.hover)["steps"] == [0, 20, 40, 60]
    assert "subset of 100 held-out questions. Best: 75 %." in accuracy.hint


def test_the_length_limit_is_drawn_if_completions_come_near_it(fake_run: Callable) -> None:
    def count_limits(limit: int) -> int:
        run = fake_run().settings()
        text = (run.workdir / "config.json").read_text()
        (run.workdir / "config.json").write_text(text.replace('"max_tokens": 2048', f'"max_tokens": {limit}'))
        (run.workdir / "metrics.jsonl").unlink(missing_ok=True)
        by_title = {chart.title: chart for chart in curves.grpo(run_record.read_run(run.grpo(5).workdir))}
        return len(by_title["Completion length"].limits)

    assert count_limits(112) == 1
    assert count_limits(2048) == 0


def test_a_stage_without_steps_has_no_charts(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().settings().sft(3).workdir)
    assert curves.grpo(record) == []
    assert [chart.title for chart in curves.sft(record)] == ["Loss", "Entropy", "Gradient norm", "Learning rate"]
