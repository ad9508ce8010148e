"""python -m sqlr1_jax.score --metric=spider,bird --gold=dev.json --databases=database/ --predictions=file.jsonl."""

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
from sqlr1_jax.io import atomic_write_text
from sqlr1_jax.sql import backends
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import OutcomeKind

# Golds are trusted to end and their databases may be large: 10 s of steps and, as the official code waits, 30 s.
MAX_STEPS, COMPAT_MAX_STEPS = 1_000_000_000, 3_000_000_000
# The official code has no cap: one beyond which a prediction is hardly right.
LARGEST: dict[str, Any] = {"max_rows": 1_000_000, "max_bytes": 256 * 2**20}


def score(
    names: Sequence[str], gold: Path, predictions: Path, databases: Path, protocol: Protocol, cfg: ExecuteConfig
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judges predictions by the named metrics: the figures as `--json` prints them, and one verdict line a gold.

    Raises:
      ExampleError: a file cannot be used; it names the file, the record and the fix, and nothing has run.
    """
    golds = formats.read_golds(gold)
    said = formats.read_predictions(predictions, golds)
    files = formats.find_databases(golds, databases, protocol.compat)
    verdicts = {}
    for together, settings in _pools(names, protocol, cfg):
        with Executor(settings) as executor:
            for name in together:
                verdicts[name] = metrics.judge_predictions(executor, name, golds, said, files, protocol)
    first = verdicts[names[0]]
    kinds = Counter(verdict.kind for verdict in first)
    made = {
        "metrics": {name: metrics.figures(golds, verdicts[name]) for name in names},
        "n": len(golds),
        "databases": len(files),
        "missing": kinds[metrics.MISSING],
        "ignored": said.ignored,
        "gold_errors": kinds[OutcomeKind.GOLD_ERROR],
        "raised": {name: sum(v.value is None for v in verdicts[name]) for name in names if protocol.compat},
        "outcomes": dict(sorted(kinds.items())),
        "compat": protocol.compat,
        "keep_distinct": protocol.keep_distinct or not protocol.compat,
        "sqlite": backends.version(cfg.backend),
    }
    return made, [_line(golds[i], {name: verdicts[name][i] for name in names}) for i in range(len(golds))]


def _pools(names: Sequence[str], protocol: Protocol, cfg: ExecuteConfig) -> list[tuple[list[str], ExecuteConfig]]:
    """Which metrics share a pool of workers: all but the timed one, which has a single worker."""
    untimed = [name for name in names if name != "r_ves"]
    pools = [(untimed, cfg)] if untimed else []
    return pools + ([(["r_ves"], metrics.timed(cfg, protocol.iterations))] if "r_ves" in names else [])


def show(made: Mapping[str, Any]) -> str:
    """The figures as a table for a terminal, in per cent, with what a reader must know of them below."""
    lines = [f"{'metric':<10} {'difficulty':<16} {'n':>6} {'score':>7}   95 % interval"]
    for name, figures in made["metrics"].items():
        for difficulty, figure in {"all": figures["all"], **figures.get("by_difficulty", {})}.items():
            lines.append(_row(name, difficulty, figure))
    return "\n".join([*lines, "", *_remarks(made)])


def _row(name: str, difficulty: str, figure: Mapping[str, Any]) -> str:
    interval = figure["interval"]
    between = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else "none: one database"
    return f"{name:<10} {difficulty:<16} {figure['n']:>6} {100 * figure['score']:>7.2f}   {between}"


def _remarks(made: Mapping[str, Any]) -> list[str]:
    """How it was judged, and what was counted beside."""
    distinct = "DISTINCT kept" if made["keep_distinct"] else "DISTINCT stripped"
    rules = f"the official evaluators' rules, {distinct}" if made["compat"] else "this project's rules"
    lines = [f"{made['n']} golds on {made['databases']} databases by {rules}; SQLite {made['sqlite']}"]
    if not any("by_difficulty" in figures for figures in made["metrics"].values()):
        lines.append("this gold file says nothing of difficulty")
    counted = {
        "golds without a prediction, counted as wrong": made["missing"],
        "predictions for ids that gold lacks, ignored": made["ignored"],
        "golds that fail or run out of steps, counted as wrong (--max_steps= allows more)": made["gold_errors"],
    }
    for name, number in made["raised"].items():
        counted[f"items at which the official code would stop with an error, counted as wrong by {name}"] = number
    lines += [f"{number} {what}" for what, number in counted.items() if number]
    return [*lines, "outcomes: " + ", ".join(f"{kind} {number}" for kind, number in made["outcomes"].items())]


def _line(gold: Gold, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """One line of --output; `outcome` is the first metric's."""
    line: dict[str, Any] = {"id": gold.id}
    for name, verdict in verdicts.items():
        whole = name in ("spider", "bird") and verdict.value is not None
        line[name] = bool(verdict.value) if whole else verdict.value
    return line | {"outcome": next(iter(verdicts.values())).kind}


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` without the program's name."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.keep_distinct and not args.compat:
        parser.error("--keep_distinct belongs to --compat; without it DISTINCT is always kept.")
    if args.output and not args.output.absolute().parent.is_dir():
        parser.error(f"--output={args.output} is in a folder that is not there: make it first.")
    protocol = Protocol(args.compat, args.keep_distinct, args.iterations)
    steps = args.max_steps or (COMPAT_MAX_STEPS if args.compat else MAX_STEPS)
    cfg = ExecuteConfig(workers=args.workers, max_steps=steps, wall_seconds=120.0)
    cfg = dataclasses.replace(cfg, **(LARGEST if args.compat else {}))
    databases = args.databases or formats.default_databases(args.gold)
    made, lines = score(args.metric, args.gold, args.predictions, databases, protocol, cfg)
    if args.output:
        atomic_write_text(args.output, "".join(json.dumps(line) + "\n" for line in lines))
    print(json.dumps(made) if args.json else show(made))


def _metrics(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(f"there is no metric {name!r}; name some of {','.join(METRICS)}")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1")
    return int(text)


def _iterations(text: str) -> int:
    if _positive(text) < 2:
        raise argparse.ArgumentTypeError("one run has no spread, for which the official code gives 0; time at least 2")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.score", description="Judges predicted SQL against gold.")
    add = parser.add_argument
    add("--metric", type=_metrics, default="spider", help=f"some of {','.join(METRICS)}; %(default)s unless given")
    add("--gold", type=Path, required=True, help="Spider's, BIRD's or our JSON, or lines SQL<tab>db_id")
    add("--databases", type=Path, help="a folder of <db_id>/<db_id>.sqlite; beside the gold unless given")
    add("--predictions", type=Path, required=True, help="JSON lines {id, db_id, sql}, one SQL a line, or BIRD's object")
    add("--compat", action="store_true", help="copy the official evaluators to the letter, but for writing")
    add("--keep_distinct", action="store_true", help="of --compat's spider: keep DISTINCT and further statements")
    add("--output", type=Path, help="a file for one verdict a line: {id, each metric, outcome}")
    add("--json", action="store_true", help="print one JSON object, in fractions, instead of a table in per cent")
    add("--iterations", type=_iterations, default=r_ves.ITERATIONS, help="runs timed for r_ves; %(default)s")
    add("--max_steps", type=_positive, help="SQLite steps a query may take, 1e8 being about a second")
    add("--workers", type=_positive, default=os.cpu_count() or 1, help="processes that run SQL; %(default)s")
    return parser


if __name__ == "__main__":
    main()
