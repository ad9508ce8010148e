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

Completion = Callable[[Any, int], str]


def _engine(context: RunContext, monkeypatch: pytest.MonkeyPatch, completion: Completion) -> ScriptedSampler:
    """Replaces the run's sampler: it answers the prompt of an example with completion(example, sample)."""
    by_text = {
        prompt.text: example
        for heldout in evaluation.load_heldout_sets(context)
        for example, prompt in zip(heldout.examples, heldout.prompts, strict=True)
    }
    engine = ScriptedSampler(context, lambda text, g: completion(by_text[text], g))
    monkeypatch.setattr(RunContext, "engine", lambda self, prompts: engine)
    return engine


def _with(context: RunContext, **evaluate: Any) -> RunContext:
    """The run with completions of up to 160 tokens and these settings of `evaluate`."""
    grpo_config = dataclasses.replace(context.config.grpo, sampling=config.SamplingConfig(max_tokens=160))
    evaluate_config = dataclasses.replace(context.config.evaluate, **evaluate)
    return dataclasses.replace(
        context, config=dataclasses.replace(context.config, grpo=grpo_config, evaluate=evaluate_config)
    )


def _answer(sql: str) -> str:
    return answer.write("t", sql, "reasoning")


def _number(example: Any) -> int:
    return sum(map(ord, example.id))


def _script(example: Any, g: int) -> str:
    """The first sample is correct on even items and has no SQL on odd ones; the second is wrong."""
    if g == 0:
        return _answer(example.sql) if _number(example) % 2 == 0 else "no form"
    return _answer("SELECT 'wrong'")


def test_heldout_sets_are_two_of_the_embedded_data_and_one_of_other_data(context: RunContext) -> None:
    sets = evaluation.load_heldout_sets(context)
    assert [(heldout.name, len(heldout.examples), len(heldout.prompts)) for heldout in sets] == [
        ("heldout", 6, 6),
        ("newnames", 4, 4),
    ]
    data = dataclasses.replace(context.config.data, evaluate=f"synsql:{context.data_dir / 'grpo.json'}")
    other = dataclasses.replace(context, config=dataclasses.replace(context.config, data=data))
    assert [(heldout.name, len(heldout.examples)) for heldout in evaluation.load_heldout_sets(other)] == [
        ("heldout", 12)
    ]


def test_all_prompts_of_a_set_are_sampled_with_the_configured_concurrency(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = _with(context, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, lambda example, g: f"{example.id} {g}")
    heldout = evaluation.load_heldout_sets(context)[0]
    texts = evaluation.sample_texts(context, engine, None, heldout.prompts, 2, 0.8)
    assert texts == [[f"{example.id} {g}" for g in range(2)] for example in heldout.examples]
    assert (engine.requests, engine.max_concurrent_prompts) == ([(0, 6, 0.8, evaluation.EVALUATION_STEP)], [4])


def test_a_prompt_over_the_budget_is_not_sampled_and_counts_as_wrong(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, lambda example, g: _answer(example.sql))
    heldout = evaluation.load_heldout_sets(context)[0]
    prompts = [dataclasses.replace(p, over_budget=i == 2) for i, p in enumerate(heldout.prompts)]
    texts = evaluation.sample_texts(context, engine, None, prompts, 1, 0.0)
    assert [text == "" for [text] in texts] == [False, False, True, False, False, False]
    candidates = accuracy.execute_candidates(executor, heldout.examples, texts, "reasoning", "spider")
    assert [group[0].correct for group in candidates] == [True, True, False, True, True, True]
    assert [count for _, count, _, _ in engine.requests] == [5]


def test_greedy_accuracy_covers_the_fixed_subset(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, subset=4, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, _script)
    heldout = evaluation.load_heldout_sets(context)[0]
    chosen = order.subset(6, 4, context.config.seed)
    want = np.mean([_number(heldout.examples[i]) % 2 == 0 for i in chosen])
    assert evaluation.greedy_accuracy(context, engine, executor, None, heldout) == want
    assert engine.requests == [(0, 4, 0.0, evaluation.EVALUATION_STEP)]


def test_an_evaluation_writes_its_files_and_figures(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, votes=2, max_concurrent_prompts=4)
    _engine(context, monkeypatch, _script)
    figures = evaluation.evaluate(context, "final", None, "grpo, step 4", executor)
    folder = context.workdir / "evaluation" / "final"
    greedy = list(read_jsonl(folder / "greedy.jsonl"))
    votes = list(read_jsonl(folder / "vote2.jsonl"))
    for heldout in evaluation.load_heldout_sets(context):
        correct = [_number(example) % 2 == 0 for example in heldout.examples]
        lines = [line for line in greedy if line["set"] == heldout.name]
        assert [line["id"] for line in lines] == [example.id for example in heldout.examples]
        assert [line["gold"] for line in lines] == [example.sql for example in heldout.examples]
        assert [OutcomeKind(line["outcome"]).correct for line in lines] == correct
        share = float(np.mean(correct))
        # On odd items only the second candidate can win; on even ones the two tie, and the first seen wins.
        assert figures[heldout.name] == {
            "ex_greedy": share, "ex_vote2": share, "pass2": share, "well_formed": share, "n": len(correct),
        }  # fmt: skip
        report = json.loads((folder / "greedy.json").read_text())[heldout.name]
        assert report["all"] == {"n": len(correct), "ex": share}
        assert sum(part["n"] for part in report["by_family"].values()) == len(correct)
        assert sum(report["outcomes"].values()) == len(correct)
        assert report["outcomes"].get("no_sql", 0) == correct.count(False)
    assert {line["outcome"] for line in votes} <= {"match", "match_empty", "mismatch"}
    assert all(len(line["candidates"]) == 2 for line in votes)
    assert json.loads((folder / "vote2.json").read_text()).keys() == {"heldout", "newnames"}
    assert not list(folder.glob("*.part"))


def test_a_complete_evaluation_is_read_and_not_repeated(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    context = _with(context, votes=1, max_concurrent_prompts=8)
    engine: Any = _engine(context, monkeypatch, _script)
    first = evaluation.evaluate(context, "sft", None, "sft, step 4", executor)
    rollouts = len(engine.requests)
    with caplog.at_level(logging.INFO):
        assert evaluation.evaluate(context, "sft", None, "sft, step 4", executor) == first
    assert len(engine.requests) == rollouts


def test_other_weights_are_evaluated_again(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    """A run continued with more steps has other final weights, so the old figures are stale."""
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


def test_an_interrupted_evaluation_is_repeated(
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


def test_the_evaluation_step_is_past_all_training_steps() -> None:
    """The evaluation step is the last that int32 holds."""
    assert np.int32(evaluation.EVALUATION_STEP) == np.iinfo(np.int32).max
