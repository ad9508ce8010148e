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
from sqlr1_jax.evaluate.benchmarks import metrics
from sqlr1_jax.evaluate.benchmarks.formats import Gold, Predictions
from sqlr1_jax.evaluate.benchmarks.metrics import Protocol, Verdict
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

COMPAT, KEPT = Protocol(compat=True), Protocol(compat=True, keep_distinct=True)
OFFICIAL = {  # the oracle's name of a verdict: our metric, how it is judged
    "spider_ts": ("spider", COMPAT),
    "spider_ts_keep_distinct": ("spider", KEPT),
    "bird_ex": ("bird", COMPAT),
    "bird_soft_f1": ("soft_f1", COMPAT),
}


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(ExecuteConfig(workers=1, max_steps=3_000_000_000)) as executor:
        yield executor


def one(executor: Executor, metric: str, database: Path, gold: str, sql: str | None, protocol: Protocol) -> Verdict:
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
def test_spider_verdicts_by_our_rules_and_by_the_official_ones(
    executor: Executor, pets: Path, gold: str, sql: str, ours: float, theirs: float | None
) -> None:
    assert one(executor, "spider", pets, gold, sql, Protocol()).value == ours
    assert one(executor, "spider", pets, gold, sql, COMPAT).value == theirs


def test_bird_and_soft_f1_verdicts(executor: Executor, pets: Path) -> None:
    for protocol in (Protocol(), COMPAT):
        for gold, sql, bird, soft_f1 in [
            ("SELECT 1, 2", "SELECT 2, 1", 0.0, 1.0),
            ("SELECT age FROM dogs", "SELECT DISTINCT age FROM dogs", 1.0, 1.0),
            ("VALUES (1, 2), (3, 4)", "VALUES (1, 2)", 0.0, 2 / 3),
            ("SELECT nope", "SELECT 1", 0.0, 0.0),
        ]:
            assert one(executor, "bird", pets, gold, sql, protocol).value == bird
            assert one(executor, "soft_f1", pets, gold, sql, protocol).value == pytest.approx(soft_f1)


def test_a_missing_prediction_is_wrong_with_its_own_outcome(executor: Executor, pets: Path) -> None:
    golds = [Gold("a", "pets", "SELECT 1", ""), Gold("b", "pets", "SELECT 1", "")]
    verdicts = metrics.judge_predictions(executor, "spider", golds, Predictions({"b": None}, 0), {"pets": pets}, COMPAT)
    assert [(verdict.value, verdict.kind) for verdict in verdicts] == [(0.0, "missing"), (0.0, "no_sql")]


class Clocked(Executor):
    """Runs and repeats as the pool does, and says that gold took so many times as long as the prediction."""

    def __init__(self, pool: Executor, ratio: float):
        self._pool, self._ratio = pool, ratio

    def submit(self, *asked: Any, **more: Any) -> Future[Outcome]:
        outcome = self._pool.submit(*asked, **more).result()
        times = tuple((self._ratio * (10 + i), 10.0 + i * i / 100) for i, _ in enumerate(outcome.times))
        said: Future[Outcome] = Future()
        said.set_result(dataclasses.replace(outcome, times=times))
        return said


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(("ratio", "reward"), [(4.0, 1.25), (1.2, 1.0), (0.6, 0.75), (0.1, 0.25)])
def test_r_ves_rewards_queries_faster_than_gold(
    executor: Executor, pets: Path, compat: bool, ratio: float, reward: float
) -> None:
    protocol, clocked = Protocol(compat=compat, iterations=5), Clocked(executor, ratio)
    assert one(clocked, "r_ves", pets, "SELECT 4", "SELECT 2 + 2", protocol).value == pytest.approx(reward**0.5)
    assert one(clocked, "r_ves", pets, "SELECT 4", "SELECT 5", protocol).value == 0.0


def test_timed_queries_run_alone_under_a_longer_wall_clock() -> None:
    timed = metrics.timed(ExecuteConfig(workers=8, wall_seconds=10.0), 100)
    assert (timed.workers, timed.wall_seconds) == (1, 2020.0)


def make(folder: Path, files: dict[str, str | None]) -> None:
    """Databases from scripts; None: a text file, "": an empty one."""
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
        assert one(executor, "spider", main, gold, "SELECT b FROM t WHERE a > 1", protocol).value == 1.0
        assert one(executor, "spider", main, gold, lucky, protocol).value == 0.0
        assert one(executor, "bird", main, gold, lucky, protocol).value == 1.0
    make(folder, {"m4.sqlite": "CREATE TABLE u(a)"})
    broken = [one(executor, "spider", main, gold, sql, Protocol()) for sql in (gold, lucky)]
    assert [(verdict.value, verdict.kind) for verdict in broken] == [(0.0, "gold_error")] * 2
    assert one(executor, "spider", main, gold, gold, COMPAT).value is None
    assert one(executor, "spider", main, gold, lucky, COMPAT).value == 0.0  # it stops at m2


def test_figures_by_difficulty_with_intervals_over_databases() -> None:
    golds = [Gold("0", "a", "", "challenging"), Gold("1", "a", "", "simple"), Gold("2", "b", "", "simple")]
    verdicts = [Verdict(value, Outcome(OutcomeKind.MATCH)) for value in (1.0, 0.5, None)]
    figures = metrics.figures(golds, verdicts)
    assert figures["all"] == {"n": 3, "score": 0.5, "interval": [0.0, 0.75]}
    assert list(figures["by_difficulty"]) == ["simple", "challenging"]
    assert figures["by_difficulty"]["simple"] == {"n": 2, "score": 0.25, "interval": [0.0, 0.5]}
    assert figures["by_difficulty"]["challenging"] == {"n": 1, "score": 1.0, "interval": None}
    assert "by_difficulty" not in metrics.figures([Gold("0", "a", "", "")], verdicts[:1])


def differences(executor: Executor, folder: Path, every: int) -> tuple[Counter[str], list[str]]:
    """Pairs by verdict that were judged, and those that were judged otherwise than by the official code."""
    lines = (folder / "oracles/evaluator_oracle.jsonl").read_text().splitlines()[::every]
    pairs = [pair for pair in map(json.loads, lines) if not pair["mutation"].startswith("side_effect")]
    judged: Counter[str] = Counter()
    others = []
    for name, (metric, protocol) in OFFICIAL.items():
        for pair, verdict in zip(pairs, oracle(executor, folder, pairs, metric, protocol), strict=True):
            judged[name] += 1
            if not same(pair[name], verdict.value) and not excused(pair):
                others.append(f"{name} of {pair['id']}: {verdict.value}, not {pair[name]}")
    return judged, others


def oracle(
    executor: Executor, folder: Path, pairs: Sequence[dict[str, Any]], metric: str, protocol: Protocol
) -> list[Verdict]:
    """Verdicts on the oracle's pairs; formula_1 is two databases there, so a set at a time names them."""
    verdicts: dict[str, Verdict] = {}
    for place in {pair["db_path"].split("/")[0] for pair in pairs}:
        part = [pair for pair in pairs if pair["db_path"].startswith(f"{place}/")]
        golds = [Gold(pair["id"], pair["db_id"], pair["gold"], "") for pair in part]
        said = Predictions({pair["id"]: pair["pred"] for pair in part}, 0)
        databases = {pair["db_id"]: folder / pair["db_path"] for pair in part}
        made = metrics.judge_predictions(executor, metric, golds, said, databases, protocol)
        verdicts |= zip([gold.id for gold in golds], made, strict=True)
    return [verdicts[pair["id"]] for pair in pairs]


def same(official: float | None, ours: float | None) -> bool:
    return official is ours if None in (official, ours) else abs(float(official or 0) - float(ours or 0)) <= 1e-9


def excused(pair: dict[str, Any]) -> bool:
    """Another SQLite than the oracle's 3.40.1 may return unordered rows in another order."""
    return sqlite3.sqlite_version != "3.40.1" and "sensitive" in pair["note"]


def test_compat_verdicts_equal_the_official_evaluators(executor: Executor, shared_data: Path) -> None:
    judged, others = differences(executor, shared_data, every=10)
    assert others == []
    assert min(judged.values()) > 350


@pytest.mark.nightly
def test_compat_verdicts_equal_the_official_evaluators_on_every_pair(executor: Executor, shared_data: Path) -> None:
    judged, others = differences(executor, shared_data, every=1)
    assert others == []
    assert judged == dict.fromkeys(OFFICIAL, 3547)


def test_compat_verdicts_equal_the_official_evaluators_on_suites(
    executor: Executor, shared_data: Path, tmp_path: Path
) -> None:
    cases = json.loads((shared_data / "oracles/suite_cases.json").read_text())["cases"]
    for number, case in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder, case["files"])
        for name, (metric, protocol) in OFFICIAL.items():
            verdict = one(executor, metric, folder / case["main"], case["gold"], case["pred"], protocol)
            assert same(case[name], verdict.value), (name, case["name"], verdict)
    assert len(cases) == 22


@pytest.mark.nightly
def test_our_rules_differ_as_often_as_the_docs_say(executor: Executor, shared_data: Path) -> None:
    pairs = [json.loads(line) for line in (shared_data / "oracles/evaluator_oracle.jsonl").read_text().splitlines()]
    counted: Counter[str] = Counter()
    for name, (metric, _) in OFFICIAL.items():
        verdicts = oracle(executor, shared_data, pairs, metric, Protocol())
        counted[name] = sum(not same(p[name], v.value) for p, v in zip(pairs, verdicts, strict=True))
    assert counted == {"spider_ts": 304, "spider_ts_keep_distinct": 150, "bird_ex": 41, "bird_soft_f1": 42}
