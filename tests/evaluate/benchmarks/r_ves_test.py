from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.evaluate.benchmarks import metrics, r_ves
from sqlr1_jax.evaluate.benchmarks.formats import Gold, Predictions
from sqlr1_jax.evaluate.benchmarks.metrics import Protocol
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind


@pytest.mark.parametrize(
    ("tau", "reward"),
    [(2.0, 1.25), (1.999, 1.0), (1.0, 1.0), (0.5, 0.75), (0.4999, 0.5), (0.25, 0.5), (0.2, 0.25), (0, 0)],
)
def test_the_reward_follows_the_thresholds(tau: float, reward: float) -> None:
    assert r_ves.reward_of(tau) == reward


def test_the_filter_bounds_are_strict() -> None:
    assert r_ves.within_three_sigma([1.0] * 10 + [100.0]) == [1.0] * 10
    assert r_ves.within_three_sigma([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert r_ves.within_three_sigma([1.0, 1.0]) == []


def test_the_reward_uses_the_mean_of_ratios() -> None:
    assert (
        r_ves.reward(r_ves.ratios([(1.0, 0.1), (10.0, 100.0)])) == 1.25
    )  # mean ratio 5.05; the ratio of sums would be 0.11
    assert r_ves.reward([2.0, 2.0]) == 0.0  # the filter removes equal ratios
    assert r_ves.reward([]) == 0.0
    assert r_ves.ratios([(1.0, 1.0), (1.0, 0.0)]) == []


@pytest.fixture(scope="module")
def table(shared_data: Path) -> dict[str, Any]:
    return json.loads((shared_data / "oracles/r_ves_table.json").read_text())


def test_rewards_and_filter_equal_the_official_table(table: dict[str, Any]) -> None:
    assert [r_ves.reward_of(float(e["tau"])) for e in table["reward_of_tau"]] == [
        entry["reward"] for entry in table["reward_of_tau"]
    ]
    for case in table["three_sigma_filter"]:
        assert r_ves.within_three_sigma(case["input"]) == case["kept"]
    for case in table["score"]:
        assert 100 * _score(case["rewards"]) == pytest.approx(case["score"], rel=1e-12)


RATIOS = {1.25: 3.0, 1.0: 1.5, 0.75: 0.7, 0.5: 0.3, 0.25: 0.1}  # by reward of a right answer: a ratio that gets it


class TimedQueries:
    """An executor whose queries are rewards: 0 is wrong, the others match and have the times that get the reward."""

    def submit(self, database: Path, sql: str, *_: Any) -> Future[Outcome]:
        outcome: Future[Outcome] = Future()
        ratio = RATIOS.get(float(sql), 0.0)
        kind = OutcomeKind.MATCH if ratio else OutcomeKind.MISMATCH
        outcome.set_result(Outcome(kind, times=((ratio * 0.99, 1.0), (ratio * 1.01, 1.0))))
        return outcome


def _score(rewards: list[float]) -> float:
    golds = [Gold(str(i), "a", "SELECT 1", "") for i in range(len(rewards))]
    predictions = Predictions({gold.id: str(reward) for gold, reward in zip(golds, rewards, strict=True)}, 0)
    executor: Any = TimedQueries()
    verdicts = metrics.judge_predictions(executor, "r_ves", golds, predictions, {"a": Path()}, Protocol())
    return metrics.figures(golds, verdicts)["all"]["score"]


def test_rewards_equal_the_official_ones_on_recorded_times(table: dict[str, Any]) -> None:
    for case in table["timing_lists"]:
        ratios = r_ves.ratios(list(zip(case["gold_times"], case["pred_times"], strict=True)))
        kept = r_ves.within_three_sigma(ratios) if ratios else []
        if case["tau"] is not None:
            assert sum(kept) / len(kept) == case["tau"], case["name"]
            assert len(kept) == case["kept"], case["name"]
        if case["correct"]:
            assert r_ves.reward(ratios) == case["reward"], case["name"]
