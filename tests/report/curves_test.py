from __future__ import annotations

import json
from collections.abc import Callable

from sqlr1_jax.report import curves, run_record
from sqlr1_jax.sql.outcome import OutcomeKind


def test_every_outcome_has_a_colour() -> None:
    assert set(curves.OUTCOMES) == set(OutcomeKind)


def test_grpo_has_all_its_charts(fake_run: Callable) -> None:
    charts = {chart.title: chart for chart in curves.grpo(run_record.read_run(fake_run().whole().workdir))}
    assert list(charts)[:5] == [
        "Accuracy while training",
        "Reward",
        "Reward by part",
        "Groups",
        "Outcomes of the samples",
    ]
    assert {"KL to the cold start", "Entropy", "Trainer against sampler", "Tokens of a completion"} <= set(charts)
    assert [one.name for one in charts["Reward by part"].series] == ["result", "execution", "format", "length"]
    assert [one.name for one in charts["Groups"].series] == ["all right", "mixed", "all wrong"]
    # Outcomes that never came are not in the legend.
    assert [one.name for one in charts["Outcomes of the samples"].series] == ["match", "mismatch", "syntax_error"]


def test_the_watched_accuracy_starts_from_the_cold_start(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().whole().workdir)
    watched = curves.grpo(record)[0]
    assert json.loads(watched.hover)["steps"] == [0, 20, 40, 60]
    assert "subset of 100 held-out questions. Best: 75 %." in watched.hint


def test_the_length_limit_is_drawn_when_near(fake_run: Callable) -> None:
    def tokens(limit: int) -> int:
        run = fake_run().settings()
        text = (run.workdir / "config.json").read_text()
        (run.workdir / "config.json").write_text(text.replace('"max_tokens": 2048', f'"max_tokens": {limit}'))
        (run.workdir / "metrics.jsonl").unlink(missing_ok=True)
        charts = {chart.title: chart for chart in curves.grpo(run_record.read_run(run.grpo(5).workdir))}
        return len(charts["Tokens of a completion"].limits)

    assert tokens(112) == 1
    assert tokens(2048) == 0


def test_stages_that_have_not_begun_have_no_charts(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().settings().sft(3).workdir)
    assert curves.grpo(record) == []
    assert [chart.title for chart in curves.sft(record)] == ["Loss", "Entropy", "Gradient norm", "Learning rate"]
