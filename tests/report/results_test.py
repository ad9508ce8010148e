from __future__ import annotations

from collections.abc import Callable

import pytest

from sqlr1_jax.evaluate import accuracy, summary
from sqlr1_jax.report import results, run_record
from sqlr1_jax.report.run_record import RunRecord


@pytest.fixture
def record(fake_run: Callable) -> RunRecord:
    return run_record.read_run(fake_run().whole().workdir)


def test_the_headline_equals_the_gain_of_the_summary(record: RunRecord) -> None:
    gain, low, high = summary.gain(record.workdir)
    headline = results.headline(record)
    assert headline is not None
    assert (headline.difference, headline.interval) == (pytest.approx(gain), (low, high))
    assert (headline.n, headline.after) == (210, record.after.figures["heldout"]["ex_greedy"])  # type: ignore[union-attr]


def test_before_grpo_the_headline_has_no_difference(fake_run: Callable) -> None:
    headline = results.headline(run_record.read_run(fake_run().settings().evaluation("sft", cured=False).workdir))
    assert headline is not None
    assert (headline.before, headline.difference, headline.interval) == (None, None, None)


def test_gains_by_habit_are_paired_and_in_the_given_order(record: RunRecord) -> None:
    rows = results.by_field(record, "habit", results.HABITS)
    assert [row.label for row in rows] == list(results.HABITS.values())
    assert sum(row.n for row in rows) == 210
    for row, habit in zip(rows, results.HABITS, strict=True):
        gain, low, high = summary.gain(record.workdir, habit=habit)
        assert row.difference == pytest.approx(gain)
        assert row.interval == (low, high)


def test_families_are_sorted_best_first(record: RunRecord) -> None:
    rows = results.by_field(record, "family")
    assert len(rows) == 7
    assert [row.after for row in rows] == sorted((row.after for row in rows), reverse=True)
    assert "nested average" in {row.label for row in rows}


def test_complexity_comes_from_greedy_json(record: RunRecord) -> None:
    labels = {name: name for name in ("Simple", "Moderate", "Complex", "Highly Complex", "challenging")}
    rows = results.by_report(record, "complexity", labels)
    assert [(row.label, row.n) for row in rows] == [
        ("Simple", 53), ("Moderate", 53), ("Complex", 52), ("Highly Complex", 52),
    ]  # fmt: skip
    assert rows[0].after == record.after.report["heldout"]["by_complexity"]["Simple"]["ex"]  # type: ignore[union-attr]


def test_data_without_labels_have_no_breakdown_and_no_story(record: RunRecord) -> None:
    for evaluation in record.evaluations.values():
        for line in evaluation.lines["heldout"].values():
            line |= {"family": "", "habit": ""}
    assert results.by_field(record, "family") == []
    assert results.story(record) is None


def test_the_story_has_the_figures_of_the_run(record: RunRecord) -> None:
    story = results.story(record)
    assert story is not None
    assert (story.teacher_errors, story.questions) == (0.75, 16_000)
    assert story.learned
    with_habit = [i for i, line in record.after.lines["heldout"].items() if line["habit"]]  # type: ignore[union-attr]
    correct = record.after.correct()  # type: ignore[union-attr]
    assert story.habit_after == accuracy.fraction_correct(correct[i] for i in with_habit)
    assert story.share_before == pytest.approx(0.8, abs=0.1)
    assert story.share_after == pytest.approx(0.1, abs=0.1)


def test_other_data_have_no_story(fake_run: Callable) -> None:
    run = fake_run().whole()
    text = (run.workdir / "config.json").read_text()
    (run.workdir / "config.json").write_text(text.replace('"train": "synth:"', '"train": "spider:/data/spider"'))
    other = run_record.read_run(run.workdir)
    assert results.story(other) is None
    assert [name for name, _ in results.table(other)] == ["Held out", "Held out"]


def test_answers_without_sql_do_not_count_for_the_habit_share(record: RunRecord) -> None:
    assert record.before is not None
    lines = [line for line in record.before.lines["heldout"].values() if line["habit"] == "dropped_distinct"]
    for line in lines:
        line["sql"] = None
    assert results.habit_share(record.before, ["dropped_distinct"]) is None
    lines[0]["sql"] = "SELECT 1"
    assert results.habit_share(record.before, ["dropped_distinct"]) == 1


def test_changes_count_every_question_once(record: RunRecord) -> None:
    changes = results.changes(record)
    assert changes is not None
    assert sum(changes.counts.values()) == 210
    before, after = (evaluation.correct() for evaluation in record.evaluations.values())
    assert changes.counts["fixed"] == sum(after[i] and not before[i] for i in before)
    assert changes.counts["broken"] == sum(before[i] and not after[i] for i in before)
    fixed = changes.examples["fixed"]
    assert len(fixed) == 3
    assert {change.line["habit"] for change in fixed} == {"extra_column", "dropped_distinct", ""}
    assert all(change.outcomes[1] == "match" != change.outcomes[0] for change in fixed)


def test_the_table_has_every_figure_of_every_set(record: RunRecord) -> None:
    table = results.table(record)
    assert [name for name, _ in table] == ["Unseen databases", "Half-new names"]
    labels = [row.label for row in table[0][1]]
    assert labels == ["Greedy", "Vote of 8", "pass@8", "Well-formed"]
    assert [row.n for row in table[1][1]] == [50] * 4


def test_outcomes_come_from_greedy_json(record: RunRecord) -> None:
    (title_before, before), (title_after, after) = results.outcomes(record)
    assert (title_before, title_after) == ("Before", "After")
    assert sum(n for _, n, _ in before) == sum(n for _, n, _ in after) == 210
    assert sum(fraction for *_, fraction in after) == pytest.approx(1)
