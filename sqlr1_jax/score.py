"""python -m sqlr1_jax.score: scores predicted SQL against gold SQL by the metrics of Spider and BIRD.

    python -m sqlr1_jax.score --metric=spider,bird --gold=dev.json --databases=database/ --predictions=file.jsonl

docs/metrics.md describes the metrics and file formats.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.errors import exit_on_error
from sqlr1_jax.evaluate.benchmarks import formats, metrics, r_ves
from sqlr1_jax.evaluate.benchmarks.formats import Gold
from sqlr1_jax.evaluate.benchmarks.metrics import METRICS, Protocol, Verdict
from sqlr1_jax.io import user_path, write_jsonl
from sqlr1_jax.sql import backends
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.terminal import printable

# SQLite steps per query, about 10 s and 30 s: gold queries are trusted to end, and databases may be large. The official
# code waits 30 s.
MAX_STEPS, COMPAT_MAX_STEPS = 1_000_000_000, 3_000_000_000
# The official code has no limit on results. A correct result is hardly ever larger than this.
COMPAT_RESULT_LIMITS: dict[str, Any] = {"max_rows": 1_000_000, "max_bytes": 256 * 2**20}


def score(
    names: Sequence[str],
    gold_file: Path,
    predictions_file: Path,
    databases_folder: Path,
    protocol: Protocol,
    config: ExecuteConfig,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores predictions by the named metrics; returns what --json prints, and one line of --output per gold query.

    Raises:
      ExampleError: a file cannot be used; the message names the file, the record and the fix.
      MetricError: a metric cannot be computed under `protocol`.
        Both are raised before any query runs.
    """
    for name in names:
        metrics.comparison_rule(name, protocol)
    golds = formats.read_golds(gold_file, protocol.compat)
    predictions = formats.read_predictions(predictions_file, golds)
    databases = formats.find_databases(golds, databases_folder, protocol.compat)
    verdicts: dict[str, list[Verdict]] = {}
    for pool_names, pool_config in _pools(names, protocol, config):
        with Executor(pool_config) as executor:
            for name in pool_names:
                verdicts[name] = metrics.judge_predictions(executor, name, golds, predictions, databases, protocol)
    kinds = Counter(verdict.kind for verdict in verdicts[names[0]])
    result = {
        "metrics": {name: metrics.figures(golds, verdicts[name]) for name in names},
        "n": len(golds),
        "databases": len(databases),
        "missing": kinds[metrics.MISSING],
        "ignored": predictions.ignored,
        "gold_errors": kinds[OutcomeKind.GOLD_ERROR],
        "raised": {name: sum(v.value is None for v in verdicts[name]) for name in names if protocol.compat},
        "outcomes": dict(sorted(kinds.items())),
        "compat": protocol.compat,
        "keep_distinct": protocol.keep_distinct or not protocol.compat,
        "sqlite": backends.version(config.backend),
    }
    return result, [_output_line(golds[i], {name: verdicts[name][i] for name in names}) for i in range(len(golds))]


def _pools(names: Sequence[str], protocol: Protocol, config: ExecuteConfig) -> list[tuple[list[str], ExecuteConfig]]:
    """(metrics, executor settings) of each pool of SQL workers: timed metrics have one of their own."""
    timed = [name for name in names if METRICS[name].is_timed]
    untimed = [name for name in names if name not in timed]
    pools = [(untimed, config), (timed, metrics.timing_config(config, protocol.iterations))]
    return [pool for pool in pools if pool[0]]


def format_table(result: Mapping[str, Any]) -> str:
    """The figures as a table for a terminal, in percent, followed by remarks."""
    lines = [f"{'metric':<10} {'difficulty':<16} {'n':>6} {'score':>7}   95 % interval"]
    for name, figures in result["metrics"].items():
        for difficulty, figure in {"all": figures["all"], **figures.get("by_difficulty", {})}.items():
            interval = " to ".join(f"{100 * end:.1f}" for end in figure["interval"] or ()) or "none: one database"
            lines.append(f"{name:<10} {difficulty:<16} {figure['n']:>6} {100 * figure['score']:>7.2f}   {interval}")
    return "\n".join([*lines, "", *_remarks(result)])


def _remarks(result: Mapping[str, Any]) -> list[str]:
    """Which rules decided, and how many items count as wrong for a reason other than their result."""
    distinct = "DISTINCT kept" if result["keep_distinct"] else "DISTINCT removed"
    rules = f"the official evaluators' rules, {distinct}" if result["compat"] else "this project's rules"
    lines = [
        f"{result['n']} gold queries on {result['databases']} databases, compared by {rules}; SQLite {result['sqlite']}"
    ]
    if not any("by_difficulty" in figures for figures in result["metrics"].values()):
        lines.append("the gold file has no difficulties")
    counts = {
        "gold queries without a prediction, counted as wrong": result["missing"],
        "predictions whose id is not in the gold file, ignored": result["ignored"],
        "gold queries that fail or exceed the step limit, counted as wrong (raise --max_steps=)": result["gold_errors"],
    }
    for name, number in result["raised"].items():
        counts[f"items on which the official code would stop with an error, counted as wrong by {name}"] = number
    lines += [f"{number} {what}" for what, number in counts.items() if number]
    return [*lines, "outcomes: " + ", ".join(f"{kind} {number}" for kind, number in result["outcomes"].items())]


def _output_line(gold: Gold, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """One line of --output; `outcome` is that of the first metric."""
    line: dict[str, Any] = {"id": gold.id}
    for name, verdict in verdicts.items():
        as_bool = verdict.value is not None and not METRICS[name].is_fraction
        line[name] = bool(verdict.value) if as_bool else verdict.value
    return line | {"outcome": next(iter(verdicts.values())).kind}


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is without the program's name."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.keep_distinct and not args.compat:
        parser.error("--keep_distinct needs --compat; without it DISTINCT is always kept.")
    if args.output and not args.output.absolute().parent.is_dir():
        parser.error(f"--output={args.output}: the folder does not exist; create it first.")
    protocol = Protocol(args.compat, args.keep_distinct, args.iterations)
    max_steps = args.max_steps or (COMPAT_MAX_STEPS if args.compat else MAX_STEPS)
    config = ExecuteConfig(workers=args.workers, max_steps=max_steps, wall_seconds=120.0)
    config = dataclasses.replace(config, **(COMPAT_RESULT_LIMITS if args.compat else {}))
    databases = args.databases or formats.default_databases(args.gold)
    result, lines = score(args.metric, args.gold, args.predictions, databases, protocol, config)
    if args.output:
        write_jsonl(args.output, lines)
    print(json.dumps(result) if args.json else printable(format_table(result)))


def _metric_names(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(f"there is no metric {name!r}; choose from {','.join(METRICS)}")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def _iterations(text: str) -> int:
    if _positive(text) < 2:
        raise argparse.ArgumentTypeError("one run has no spread, and the official code gives it 0; use at least 2")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sqlr1_jax.score", description="Scores predicted SQL against gold SQL."
    )
    add = parser.add_argument
    add("--metric", type=_metric_names, default="spider", help=f"one or more of {','.join(METRICS)}; %(default)s")
    add("--gold", type=Path, required=True, help="JSON of Spider, BIRD or this project, or lines of SQL<tab>db_id")
    add("--databases", type=Path, help="folder of <db_id>/<db_id>.sqlite; by default the one next to the gold file")
    add("--predictions", type=Path, required=True, help="JSON lines {id, db_id, sql}, one SQL per line, or BIRD's JSON")
    add("--compat", action="store_true", help="use the official evaluators' rules instead of this project's")
    add("--keep_distinct", action="store_true", help="with --compat, spider: keep DISTINCT and further statements")
    add("--output", type=user_path, help="write one JSON line per gold query: {id, each metric, outcome}")
    add("--json", action="store_true", help="print one JSON object, in fractions, instead of a table in percent")
    add("--iterations", type=_iterations, default=r_ves.ITERATIONS, help="timed runs per query of r_ves; %(default)s")
    add("--max_steps", type=_positive, help="SQLite steps that a query may take; 1e8 are about a second")
    add("--workers", type=_positive, default=os.cpu_count() or 1, help="processes that run SQL; %(default)s")
    return parser


if __name__ == "__main__":
    main()
