from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

from sqlr1_jax import config, config_checks
from sqlr1_jax.data import answer
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.evaluate import chunks
from sqlr1_jax.evaluate.run import EVALUATION_STEP
from sqlr1_jax.rl import difficulty
from sqlr1_jax.rl.prompt_set import PromptSet, load_prompts
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train.context import RunContext
from testing.scripted_sampler import ScriptedSampler

WEIGHTS = {"w": jnp.ones(3)}
RIGHT = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]  # right completions, of 4, of each of the 12 questions


def _with(context: RunContext, samples: int = 4, **changed: Any) -> RunContext:
    """The run with these settings of grpo.difficulty, and chunks of one database."""
    grpo = dataclasses.replace(
        context.config.grpo,
        sampling=config.SamplingConfig(temperature=0.9, max_tokens=160),
        difficulty=config.DifficultyConfig(samples=samples, **changed),
    )
    evaluate = dataclasses.replace(context.config.evaluate, max_concurrent_prompts=1)
    return dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=grpo, evaluate=evaluate))


def _engine(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, write: Callable[[int, Any, int], str] | None = None
) -> Any:
    """A sampler whose completion g of question i is write(i, example, g), by default as RIGHT says, in place of all."""
    prompt_set = load_prompts(context)
    numbers = {prompt.text: i for i, prompt in enumerate(prompt_set.prompts)}

    def completion(text: str, g: int) -> str:
        i = numbers[text]
        if write:
            return write(i, prompt_set.examples[i], g)
        return _answer(prompt_set.examples[i].sql if g < RIGHT[i] else "SELECT 'wrong'")

    engine = ScriptedSampler(context, completion)
    monkeypatch.setattr(RunContext, "engine", lambda self, prompts, prompt_tokens=0: engine)
    return engine


def _answer(sql: str) -> str:
    return answer.write("t", sql, "reasoning")


def _select(context: RunContext, executor: Executor, params: Any = WEIGHTS) -> list[int]:
    """Positions of the chosen questions among all."""
    everything = load_prompts(context)
    chosen = difficulty.select_prompts(context, executor, params, everything)
    assert [prompt.example_id for prompt in chosen.prompts] == [example.id for example in chosen.examples]
    return [everything.examples.index(example) for example in chosen.examples]


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1, 0, "7 are right in 1 to 3 of 4 completions, 2 in more (too easy), 3 in fewer (too hard)"),
        (2, 4, "6 are right in 2 to 4 of 4 completions, 0 in more (too easy), 6 in fewer (too hard)"),
        (0, 1, "6 are right in 0 to 1 of 4 completions, 6 in more (too easy), 0 in fewer (too hard)"),
    ],
)
def test_questions_right_in_the_range_are_kept(
    context: RunContext, executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    low: int, high: int, message: str,
) -> None:  # fmt: skip
    context = _with(context, min_right=low, max_right=high)
    engine = _engine(context, monkeypatch)
    with caplog.at_level(logging.INFO):
        chosen = _select(context, executor)
    assert chosen == [i for i, right in enumerate(RIGHT) if low <= right <= (high or 3)]
    assert f"of 12 questions, {message}" in caplog.text
    examples = load_prompts(context).examples
    _, *lines = map(json.loads, (context.workdir / "difficulty.jsonl").open())
    assert lines == [
        {"id": example.id, "db_id": example.db_id, "right": right, "samples": 4}
        for example, right in zip(examples, RIGHT, strict=True)
    ]
    assert {(temperature, step) for _, _, temperature, step in engine.requests} == {(0.9, EVALUATION_STEP - 1)}
    assert sum(count for _, count, _, _ in engine.requests) == 12
    assert not (context.workdir / "difficulty.partial.jsonl").exists()


def test_without_samples_every_question_is_trained_on(context: RunContext, executor: Executor) -> None:
    everything = load_prompts(context)
    assert difficulty.select_prompts(context, executor, WEIGHTS, everything) is everything
    assert not (context.workdir / "difficulty.jsonl").exists()


def test_a_completion_is_right_as_the_reward_says(
    context: RunContext, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the answer form, and not by two empty results."""

    def write(i: int, example: Any, g: int) -> str:
        del g
        return [_answer(example.sql), f"```sql\n{example.sql}\n```", _answer(f"{example.sql} ")][i % 3]

    context = _with(context, samples=2, min_right=2, max_right=2)
    _engine(context, monkeypatch, write)
    assert _select(context, executor) == [i for i in range(12) if i % 3 != 1]
    everything = load_prompts(context)
    empty = [dataclasses.replace(e, sql=f"SELECT * FROM ({e.sql}) WHERE 0") for e in everything.examples]
    _engine(context, monkeypatch, lambda i, example, g: _answer(empty[i].sql))
    with pytest.raises(ConfigError, match="leaves no question"):
        difficulty.select_prompts(context, executor, WEIGHTS, PromptSet(empty, everything.prompts))
    match = dataclasses.replace(context.config.grpo, reward=config.RewardConfig(empty_match="match"))
    context = dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=match))
    chosen = difficulty.select_prompts(context, executor, WEIGHTS, PromptSet(empty, everything.prompts))
    assert len(chosen.examples) == 12


def test_a_limit_takes_about_as_many_questions_of_each_database(
    context: RunContext, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = _with(context, limit=6, min_right=0, max_right=4)
    _engine(context, monkeypatch)
    chosen = _select(context, executor)
    examples = load_prompts(context).examples
    assert chosen == sorted(chosen) and len(chosen) == 6
    assert sorted(examples[i].db_id for i in chosen) == sorted(2 * list({e.db_id for e in examples}))
    _, *lines = map(json.loads, (context.workdir / "difficulty.jsonl").open())
    assert [line["right"] for line in lines] == [RIGHT[i] for i in chosen]


def test_counts_on_disk_are_read_also_for_another_range(
    context: RunContext, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(context, monkeypatch)
    first = _select(_with(context), executor)
    rollouts = len(engine.requests)
    context.checkpoints("grpo").save(3, {"params": WEIGHTS})
    assert _select(_with(context), executor) == first
    assert _select(_with(context, max_right=1), executor) == [1, 6, 11]
    assert len(engine.requests) == rollouts


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_stopped_measurement_resumes_to_the_same_bytes(
    context: RunContext, executor: Executor, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROUNDS", 1)
    context = _with(context)
    engine = _engine(context, monkeypatch)
    chosen = _select(context, executor)
    file = context.workdir / "difficulty.jsonl"
    whole, rollouts = file.read_bytes(), len(engine.requests)
    assert rollouts == 3
    file.unlink()
    rollout = engine.rollout

    def stop(*arguments: Any) -> Any:
        if len(engine.requests) == rollouts + stop_after:
            raise KeyboardInterrupt
        return rollout(*arguments)

    engine.rollout = stop
    with pytest.raises(KeyboardInterrupt):
        _select(context, executor)
    assert not file.exists()
    engine.rollout = rollout
    assert _select(context, executor) == chosen
    assert file.read_bytes() == whole
    assert len(engine.requests) == 2 * rollouts, "chunks before the stop are not sampled again"


def test_other_weights_are_measured_before_training_and_refused_after(
    context: RunContext, executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    context = _with(context)
    engine = _engine(context, monkeypatch)
    _select(context, executor)
    rollouts = len(engine.requests)
    checkpoints = context.checkpoints("grpo")
    checkpoints.save(0, {"params": WEIGHTS})
    checkpoints.wait()
    with caplog.at_level(logging.INFO):
        _select(context, executor, {"w": jnp.zeros(3)})
    assert "was made with other weights: measuring again" in caplog.text
    assert len(engine.requests) == 2 * rollouts
    checkpoints.save(2, {"params": WEIGHTS})
    checkpoints.wait()
    with pytest.raises(ConfigError, match=r"other weights, and the run has trained 2 steps .* another --workdir"):
        _select(context, executor)
    (context.workdir / "difficulty.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"is missing, and the run has trained 2 steps"):
        _select(context, executor)


def test_a_choice_of_no_question_says_what_to_do(
    context: RunContext, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = _with(context)
    _engine(context, monkeypatch, lambda i, example, g: "no form")
    with pytest.raises(ConfigError, match=r"0 are right in 1 to 3 of 4 .*12 in fewer \(too hard\)\. Widen grpo\."):
        _select(context, executor)


def test_no_training_step_has_the_sampling_keys_of_this_measurement() -> None:
    last_training_step = config_checks.STEPS.high - 1
    assert last_training_step < difficulty.DIFFICULTY_STEP < EVALUATION_STEP
