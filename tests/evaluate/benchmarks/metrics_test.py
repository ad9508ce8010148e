from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.evaluate.benchmarks import metrics
from sqlr1_jax.evaluate.benchmarks.formats import Gold, Predictions, find_databases
from sqlr1_jax.evaluate.benchmarks.metrics import MetricError, Protocol, Verdict
from sqlr1_jax.sql import compare
from sqlr1_jax.sql.compat import official
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from testing.damage import few_or_many
from testing.damaged_databases import QUERIES, damaged_databases

COMPAT, KEPT = Protocol(compat=True), Protocol(compat=True, keep_distinct=True)
OFFICIAL = {  # name of a verdict in the oracle's file: our metric and protocol
    "spider_ts": ("spider", COMPAT),
    "spider_ts_keep_distinct": ("spider", KEPT),
    "bird_ex": ("bird", COMPAT),
    "bird_soft_f1": ("soft_f1", COMPAT),
}


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(ExecuteConfig(workers=1, max_steps=3_000_000_000)) as executor:
        yield executor


def verdict_of(
    executor: Executor, metric: str, database: Path, gold: str, sql: str | None, protocol: Protocol
) -> Verdict:
    golds = [Gold("0", database.parent.name, gold, "")]
    databases = {database.parent.name: database}
    return metrics.judge_predictions(executor, metric, golds, Predictions({"0": sql}, 0), databases, protocol)[0]


@pytest.mark.parametrize(
    ("gold", "sql", "ours", "theirs"),
    [
        ("SELECT DISTINCT age FROM dogs", "SELECT age FROM dogs", 0.0, 1.0),
        ("SELECT count(*) FROM dogs", "SELECT 4; SELECT 5", 0.0, 1.0),
        ("SELECT 1", "", 0.0, None),
        ("SELECT nope", "SELECT 1", 0.0, None),
        ("SELECT 1, 2", "SELECT 2, 1", 1.0, 1.0),
        ("SELECT 1", "SELECT nope", 0.0, 0.0),
    ],
)
def test_spider_values_under_both_protocols(
    executor: Executor, pets: Path, gold: str, sql: str, ours: float, theirs: float | None
) -> None:
    assert verdict_of(executor, "spider", pets, gold, sql, Protocol()).value == ours
    assert verdict_of(executor, "spider", pets, gold, sql, COMPAT).value == theirs


def test_bird_and_soft_f1_values_under_both_protocols(executor: Executor, pets: Path) -> None:
    for protocol in (Protocol(), COMPAT):
        for gold, sql, bird, soft_f1 in [
            ("SELECT 1, 2", "SELECT 2, 1", 0.0, 1.0),
            ("SELECT age FROM dogs", "SELECT DISTINCT age FROM dogs", 1.0, 1.0),
            ("VALUES (1, 2), (3, 4)", "VALUES (1, 2)", 0.0, 2 / 3),
            ("SELECT nope", "SELECT 1", 0.0, 0.0),
        ]:
            assert verdict_of(executor, "bird", pets, gold, sql, protocol).value == bird
            assert verdict_of(executor, "soft_f1", pets, gold, sql, protocol).value == pytest.approx(soft_f1)


def test_a_missing_prediction_is_wrong_with_its_own_kind(executor: Executor, pets: Path) -> None:
    golds = [Gold("a", "pets", "SELECT 1", ""), Gold("b", "pets", "SELECT 1", "")]
    verdicts = metrics.judge_predictions(executor, "spider", golds, Predictions({"b": None}, 0), {"pets": pets}, COMPAT)
    assert [(verdict.value, verdict.kind) for verdict in verdicts] == [(0.0, "missing"), (0.0, "no_sql")]


class TimedExecutor(Executor):
    """An executor whose times are replaced: the gold query takes `ratio` times as long as the prediction."""

    def __init__(self, pool: Executor, ratio: float):
        self._pool, self._ratio = pool, ratio

    def submit(self, *arguments: Any, **options: Any) -> Future[Outcome]:
        outcome = self._pool.submit(*arguments, **options).result()
        times = tuple((self._ratio * (10 + i), 10.0 + i * i / 100) for i, _ in enumerate(outcome.times))
        future: Future[Outcome] = Future()
        future.set_result(dataclasses.replace(outcome, times=times))
        return future


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(("ratio", "reward"), [(4.0, 1.25), (1.2, 1.0), (0.6, 0.75), (0.1, 0.25)])
def test_r_ves_rewards_queries_faster_than_gold(
    executor: Executor, pets: Path, compat: bool, ratio: float, reward: float
) -> None:
    protocol, timed_executor = Protocol(compat=compat, iterations=5), TimedExecutor(executor, ratio)
    assert verdict_of(timed_executor, "r_ves", pets, "SELECT 4", "SELECT 2 + 2", protocol).value == pytest.approx(
        reward**0.5
    )
    assert verdict_of(timed_executor, "r_ves", pets, "SELECT 4", "SELECT 5", protocol).value == 0.0


def test_every_rule_of_the_table_exists() -> None:
    assert {metric.rule for metric in metrics.METRICS.values()} <= set(compare.RULES)
    assert {metric.official_rule for metric in metrics.METRICS.values()} <= set(official.RULES)


@pytest.mark.parametrize("sql", ["SELECT 1", None])
def test_compat_without_an_official_rule_is_an_error(
    executor: Executor, pets: Path, monkeypatch: pytest.MonkeyPatch, sql: str | None
) -> None:
    monkeypatch.setitem(metrics.METRICS, "ours", dataclasses.replace(metrics.METRICS["bird"], official_rule=None))
    assert verdict_of(executor, "ours", pets, "SELECT 1", "SELECT 1", Protocol()).value == 1.0
    with pytest.raises(MetricError, match="--compat: ours has no official rule"):
        verdict_of(executor, "ours", pets, "SELECT 1", sql, COMPAT)


def test_timed_metrics_have_one_worker_and_a_longer_wall_clock() -> None:
    config = metrics.timing_config(ExecuteConfig(workers=8, wall_seconds=10.0), 100)
    assert (config.workers, config.wall_seconds) == (1, 2020.0)


def make(folder: Path, files: dict[str, str | None]) -> None:
    """Makes databases from scripts. None makes a text file, "" an empty file."""
    for name, script in files.items():
        if script:
            with closing(sqlite3.connect(folder / name)) as connection:
                connection.executescript(script)
        else:
            (folder / name).write_text("" if script == "" else "some notes\n")


def test_a_prediction_must_match_on_every_file_of_a_suite(executor: Executor, tmp_path: Path) -> None:
    script = "CREATE TABLE t(a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y')"
    folder = tmp_path / "m"
    folder.mkdir()
    make(folder, {"m.sqlite": script, "m2.sqlite": f"{script}, (2, 'z')", "m3.db": "CREATE TABLE u(a)"})
    gold, lucky = "SELECT b FROM t WHERE a = 2", "SELECT b FROM t WHERE b = 'y'"
    main = folder / "m.sqlite"
    for protocol in (Protocol(), COMPAT):
        assert verdict_of(executor, "spider", main, gold, "SELECT b FROM t WHERE a > 1", protocol).value == 1.0
        assert verdict_of(executor, "spider", main, gold, lucky, protocol).value == 0.0
        assert verdict_of(executor, "bird", main, gold, lucky, protocol).value == 1.0
    make(folder, {"m4.sqlite": "CREATE TABLE u(a)"})
    broken = [verdict_of(executor, "spider", main, gold, sql, Protocol()) for sql in (gold, lucky)]
    assert [(verdict.value, verdict.kind) for verdict in broken] == [(0.0, "gold_error")] * 2
    assert verdict_of(executor, "spider", main, gold, gold, COMPAT).value is None
    assert verdict_of(executor, "spider", main, gold, lucky, COMPAT).value == 0.0  # it stops at m2


def test_figures_by_difficulty_with_intervals_over_databases() -> None:
    golds = [Gold("0", "a", "", "challenging"), Gold("1", "a", "", "simple"), Gold("2", "b", "", "simple")]
    verdicts = [Verdict(value, Outcome(OutcomeKind.MATCH)) for value in (1.0, 0.5, None)]
    figures = metrics.figures(golds, verdicts)
    assert figures["all"] == {"n": 3, "score": 0.5, "interval": [0.0, 0.75]}
    assert list(figures["by_difficulty"]) == ["simple", "challenging"]
    assert figures["by_difficulty"]["simple"] == {"n": 2, "score": 0.25, "interval": [0.0, 0.5]}
    assert figures["by_difficulty"]["challenging"] == {"n": 1, "score": 1.0, "interval": None}
    assert "by_difficulty" not in metrics.figures([Gold("0", "a", "", "")], verdicts[:1])


def compare_with_official(executor: Executor, folder: Path, every: int) -> tuple[Counter[str], list[str]]:
    """The number of compared pairs by verdict, and the pairs whose verdict is not the official one."""
    lines = (folder / "oracles/evaluator_oracle.jsonl").read_text().splitlines()[::every]
    pairs = [pair for pair in map(json.loads, lines) if not pair["mutation"].startswith("side_effect")]
    compared: Counter[str] = Counter()
    different = []
    for name, (metric, protocol) in OFFICIAL.items():
        for pair, verdict in zip(pairs, verdicts_on(executor, folder, pairs, metric, protocol), strict=True):
            compared[name] += 1
            if not agree(pair[name], verdict.value) and not depends_on_row_order(pair):
                different.append(f"{name} of {pair['id']}: {verdict.value}, not {pair[name]}")
    return compared, different


def verdicts_on(
    executor: Executor, folder: Path, pairs: Sequence[dict[str, Any]], metric: str, protocol: Protocol
) -> list[Verdict]:
    """Verdicts on the oracle's pairs, one data set at a time, since two of them have a database named formula_1."""
    verdicts: dict[str, Verdict] = {}
    for subset in {pair["db_path"].split("/")[0] for pair in pairs}:
        subset_pairs = [pair for pair in pairs if pair["db_path"].startswith(f"{subset}/")]
        golds = [Gold(pair["id"], pair["db_id"], pair["gold"], "") for pair in subset_pairs]
        predictions = Predictions({pair["id"]: pair["pred"] for pair in subset_pairs}, 0)
        databases = {pair["db_id"]: folder / pair["db_path"] for pair in subset_pairs}
        subset_verdicts = metrics.judge_predictions(executor, metric, golds, predictions, databases, protocol)
        verdicts |= zip([gold.id for gold in golds], subset_verdicts, strict=True)
    return [verdicts[pair["id"]] for pair in pairs]


def agree(official: float | None, ours: float | None) -> bool:
    return official is ours if None in (official, ours) else abs(float(official or 0) - float(ours or 0)) <= 1e-9


def depends_on_row_order(pair: dict[str, Any]) -> bool:
    """Another SQLite version than the oracle's, 3.40.1, may return unordered rows in another order."""
    return sqlite3.sqlite_version != "3.40.1" and "sensitive" in pair["note"]


def test_compat_agrees_with_the_official_evaluators(executor: Executor, shared_data: Path) -> None:
    compared, different = compare_with_official(executor, shared_data, every=10)
    assert different == []
    assert min(compared.values()) > 350


@pytest.mark.nightly
def test_compat_agrees_with_the_official_evaluators_on_every_pair(executor: Executor, shared_data: Path) -> None:
    compared, different = compare_with_official(executor, shared_data, every=1)
    assert different == []
    assert compared == dict.fromkeys(OFFICIAL, 3547)


def test_compat_agrees_with_the_official_evaluators_on_suites(
    executor: Executor, shared_data: Path, tmp_path: Path
) -> None:
    cases = json.loads((shared_data / "oracles/suite_cases.json").read_text())["cases"]
    for number, case in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder, case["files"])
        for name, (metric, protocol) in OFFICIAL.items():
            verdict = verdict_of(executor, metric, folder / case["main"], case["gold"], case["pred"], protocol)
            assert agree(case[name], verdict.value), (name, case["name"], verdict)
    assert len(cases) == 22


@pytest.mark.nightly
def test_our_rules_differ_as_often_as_docs_metrics_md_says(executor: Executor, shared_data: Path) -> None:
    pairs = [json.loads(line) for line in (shared_data / "oracles/evaluator_oracle.jsonl").read_text().splitlines()]
    differences: Counter[str] = Counter()
    for name, (metric, _) in OFFICIAL.items():
        verdicts = verdicts_on(executor, shared_data, pairs, metric, Protocol())
        differences[name] = sum(not agree(p[name], v.value) for p, v in zip(pairs, verdicts, strict=True))
    assert differences == {"spider_ts": 304, "spider_ts_keep_distinct": 150, "bird_ex": 41, "bird_soft_f1": 42}


@few_or_many
def test_damaged_databases_are_scored_or_named_by_the_error(tmp_path: Path, count: int) -> None:
    predictions = Predictions({str(i): sql for i, sql in enumerate(QUERIES)}, 0)
    scored = 0
    with Executor(ExecuteConfig(workers=1, max_steps=1_000_000, wall_seconds=1.0)) as executor:
        for damage, path in damaged_databases(tmp_path, count):
            golds = [Gold(str(i), path.stem, sql, "") for i, sql in enumerate(QUERIES)]
            for protocol in (Protocol(), COMPAT):
                try:
                    databases = find_databases(golds, tmp_path, protocol.compat)
                except ExampleError as error:
                    assert path.name in str(error), damage
                    continue
                verdicts = metrics.judge_predictions(executor, "spider", golds, predictions, databases, protocol)
                # The predictions are the gold queries: they match, or the gold query fails.
                assert all(
                    verdict.value == verdict.kind.startswith("match") or verdict.value is None for verdict in verdicts
                )
                scored += 1
        assert executor.stats()["sql/crashes"] == 0
    assert scored > 1.2 * count
