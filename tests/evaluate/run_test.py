from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import answer, order
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.evaluate import run as evaluation
from sqlr1_jax.io import read_jsonl
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.train.context import RunContext
from testing.scripted_sampler import ScriptedSampler

Say = Callable[[Any, int], str]


def _engine(context: RunContext, monkeypatch: pytest.MonkeyPatch, say: Say) -> ScriptedSampler:
    """The run's sampler is told, by example, what to say."""
    by_text = {
        prompt.text: example
        for held in evaluation.load_heldout_sets(context)
        for example, prompt in zip(held.examples, held.prompts, strict=True)
    }
    engine = ScriptedSampler(context, lambda text, g: say(by_text[text], g))
    monkeypatch.setattr(RunContext, "engine", lambda self, prompts: engine)
    return engine


def _with(context: RunContext, **evaluate: Any) -> RunContext:
    """Answers of up to 160 tokens, and these settings of the evaluation."""
    grpo = dataclasses.replace(context.config.grpo, sampling=config.SamplingConfig(max_tokens=160))
    changed = dataclasses.replace(context.config.evaluate, **evaluate)
    return dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=grpo, evaluate=changed))


def _said(sql: str) -> str:
    return answer.write("t", sql, "reasoning")


def _number(example: Any) -> int:
    return sum(map(ord, example.id))


def _script(example: Any, g: int) -> str:
    """The first sample is right on even items and has no form on odd ones; the second is wrong."""
    if g == 0:
        return _said(example.sql) if _number(example) % 2 == 0 else "no form"
    return _said("SELECT 'wrong'")


def test_sets_are_the_two_splits_of_the_embedded_data_or_the_one_of_another(context: RunContext) -> None:
    sets = evaluation.load_heldout_sets(context)
    assert [(held.name, len(held.examples), len(held.prompts)) for held in sets] == [
        ("heldout", 6, 6),
        ("newnames", 4, 4),
    ]
    data = dataclasses.replace(context.config.data, evaluate=f"synsql:{context.data_dir / 'grpo.json'}")
    other = dataclasses.replace(context, config=dataclasses.replace(context.config, data=data))
    assert [(held.name, len(held.examples)) for held in evaluation.load_heldout_sets(other)] == [("heldout", 12)]


def test_a_set_is_asked_whole_so_many_prompts_at_a_time(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = _with(context, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, lambda example, g: f"{example.id} {g}")
    held = evaluation.load_heldout_sets(context)[0]
    texts = evaluation.sample_texts(context, engine, None, held.prompts, 2, 0.8)
    assert texts == [[f"{example.id} {g}" for g in range(2)] for example in held.examples]
    assert (engine.requests, engine.max_concurrent_prompts) == ([(0, 6, 0.8, evaluation.EVALUATION_STEP)], [4])


def test_a_prompt_over_the_budget_is_asked_nothing_and_counts_as_wrong(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, lambda example, g: _said(example.sql))
    held = evaluation.load_heldout_sets(context)[0]
    prompts = [dataclasses.replace(p, over_budget=i == 2) for i, p in enumerate(held.prompts)]
    texts = evaluation.sample_texts(context, engine, None, prompts, 1, 0.0)
    assert [text == "" for [text] in texts] == [False, False, True, False, False, False]
    judged = accuracy.execute_candidates(executor, held.examples, texts, "reasoning", "spider")
    assert [group[0].right for group in judged] == [True, True, False, True, True, True]
    assert [count for _, count, _, _ in engine.requests] == [5]


def test_greedy_accuracy_is_of_the_fixed_subset(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, subset=4, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, _script)
    held = evaluation.load_heldout_sets(context)[0]
    chosen = order.subset(6, 4, context.config.seed)
    want = np.mean([_number(held.examples[i]) % 2 == 0 for i in chosen])
    assert evaluation.greedy_accuracy(context, engine, executor, None, held) == want
    assert engine.requests == [(0, 4, 0.0, evaluation.EVALUATION_STEP)]


def test_an_evaluation_leaves_the_files_and_figures_of_the_design(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, votes=2, max_concurrent_prompts=4)
    _engine(context, monkeypatch, _script)
    figures = evaluation.evaluate(context, "final", None, "grpo, step 4", executor)
    folder = context.workdir / "evaluation" / "final"
    greedy = list(read_jsonl(folder / "greedy.jsonl"))
    votes = list(read_jsonl(folder / "vote2.jsonl"))
    for held in evaluation.load_heldout_sets(context):
        right = [_number(example) % 2 == 0 for example in held.examples]
        lines = [line for line in greedy if line["set"] == held.name]
        assert [line["id"] for line in lines] == [example.id for example in held.examples]
        assert [line["gold"] for line in lines] == [example.sql for example in held.examples]
        assert [OutcomeKind(line["outcome"]).correct for line in lines] == right
        share = float(np.mean(right))
        # Where the first vote has no form the second wins alone; where it is right they tie, and the first seen wins.
        assert figures[held.name] == {
            "ex_greedy": share, "ex_vote2": share, "pass2": share, "well_formed": share, "n": len(right),
        }  # fmt: skip
        report = json.loads((folder / "greedy.json").read_text())[held.name]
        assert report["all"] == {"n": len(right), "ex": share}
        assert sum(part["n"] for part in report["by_family"].values()) == len(right)
        assert sum(report["outcomes"].values()) == len(right)
        assert report["outcomes"].get("bad_format", 0) == right.count(False)
    assert {line["outcome"] for line in votes} <= {"match", "match_empty", "mismatch"}
    assert all(len(line["candidates"]) == 2 for line in votes)
    assert json.loads((folder / "vote2.json").read_text()).keys() == {"heldout", "newnames"}
    assert not list(folder.glob("*.part"))


def test_an_evaluation_that_is_there_is_only_read(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    context = _with(context, votes=1, max_concurrent_prompts=8)
    engine: Any = _engine(context, monkeypatch, _script)
    first = evaluation.evaluate(context, "sft", None, "sft, step 4", executor)
    asked = len(engine.requests)
    with caplog.at_level(logging.INFO):
        assert evaluation.evaluate(context, "sft", None, "sft, step 4", executor) == first
    assert len(engine.requests) == asked


def test_other_weights_are_evaluated_anew(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    """A run that goes on with more steps has other final weights: the figures of the old ones are not theirs."""
    context = _with(context, votes=1, max_concurrent_prompts=8)
    _engine(context, monkeypatch, _script)
    first = evaluation.evaluate(context, "final", None, "grpo, step 4", executor)
    monkeypatch.setattr(accuracy, "fraction_correct", lambda flags: 0.125)
    assert evaluation.evaluate(context, "final", None, "grpo, step 4", executor) == first
    again = evaluation.evaluate(context, "final", None, "grpo, step 8", executor)
    assert again["heldout"]["ex_greedy"] == 0.125
    done = context.workdir / "evaluation" / "final" / "figures.json"
    evaluation.discard_stale_figures(context, "final", "grpo, step 8")
    assert done.exists()
    evaluation.discard_stale_figures(context, "final", "grpo, step 12")
    assert not done.exists()


def test_one_that_was_cut_short_is_made_again(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, votes=1, max_concurrent_prompts=8)
    _engine(context, monkeypatch, _script)
    first = evaluation.evaluate(context, "final", None, "grpo, step 4", executor)
    folder = context.workdir / "evaluation" / "final"
    lines = (folder / "greedy.jsonl").read_bytes()
    (folder / "figures.json").unlink()
    (folder / "greedy.jsonl").write_bytes(lines[:20])
    assert evaluation.evaluate(context, "final", None, "grpo, step 4", executor) == first
    assert (folder / "greedy.jsonl").read_bytes() == lines


def test_no_step_of_training_shares_the_evaluations_random_numbers() -> None:
    """The step is the last that int32 holds: a training step would have to come after it."""
    assert np.int32(evaluation.EVALUATION_STEP) == np.iinfo(np.int32).max
