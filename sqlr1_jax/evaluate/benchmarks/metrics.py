"""The metrics of `score`: how each one runs predictions, compares results and averages.

`METRICS`, below the functions that submit predictions, is the one table of metrics.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.evaluate.benchmarks import formats, r_ves
from sqlr1_jax.evaluate.benchmarks.formats import Gold, Predictions
from sqlr1_jax.progress import Progress, print_line
from sqlr1_jax.sql.compat import official
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

MISSING = "missing"  # used like an OutcomeKind for a gold query that has no prediction
DIFFICULTIES = ("simple", "moderate", "challenging", "complex", "highly complex")  # from easy to hard


class MetricError(Sqlr1Error):
    """A metric that cannot be computed with these flags; the message names the metric and the fix."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which rules decide, and how often r_ves measures."""

    compat: bool = False  # the official evaluators' rules instead of this project's
    keep_distinct: bool = False  # for compat's spider; this project's rule always keeps DISTINCT
    iterations: int = r_ves.ITERATIONS  # timed runs per query, for r_ves


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One metric's result for one prediction."""

    value: float | None  # 0 to 1 (r_ves: to sqrt(1.25)); None if the official code raises an error
    outcome: Outcome | None  # None if there is no prediction

    @property
    def kind(self) -> str:
        """The kind of the outcome, or MISSING."""
        return self.outcome.kind if self.outcome else MISSING


PendingVerdict = Callable[[], Verdict]  # waits for the executor
Submit = Callable[[Executor, str, Gold, str, Path, Protocol], PendingVerdict]


@dataclasses.dataclass(frozen=True)
class Metric:
    """How one metric is computed."""

    submit: Submit  # (executor, rule, gold, predicted SQL, database, protocol) -> pending verdict
    rule: str  # this project's comparison, a name in compare.RULES
    official_rule: str | None = None  # the official comparison, a name in official.RULES; None: --compat refuses it
    is_fraction: bool = True  # False: a verdict is true or false
    is_timed: bool = False  # predictions run one at a time on an executor of their own


def judge_predictions(
    executor: Executor,
    name: str,
    golds: Sequence[Gold],
    predictions: Predictions,
    databases: Mapping[str, Path],
    protocol: Protocol,
) -> list[Verdict]:
    """Verdicts of the metric `name`, one per gold query and in their order. A missing prediction has value 0.

    Raises:
      MetricError: as `comparison_rule`.
    """
    rule = comparison_rule(name, protocol)
    pending: list[PendingVerdict] = []
    for gold in golds:
        sql = predictions.sql.get(gold.id)
        if sql is None:
            outcome = Outcome(OutcomeKind.NO_SQL) if gold.id in predictions.sql else None
            pending.append(_ready(Verdict(0.0, outcome)))
        else:
            pending.append(METRICS[name].submit(executor, rule, gold, sql, databases[gold.db_id], protocol))
    verdicts = []
    with Progress(f"scoring by {name}", len(pending), "prediction", report=print_line) as progress:
        for verdict in pending:
            verdicts.append(verdict())
            progress.update()
    return verdicts


def comparison_rule(name: str, protocol: Protocol) -> str:
    """The executor's rule for a metric.

    Raises:
      MetricError: --compat was given, and the metric has no official rule.
    """
    metric = METRICS[name]
    if not protocol.compat:
        return metric.rule
    if metric.official_rule is None:
        raise MetricError(f"--compat: {name} has no official rule. Drop it from --metric=, or run without --compat.")
    return metric.official_rule


def timing_config(config: ExecuteConfig, iterations: int) -> ExecuteConfig:
    """Executor settings for timed metrics: one worker, so that queries do not disturb each other's times.

    All repeats of a query share one wall clock, which is extended accordingly.
    """
    return dataclasses.replace(config, workers=1, wall_seconds=config.wall_seconds * (2 * iterations + 2))


def _ready(verdict: Verdict) -> PendingVerdict:
    return lambda: verdict


def _submit_to_suite(
    executor: Executor, rule: str, gold: Gold, sql: str, database: Path, protocol: Protocol
) -> PendingVerdict:
    """Runs on every file of the database's folder, the test suite; the results must agree on all of them."""
    gold_sql = gold.sql
    if protocol.compat:
        try:
            sql, gold_sql = (official.spider_text(text, protocol.keep_distinct) for text in (sql, gold_sql))
        except official.OfficialError as error:
            message = f"the official code raises {error}: there is no statement"
            return _ready(Verdict(None, Outcome(OutcomeKind.SYNTAX_ERROR, message=message)))
    files = formats.suite_files(database, gold.db_id, protocol.compat)
    pending = [executor.submit(file, sql, gold_sql, rule) for file in files]
    return lambda: _suite_verdict([future.result() for future in pending], protocol.compat)


def _suite_verdict(outcomes: Sequence[Outcome], compat: bool) -> Verdict:
    """1 if all files match. The outcome reported is a gold error if there is one, else the first failure.

    The official code stops at the first failure, and raises an error if the gold query failed there.
    """
    failed = [outcome for outcome in outcomes if not outcome.kind.correct]
    gold_errors = [outcome for outcome in failed if outcome.kind == OutcomeKind.GOLD_ERROR]
    if compat:
        if failed and failed[0].kind == OutcomeKind.GOLD_ERROR:
            return Verdict(None, failed[0])
        decisive = failed or list(outcomes) or [Outcome(OutcomeKind.MATCH, message="there is no database file")]
    else:
        decisive = gold_errors or failed or list(outcomes)
    return Verdict(float(not failed), decisive[0])


def _submit_to_file(
    executor: Executor, rule: str, gold: Gold, sql: str, database: Path, protocol: Protocol
) -> PendingVerdict:
    """Runs on the database's main file; the value is the rule's."""
    del protocol
    future = executor.submit(database, sql, gold.sql, rule)
    return lambda: Verdict(future.result().score, future.result())


def _submit_timed(
    executor: Executor, rule: str, gold: Gold, sql: str, database: Path, protocol: Protocol
) -> PendingVerdict:
    """Runs on the database's main file, repeatedly if correct; the value is the square root of the R-VES reward."""
    future = executor.submit(database, sql, gold.sql, rule, protocol.iterations)

    def verdict() -> Verdict:
        outcome = future.result()
        reward = r_ves.reward(r_ves.ratios(outcome.times)) if outcome.kind.correct else 0.0
        return Verdict(math.sqrt(reward), outcome)

    return verdict


METRICS: dict[str, Metric] = {
    "spider": Metric(_submit_to_suite, "spider", "official_spider", is_fraction=False),
    "bird": Metric(_submit_to_file, "bird", "official_bird", is_fraction=False),
    "soft_f1": Metric(_submit_to_file, "soft_f1", "official_soft_f1"),
    "r_ves": Metric(_submit_timed, "bird", "official_bird", is_timed=True),
}


def figures(golds: Sequence[Gold], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """{all: {n, score, interval}, by_difficulty: {name: {n, score, interval}}}; a value of None counts as 0.

    The interval is the 95 % bootstrap interval over databases, None if there is only one. `by_difficulty` is left out
    if no gold query has a difficulty.
    """
    groups: dict[str, list[int]] = {}
    for i, gold in enumerate(golds):
        if gold.difficulty:
            groups.setdefault(gold.difficulty, []).append(i)
    result: dict[str, Any] = {"all": _figure(golds, verdicts, range(len(golds)))}
    if groups:
        # From easy to hard, then unknown difficulties by name.
        rank = {name: i for i, name in enumerate(DIFFICULTIES)}
        ordered = sorted(groups, key=lambda name: (rank.get(name.lower(), len(rank)), name))
        result["by_difficulty"] = {name: _figure(golds, verdicts, groups[name]) for name in ordered}
    return result


def _figure(golds: Sequence[Gold], verdicts: Sequence[Verdict], indices: Sequence[int]) -> dict[str, Any]:
    cluster = {golds[i].id: golds[i].db_id for i in indices}
    values = {golds[i].id: verdicts[i].value or 0.0 for i in indices}
    mean, *interval = accuracy.clustered_mean(values, cluster)
    return {"n": len(indices), "score": mean, "interval": interval if len(set(cluster.values())) > 1 else None}
