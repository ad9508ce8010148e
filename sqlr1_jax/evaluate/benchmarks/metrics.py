"""The metrics of `score`: which rule runs on which files, and what its outcomes are worth."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.evaluate.benchmarks import formats, r_ves
from sqlr1_jax.evaluate.benchmarks.formats import Gold, Predictions
from sqlr1_jax.sql.compat import official
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

METRICS = ("spider", "bird", "soft_f1", "r_ves")
MISSING = "missing"  # stands for the kind of outcome where the file has no prediction


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How to judge."""

    compat: bool = False  # the official evaluators to the letter, instead of our rules
    keep_distinct: bool = False  # of compat's spider; our rule always keeps DISTINCT
    iterations: int = r_ves.ITERATIONS  # runs to be timed for r_ves


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one metric says of one prediction: a fraction (r_ves: up to √1.25), None where the official code raises."""

    value: float | None
    outcome: Outcome | None  # None where the file has no prediction

    @property
    def kind(self) -> str:
        """The kind of the outcome, or MISSING."""
        return self.outcome.kind if self.outcome else MISSING


_Pending = Callable[[], Verdict]


def judge_predictions(
    executor: Executor, metric: str, golds: Sequence[Gold], predictions: Predictions,
    databases: Mapping[str, Path], protocol: Protocol,
) -> list[Verdict]:  # fmt: skip
    """One verdict a gold, in order. A gold without a prediction is wrong."""
    pending: list[_Pending] = []
    for gold in golds:
        sql = predictions.sql.get(gold.id)
        if sql is None:
            outcome = Outcome(OutcomeKind.NO_SQL) if gold.id in predictions.sql else None
            pending.append(functools.partial(Verdict, 0.0, outcome))
        else:
            pending.append(_BEGIN[metric](executor, gold, sql, databases[gold.db_id], protocol))
    return [verdict() for verdict in tqdm(pending, desc=metric, unit="query", leave=False, disable=None)]


def timed(cfg: ExecuteConfig, iterations: int) -> ExecuteConfig:
    """The sandbox for r_ves: queries run one after another, and all runs of one share a wall clock."""
    return dataclasses.replace(cfg, workers=1, wall_seconds=cfg.wall_seconds * (2 * iterations + 2))


def _spider(executor: Executor, gold: Gold, sql: str, database: Path, protocol: Protocol) -> _Pending:
    """All files of the database's folder must agree; one on which gold fails makes the item a gold error."""
    expected, rule = gold.sql, "spider"
    if protocol.compat:
        rule = "official_spider"
        try:
            sql, expected = (official.spider_text(text, protocol.keep_distinct) for text in (sql, gold.sql))
        except official.OfficialError as error:
            message = f"the official code raises {error}: there is no statement"
            return functools.partial(Verdict, None, Outcome(OutcomeKind.SYNTAX_ERROR, message=message))
    files = formats.suite(database, gold.db_id, protocol.compat)
    pending = [executor.submit(file, sql, expected, rule) for file in files]
    return lambda: _agreed([future.result() for future in pending], protocol.compat)


def _agreed(outcomes: Sequence[Outcome], compat: bool) -> Verdict:
    """The official code stops at the first file on which a prediction fails, and raises at one where gold does."""
    failed = [outcome for outcome in outcomes if not outcome.kind.correct]
    broken = [outcome for outcome in failed if outcome.kind == OutcomeKind.GOLD_ERROR]
    if compat:
        if failed and failed[0].kind == OutcomeKind.GOLD_ERROR:
            return Verdict(None, failed[0])
        decisive = failed or list(outcomes) or [Outcome(OutcomeKind.MATCH, message="there is no database file")]
    else:
        decisive = broken or failed or list(outcomes)
    return Verdict(float(not failed), decisive[0])


def _on_one_file(metric: str, executor: Executor, gold: Gold, sql: str, database: Path, protocol: Protocol) -> _Pending:
    rule = f"official_{metric}" if protocol.compat else metric
    future = executor.submit(database, sql, gold.sql, rule)
    return lambda: Verdict(future.result().score, future.result())


def _r_ves(executor: Executor, gold: Gold, sql: str, database: Path, protocol: Protocol) -> _Pending:
    rule = "official_bird" if protocol.compat else "bird"
    future = executor.submit(database, sql, gold.sql, rule, protocol.iterations)
    return lambda: Verdict(_root_of_reward(future), future.result())


def _root_of_reward(future: Future[Outcome]) -> float:
    outcome = future.result()
    return math.sqrt(r_ves.reward(r_ves.ratios(outcome.times))) if outcome.kind.correct else 0.0


_BEGIN: dict[str, Callable[[Executor, Gold, str, Path, Protocol], _Pending]] = {
    "spider": _spider,
    "bird": functools.partial(_on_one_file, "bird"),
    "soft_f1": functools.partial(_on_one_file, "soft_f1"),
    "r_ves": _r_ves,
}


def figures(golds: Sequence[Gold], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """{all, by_difficulty: {name: …}} of {n, score, interval}; no verdict counts 0.

    interval: 95 % by bootstrap over databases, None where there is only one.
    """
    groups: dict[str, list[int]] = {}
    for i, gold in enumerate(golds):
        if gold.difficulty:
            groups.setdefault(gold.difficulty, []).append(i)
    made: dict[str, Any] = {"all": _figure(golds, verdicts, range(len(golds)))}
    if groups:
        made["by_difficulty"] = {name: _figure(golds, verdicts, places) for name, places in _ordered(groups)}
    return made


def _figure(golds: Sequence[Gold], verdicts: Sequence[Verdict], places: Sequence[int]) -> dict[str, Any]:
    cluster = {golds[i].id: golds[i].db_id for i in places}
    values = {golds[i].id: verdicts[i].value or 0.0 for i in places}
    mean, *interval = accuracy.clustered_mean(values, cluster)
    return {"n": len(places), "score": mean, "interval": interval if len(set(cluster.values())) > 1 else None}


_DIFFICULTIES = ("simple", "moderate", "challenging", "complex", "highly complex")


def _ordered(groups: Mapping[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
    """From easy to hard, names that are not known behind them."""
    known = {name: place for place, name in enumerate(_DIFFICULTIES)}
    for name in sorted(groups, key=lambda name: (known.get(name.lower(), len(known)), name)):
        yield name, groups[name]
