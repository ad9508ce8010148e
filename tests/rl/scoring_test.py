from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import answer
from sqlr1_jax.data.example import Example
from sqlr1_jax.rl import reward, scoring
from sqlr1_jax.rl.prompt_set import load_prompts
from sqlr1_jax.rl.scoring import StepTimer
from sqlr1_jax.rollout.request import FinishedSample
from sqlr1_jax.sql.executor import Executor, ExecutorError
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.train.context import RunContext
from testing import scripted_sampler


def _answer(sql: str) -> str:
    return answer.write("tables dogs", sql, "reasoning")


GOLDS = ["SELECT count(*) FROM dogs", "SELECT color FROM dogs WHERE age > 90", "SELECT nothing FROM nowhere"]
TEXTS = [
    [_answer("SELECT 4"), _answer("SELECT 5"), "no form at all", "<think>\n\n</think>\n<answer>\n\n</answer>"],
    [_answer("SELECT 1 WHERE 0"), _answer("SELECT broken"), _answer("DROP TABLE dogs"), _answer("SELECT 1") + "…"],
    [_answer("SELECT 1"), _answer("SELECT 2"), "…", ""],
]
KINDS = [
    ["match", "mismatch", "bad_format", "no_sql"],
    ["match_empty", "syntax_error", "denied", "mismatch"],
    ["gold_error", "gold_error", "bad_format", "bad_format"],
]


def _examples(pets: Path) -> list[Example]:
    return [Example(str(i), "pets", pets, "How many dogs?", gold) for i, gold in enumerate(GOLDS)]


def _executed(context: RunContext, executor: Executor, pets: Path) -> tuple:
    completions = scripted_sampler.completions(context, TEXTS)
    execution = _submitted(context, executor, _examples(pets), completions)
    return completions, execution.answers, execution, execution.wait()


def _submitted(
    context: RunContext, executor: Executor, examples: list[Example], completions: Any
) -> scoring.CompletionExecutor:
    """Submits completions one at a time, in the order in which they might finish: the last sample first."""
    execution = scoring.CompletionExecutor(context, executor, examples, completions.length_PG.shape[1])
    for p, g in reversed(list(np.ndindex(completions.length_PG.shape))):
        execution.submit([FinishedSample(p, g, completions.ids(p, g))])
    return execution


def test_completions_are_decoded_parsed_and_executed(context: RunContext, executor: Executor, pets: Path) -> None:
    _, answers, execution, outcomes = _executed(context, executor, pets)
    assert execution.texts == [[text.removesuffix("…") for text in group] for group in TEXTS]
    assert [parsed.sql for parsed in answers[0]] == ["SELECT 4", "SELECT 5", None, None]
    assert [[outcome.kind for outcome in group] for group in outcomes] == KINDS
    assert execution.seconds > 0


def test_rewards_read_answers_strictly(context: RunContext, executor: Executor, pets: Path) -> None:
    """An open answer counts only by its setting; a reply that the prompt opens is read with that opening."""
    whole = _answer("SELECT 4")
    texts = [[whole, whole.removesuffix("</answer>"), "```sql\nSELECT 4\n```"], [whole.removeprefix("<think>\n")] * 3]
    examples = _examples(pets)[:1] * 2

    def problems(context: RunContext, openings: list[str] | None) -> list[list[str | None]]:
        completions = scripted_sampler.completions(context, texts)
        execution = scoring.CompletionExecutor(context, executor, examples, 3, openings)
        execution.submit([FinishedSample(p, g, completions.ids(p, g)) for p, g in np.ndindex(2, 3)])
        execution.wait()
        assert execution.texts == texts
        return [[parsed.problem for parsed in group] for group in execution.answers]

    bad = "bad_format"
    assert problems(context, None) == [[None, bad, bad], [bad] * 3]
    assert problems(context, ["", "<think>\n"]) == [[None, bad, bad], [None] * 3]
    grpo_config = dataclasses.replace(context.config.grpo, reward=config.RewardConfig(open_answer=True))
    context = dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=grpo_config))
    assert problems(context, None) == [[None, None, bad], [bad] * 3]


def test_errors_while_sampling_are_raised_by_wait(context: RunContext, pets: Path) -> None:
    """Raised in the sampler's callback they would leave other processes blocked in a collective."""
    with Executor(config.ExecuteConfig(workers=1)) as executor:
        pass
    completions = scripted_sampler.completions(context, TEXTS[:1])
    execution = _submitted(context, executor, _examples(pets)[:1], completions)
    with pytest.raises(ExecutorError, match="The executor is closed"):
        execution.wait()


@pytest.mark.parametrize("empty", ["mismatch", "match"])
def test_rewards_follow_from_answers_and_outcomes(
    context: RunContext, executor: Executor, pets: Path, empty: str
) -> None:
    grpo_config = dataclasses.replace(context.config.grpo, reward=config.RewardConfig(empty_match=empty))
    context = dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=grpo_config))
    completions, answers, _, outcomes = _executed(context, executor, pets)
    rewards = scoring.compute_rewards(context, _examples(pets), completions, answers, outcomes)
    assert rewards.rewards_PGR.shape == (3, 4, 4)
    for p, g in np.ndindex(3, 4):
        expected = reward.weighted_parts(answers[p][g], outcomes[p][g], grpo_config.reward)
        np.testing.assert_array_equal(rewards.rewards_PGR[p, g], expected)
    assert rewards.correct_PG.tolist() == [
        [True, False, False, False],
        [empty == "match", False, False, False],
        [False] * 4,
    ]
    assert rewards.gold_ran_P.tolist() == [True, True, False]


def test_length_is_measured_in_tokens_with_length_unit_tokens(context: RunContext, pets: Path) -> None:
    grpo_config = dataclasses.replace(context.config.grpo, reward=config.RewardConfig(length_unit="tokens"))
    context = dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=grpo_config))
    completions = scripted_sampler.completions(context, [[_answer("SELECT count(*) FROM dogs")]])
    parsed = answer.read(_answer("SELECT count(*) FROM dogs"), "reasoning")
    rewards = scoring.compute_rewards(
        context, _examples(pets)[:1], completions, [[parsed]], [[Outcome(OutcomeKind.MATCH)]]
    )

    def count(text: str) -> int:
        return len(context.tokenizer(text, add_special_tokens=False)["input_ids"])

    length = count(parsed.think) + count(parsed.answer)
    assert rewards.rewards_PGR[0, 0, 3] == pytest.approx(
        count(parsed.sql or "") / count(parsed.answer) + 0.5 * length / 2048
    )


def test_a_group_is_the_prompt_and_a_segment_per_completion(context: RunContext) -> None:
    prompt_set = load_prompts(context)
    prompts = [prompt_set.prompts[i] for i in (3, 1, 2)]
    completions = scripted_sampler.completions(context, TEXTS)
    groups = scoring.completion_groups(prompts, completions)
    for p, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
        assert list(group.prefix) == list(prompt.ids[:-1])
        for g, segment in enumerate(group.segments):
            n = completions.length_PG[p, g]
            assert list(segment.tokens) == [prompt.ids[-1], *completions.tokens_PGT[p, g, :n]]
            assert list(segment.logprob) == list(completions.logprobs_PGT[p, g, :n])
            assert list(segment.weight) == [1.0] * n
            assert (segment.prompt, segment.sample) == (p, g)


def test_a_section_that_comes_again_adds_to_its_seconds() -> None:
    timer = StepTimer()
    timer.lap("rollout")
    first = timer.seconds["time/rollout"]
    time.sleep(0.01)
    timer.lap("rollout")
    assert timer.seconds["time/rollout"] >= first + 0.01 and list(timer.seconds) == ["time/rollout"]


def test_step_metrics_are_those_of_the_batch(context: RunContext, executor: Executor, pets: Path) -> None:
    completions, answers, execution, outcomes = _executed(context, executor, pets)
    rewards = scoring.compute_rewards(context, _examples(pets), completions, answers, outcomes)
    total_PG = rewards.rewards_PGR.sum(-1)
    timer = StepTimer()
    for name in ("rollout", "pack", "reward_wait", "update"):
        timer.lap(name)
    values = scoring.step_metrics(rewards, reward.PAPER_PARTS, timer, execution.seconds, executor)
    assert values["time/execute"] == execution.seconds
    kinds = [kind for group in KINDS for kind in group]
    for kind in set(kinds):
        assert values[f"outcome/{kind}"] == kinds.count(kind) / 12
    assert sum(value for name, value in values.items() if name.startswith("outcome/")) == pytest.approx(1)
    assert (values["groups/mixed"], values["groups/all_right"], values["groups/all_wrong"]) == (1 / 3, 0, 2 / 3)
    assert values["groups/sampled"] == 3
    assert values["reward/mean"] == pytest.approx(total_PG.mean(), rel=1e-6)
    assert values["reward/std"] == pytest.approx(total_PG.std(), rel=1e-6)
    assert values["reward/result"] == pytest.approx(rewards.rewards_PGR[..., 2].mean(), rel=1e-6)
    assert values["completion/mean_tokens"] == completions.length_PG.mean()
    assert values["completion/max_tokens"] == completions.length_PG.max()
    assert values["completion/truncated"] == 2 / 12
    assert values["tokens"] == completions.length_PG.sum()
    assert all(type(value) is float for value in values.values())


def test_timeouts_are_counted_even_if_the_executor_answers_from_its_cache(context: RunContext, pets: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"
    examples = _examples(pets)[:1]
    with Executor(config.ExecuteConfig(workers=1, max_steps=100_000)) as executor:
        timeouts = []
        for _ in range(2):
            completions = scripted_sampler.completions(context, [[_answer(endless), _answer("SELECT 4")]])
            execution = _submitted(context, executor, examples, completions)
            outcomes = execution.wait()
            assert outcomes[0][0].kind == "timeout"
            rewards = scoring.compute_rewards(context, examples, completions, execution.answers, outcomes)
            timeouts.append(
                scoring.step_metrics(rewards, reward.PAPER_PARTS, StepTimer(), 0.5, executor)["sql/timeouts"]
            )
    assert timeouts == [1, 1]
