from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import answer, order
from sqlr1_jax.evaluate import accuracy, chunks
from sqlr1_jax.evaluate import run as evaluation
from sqlr1_jax.evaluate.heldout import load_heldout_sets
from sqlr1_jax.io import read_jsonl
from sqlr1_jax.progress import Progress
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.train.context import RunContext
from testing.scripted_sampler import ScriptedSampler

Completion = Callable[[Any, int], str]


def _engine(context: RunContext, monkeypatch: pytest.MonkeyPatch, completion: Completion) -> ScriptedSampler:
    """Replaces the run's sampler: it answers the prompt of an example with completion(example, sample)."""
    by_text = {
        prompt.text: example
        for held_out in load_heldout_sets(context)
        for example, prompt in zip(held_out.examples, held_out.prompts, strict=True)
    }
    engine = ScriptedSampler(context, lambda text, g: completion(by_text[text], g))
    monkeypatch.setattr(RunContext, "engine", lambda self, prompts, prompt_tokens=0: engine)
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
    """On even items the greedy answer (the last) and the first candidate are correct; on odd ones neither has SQL."""
    if g != 1:
        return _answer(example.sql) if _number(example) % 2 == 0 else "no form"
    return _answer("SELECT 'wrong'")


def test_all_prompts_of_a_set_are_sampled_with_the_configured_concurrency(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = _with(context, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, lambda example, g: f"{example.id} {g}")
    heldout = load_heldout_sets(context)[0]
    with Progress("sampling", 6, "question") as progress:
        texts = evaluation.sample_texts(context, engine, None, heldout.prompts, (0.8, 0.8), range(6), progress)
    assert texts == [[f"{example.id} {g}" for g in range(2)] for example in heldout.examples]
    assert (engine.requests, engine.max_concurrent_prompts) == ([(0, 6, 0.8, evaluation.EVALUATION_STEP)], [4])


def test_a_prompt_over_the_budget_is_not_sampled_and_counts_as_wrong(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, lambda example, g: _answer(example.sql))
    heldout = load_heldout_sets(context)[0]
    prompts = [dataclasses.replace(p, over_budget=i == 2) for i, p in enumerate(heldout.prompts)]
    with Progress("sampling", 6, "question") as progress:
        texts = evaluation.sample_texts(context, engine, None, prompts, (0.0,), range(6), progress)
        assert "6 of 6 questions" in progress.line()
    assert [text == "" for [text] in texts] == [False, False, True, False, False, False]
    candidates = accuracy.execute_candidates(executor, heldout.examples, texts, "reasoning", "spider")
    assert [group[0].correct for group in candidates] == [True, True, False, True, True, True]
    assert [count for _, count, _, _ in engine.requests] == [5]


def test_greedy_accuracy_covers_the_fixed_subset(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, subset=4, max_concurrent_prompts=4)
    engine: Any = _engine(context, monkeypatch, _script)
    heldout = load_heldout_sets(context)[0]
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
    for heldout in load_heldout_sets(context):
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
        low, high = report["all"].pop("interval")
        assert report["all"] == {"n": len(correct), "ex": share} and low <= share <= high
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


def test_other_weights_questions_or_settings_are_evaluated_again(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    context = _with(context, votes=1, max_concurrent_prompts=8)
    engine: Any = _engine(context, monkeypatch, _script)
    evaluation.evaluate(context, "final", {"w": jnp.ones(3)}, "/models/a", executor)
    rollouts = len(engine.requests)
    evaluation.evaluate(context, "final", {"w": jnp.ones(3)}, "/models/moved", executor)
    assert len(engine.requests) == rollouts
    with caplog.at_level(logging.INFO):
        evaluation.evaluate(context, "final", {"w": jnp.ones(3).at[1].set(2)}, "/models/a", executor)
        assert "results of other weights" in caplog.text
        evaluation.evaluate(_with(context, votes=2), "final", {"w": jnp.ones(3).at[1].set(2)}, "/models/a", executor)
        assert "results of other settings" in caplog.text
    assert len(engine.requests) == 3 * rollouts


def test_figures_of_a_run_that_trained_further_are_discarded(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, votes=1, max_concurrent_prompts=8)
    _engine(context, monkeypatch, _script)
    evaluation.evaluate(context, "final", None, "grpo, step 8", executor)
    done = context.workdir / "evaluation" / "final" / "figures.json"
    evaluation.discard_stale_figures(context, "final", "grpo, step 8")
    assert done.exists()
    evaluation.discard_stale_figures(context, "final", "grpo, step 12")
    assert not done.exists()


def test_an_interrupted_evaluation_resumes_to_the_same_bytes(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    context = _with(context, votes=2, max_concurrent_prompts=1)
    monkeypatch.setattr(chunks, "CHUNK_ROUNDS", 2)
    engine: Any = _engine(context, monkeypatch, _script)
    evaluation.evaluate(context, "whole", None, "grpo, step 4", executor)
    rollouts, stop_after = len(engine.requests), 2
    assert rollouts >= 4

    def stop(*_: Any) -> Any:
        if len(engine.requests) == rollouts + stop_after:
            raise KeyboardInterrupt
        return rollout(*_)

    rollout = engine.rollout
    engine.rollout = stop
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(context, "final", None, "grpo, step 4", executor)
    folder = context.workdir / "evaluation" / "final"
    assert len((folder / "partial.jsonl").read_text().splitlines()) == 1 + stop_after
    engine.rollout = rollout
    evaluation.evaluate(context, "final", None, "grpo, step 4", executor)
    assert len(engine.requests) == 2 * rollouts
    for path in (context.workdir / "evaluation" / "whole").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert not (folder / "partial.jsonl").exists()


def test_one_pass_gives_the_greedy_answer_and_all_candidates(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = _with(context, votes=2, temperature=0.7, top_p=0.9, max_tokens=9, stop=(";",))
    request = evaluation.evaluation_request(context, load_heldout_sets(context)[0].prompts, (0.7, 0.7, 0.0))
    assert (request.samples, request.temperatures) == (3, (0.7, 0.7, 0.0))
    assert dataclasses.astuple(request.sampling) == (0.7, 0.9, 0, 0.0, 9, (";",))


def test_the_evaluation_step_is_past_all_training_steps() -> None:
    """The evaluation step is the last that int32 holds."""
    assert np.int32(evaluation.EVALUATION_STEP) == np.iinfo(np.int32).max
