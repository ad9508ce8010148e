from __future__ import annotations

from collections.abc import Callable

import pytest

from sqlr1_jax.report import run_record, samples


def test_the_last_step_comes_first_with_best_and_worst_samples(fake_run: Callable) -> None:
    last, first = samples.choose_samples(run_record.read_run(fake_run().settings().grpo().workdir), per_step=2)
    assert (last.step, first.step, last.count) == (60, 1, 4)
    question = last.questions[0]
    assert question.question == "Which breed is the oldest, at step 60, question 0?"
    assert [kind for kind, _ in question.outcomes] == ["match", "mismatch", "syntax_error", "bad_format"]
    best, worst = question.samples
    assert (best.title, best.outcome, best.total, best.rows) == ("Best", "match", "+6.61", [["terrier"]])
    assert best.parts == [("format", "+1"), ("execution", "+2"), ("result", "+3"), ("length", "+0.61")]
    assert best.reasoning == "show breed in dogs; sort age desc"
    assert (worst.outcome, worst.sql, worst.text, worst.advantage) == ("bad_format", "", "<think> lost", "−1.1")


def test_mixed_groups_come_before_all_wrong_ones(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().settings().grpo().workdir)
    lines = record.rollouts[-1][1]
    lines[0]["samples"] = lines[0]["samples"][1:]  # all wrong
    questions = samples.choose_samples(record, per_step=4)[0].questions
    assert questions[-1].question.endswith("question 0?")


def test_a_group_with_equal_rewards_shows_one_sample(fake_run: Callable) -> None:
    record = run_record.read_run(fake_run().settings().grpo().workdir)
    for line in record.rollouts[-1][1]:
        line["samples"] = line["samples"][:1] * 3
    assert [sample.title for sample in samples.choose_samples(record)[0].questions[0].samples] == [
        "All have the same reward"
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "+1"), (-2.0, "−2"), (0.0, "0"), (0.613, "+0.61"), (-0.001, "0"), (10.0, "+10")]
)
def test_signed_numbers(value: float, text: str) -> None:
    assert samples.signed(value) == text
