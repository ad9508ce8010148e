from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import answer
from sqlr1_jax.data.example import Example
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.rl import reward, scoring
from sqlr1_jax.rl.scoring import StepTimer
from sqlr1_jax.rollout.engine import FinishedSample
from sqlr1_jax.sql.executor import Executor, ExecutorError
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.train.context import RunContext
from testing import scripted_sampler


def _said(sql: str) -> str:
    return answer.write("tables dogs", sql, "reasoning")


GOLDS = ["SELECT count(*) FROM dogs", "SELECT color FROM dogs WHERE age > 90", "SELECT nothing FROM nowhere"]
TEXTS = [
    [_said("SELECT 4"), _said("SELECT 5"), "no form at all", "<think>\n\n</think>\n<answer>\n\n</answer>"],
    [_said("SELECT 1 WHERE 0"), _said("SELECT broken"), _said("DROP TABLE dogs"), _said("SELECT 1") + "…"],
    [_said("SELECT 1"), _said("SELECT 2"), "…", ""],
]
KINDS = [
    ["match", "mismatch", "bad_format", "no_sql"],
    ["match_empty", "syntax_error", "denied", "mismatch"],
    ["gold_error", "gold_error", "bad_format", "bad_format"],
]


def _examples(pets: Path) -> list[Example]:
    return [Example(str(i), "pets", pets, "How many dogs?", gold) for i, gold in enumerate(GOLDS)]


def _outcomes(context: RunContext, executor: Executor, pets: Path) -> tuple:
    made = scripted_sampler.completions(context, TEXTS)
    scorer = _scored(context, executor, _examples(pets), made)
    return made, scorer.answers, scorer, scorer.outcomes()


def _scored(context: RunContext, executor: Executor, examples: list[Example], made: Any) -> scoring.CompletionScorer:
    """Completions handed over as they might end: the last sample first."""
    scorer = scoring.CompletionScorer(context, executor, examples, made.length_PG.shape[1])
    for p, g in reversed(list(np.ndindex(made.length_PG.shape))):
        scorer.finished([FinishedSample(p, g, made.ids(p, g))])
    return scorer


def test_completions_are_read_run_and_judged(context: RunContext, executor: Executor, pets: Path) -> None:
    _, answers, scorer, outcomes = _outcomes(context, executor, pets)
    assert scorer.texts == [[text.removesuffix("…") for text in group] for group in TEXTS]
    assert [one.sql for one in answers[0]] == ["SELECT 4", "SELECT 5", None, None]
    assert [[one.kind for one in group] for group in outcomes] == KINDS
    assert scorer.seconds > 0


def test_what_goes_wrong_while_sampling_is_raised_afterwards(context: RunContext, pets: Path) -> None:
    """The sampler of other hosts must not be left alone."""
    with Executor(config.ExecuteConfig(workers=1)) as pool:
        pass
    made = scripted_sampler.completions(context, TEXTS[:1])
    scorer = _scored(context, pool, _examples(pets)[:1], made)
    with pytest.raises(ExecutorError, match="The executor is closed"):
        scorer.outcomes()


@pytest.mark.parametrize("empty", ["mismatch", "match"])
def test_rewards_right_and_sound_follow_from_the_outcomes(
    context: RunContext, executor: Executor, pets: Path, empty: str
) -> None:
    cfg = dataclasses.replace(context.cfg.grpo, reward=config.RewardConfig(empty_match=empty))
    context = dataclasses.replace(context, cfg=dataclasses.replace(context.cfg, grpo=cfg))
    made, answers, _, outcomes = _outcomes(context, executor, pets)
    judged = scoring.compute_rewards(context, _examples(pets), made, answers, outcomes)
    rewards, correct, sound = judged.rewards_PGR, judged.correct_PG, judged.sound_P
    assert rewards.shape == (3, 4, 4)
    for p, g in np.ndindex(3, 4):
        np.testing.assert_array_equal(rewards[p, g], reward.parts(answers[p][g], outcomes[p][g], cfg.reward))
    assert correct.tolist() == [[True, False, False, False], [empty == "match", False, False, False], [False] * 4]
    assert sound.tolist() == [True, True, False]


def test_length_may_be_counted_in_tokens(context: RunContext, pets: Path) -> None:
    cfg = dataclasses.replace(context.cfg.grpo, reward=config.RewardConfig(length_unit="tokens"))
    context = dataclasses.replace(context, cfg=dataclasses.replace(context.cfg, grpo=cfg))
    made = scripted_sampler.completions(context, [[_said("SELECT count(*) FROM dogs")]])
    said = answer.read(_said("SELECT count(*) FROM dogs"), "reasoning")
    judged = scoring.compute_rewards(context, _examples(pets)[:1], made, [[said]], [[Outcome(OutcomeKind.MATCH)]])
    rewards = judged.rewards_PGR

    def count(text: str) -> int:
        return len(context.tokenizer(text, add_special_tokens=False)["input_ids"])

    length = count(said.think) + count(said.answer)
    assert rewards[0, 0, 3] == pytest.approx(count(said.sql or "") / count(said.answer) + 0.5 * length / 2048)


def test_a_group_is_the_prompt_and_each_completion_behind_its_last_token(context: RunContext) -> None:
    problems = scoring.load_prompts(context)
    prompts = [problems.prompts[i] for i in (3, 1, 2)]
    made = scripted_sampler.completions(context, TEXTS)
    groups = scoring.completion_groups(prompts, made)
    for p, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
        assert list(group.prefix) == list(prompt.ids[:-1])
        for g, segment in enumerate(group.segments):
            n = made.length_PG[p, g]
            assert list(segment.tokens) == [prompt.ids[-1], *made.tokens_PGT[p, g, :n]]
            assert list(segment.logprob) == list(made.logprobs_PGT[p, g, :n])
            assert list(segment.weight) == [1.0] * n
            assert (segment.prompt, segment.sample) == (p, g)


def test_problems_are_the_examples_within_the_budget(context: RunContext, caplog: pytest.LogCaptureFixture) -> None:
    lengths = sorted(len(p.ids) for p in scoring.load_prompts(context).prompts)
    middle = lengths[len(lengths) // 2]

    def limited(budget: int) -> RunContext:
        data = dataclasses.replace(context.cfg.data, max_prompt_tokens=budget)
        return dataclasses.replace(context, cfg=dataclasses.replace(context.cfg, data=data))

    with caplog.at_level(logging.WARNING):
        problems = scoring.load_prompts(limited(middle))
    assert [len(p.ids) for p in problems.prompts if len(p.ids) > middle] == []
    assert [p.example_id for p in problems.prompts] == [e.id for e in problems.examples]
    assert f"{12 - len(problems.prompts)} of 12 prompts are over the budget" in caplog.text
    with pytest.raises(ConfigError, match="gives no prompt within the budget"):
        scoring.load_prompts(limited(2))


def test_the_reasoning_of_the_data_is_never_shown(context: RunContext) -> None:
    problems = scoring.load_prompts(context)
    for example, prompt in zip(problems.examples, problems.prompts, strict=True):
        assert example.reasoning
        assert example.reasoning not in prompt.text
        assert example.sql not in prompt.text


def test_measured_numbers_are_the_batches(context: RunContext, executor: Executor, pets: Path) -> None:
    made, answers, scorer, outcomes = _outcomes(context, executor, pets)
    judged = scoring.compute_rewards(context, _examples(pets), made, answers, outcomes)
    rewards = judged.rewards_PGR
    clock = StepTimer()
    for name in ("rollout", "pack", "reward_wait", "update"):
        clock.lap(name)
    values = scoring.step_metrics(judged, reward.PAPER, clock, scorer, executor)
    assert values["time/execute"] == scorer.seconds
    kinds = [kind for group in KINDS for kind in group]
    for kind in set(kinds):
        assert values[f"outcome/{kind}"] == kinds.count(kind) / 12
    assert sum(value for name, value in values.items() if name.startswith("outcome/")) == pytest.approx(1)
    assert (values["groups/mixed"], values["groups/all_right"], values["groups/all_wrong"]) == (1 / 3, 0, 2 / 3)
    assert values["reward/mean"] == pytest.approx(rewards.sum(-1).mean(), rel=1e-6)
    assert values["reward/std"] == pytest.approx(rewards.sum(-1).std(), rel=1e-6)
    assert values["reward/result"] == pytest.approx(rewards[..., 2].mean(), rel=1e-6)
    assert values["completion/mean_tokens"] == made.length_PG.mean()
    assert values["completion/max_tokens"] == made.length_PG.max()
    assert values["completion/truncated"] == 2 / 12
    assert values["tokens"] == made.length_PG.sum()
    assert all(type(value) is float for value in values.values())


def test_time_outs_are_the_batches_own_whatever_the_executor_remembers(context: RunContext, pets: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"
    examples = _examples(pets)[:1]
    with Executor(config.ExecuteConfig(workers=1, max_steps=100_000)) as pool:
        counted = []
        for _ in range(2):
            made = scripted_sampler.completions(context, [[_said(endless), _said("SELECT 4")]])
            scorer = _scored(context, pool, examples, made)
            outcomes = scorer.outcomes()
            assert outcomes[0][0].kind == "timeout"
            judged = scoring.compute_rewards(context, examples, made, scorer.answers, outcomes)
            counted.append(scoring.step_metrics(judged, reward.PAPER, StepTimer(), scorer, pool)["sql/timeouts"])
    assert counted == [1, 1]
