"""Benchmark of scored completions per second: our executor, SQL-R1's scheme, and a bare connection.

    python benchmarks/sql.py --workload=runaways --json

`mixed`: 512 completions, 8 for each question, on the held-out databases of the embedded data. They are correct, wrong,
failing or denied. `runaways`: the same with four that never end. Their peer is `serial`, SQL-R1's scheme implemented
from its description: one completion at a time, a new connection for each query, the gold query run again each time, and
a limit of 30 s for each query. (Here a query past the limit is interrupted; in SQL-R1 its thread continues.) `raw` and
`raw_scan`: aggregates of a millisecond and more, with and without a sort of all rows. Their peers are one connection in
this process, which shows the overhead of a worker, and our executor with one worker, which shows the gain of a second.

Ours and the peers take turns. Each repeat of ours uses a new pool, so no result is cached. Prints a table, or with
--json one line: {benchmark, workload, ours: {seconds, completions, p50_ms, p99_ms, outcomes}, peers, ratio}.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import random
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from sqlr1_jax import config, presets
from sqlr1_jax.data import example
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.synth import generate

QUESTIONS, SAMPLES = 64, 8
SERIAL_SECONDS = 30.0
RUNAWAY = "WITH RECURSIVE t(a) AS (SELECT {} UNION ALL SELECT a + 1 FROM t) SELECT count(*) FROM t"
RAW_ROWS, RAW_QUERIES = 20_000, 2_000
# `raw` sorts all rows, each of which is an allocation if temporary data stays in memory; `raw_scan` sorts none.
RAW = {
    "raw": "SELECT shop, count(*), sum(price) FROM sales WHERE day > {} AND price > {} GROUP BY shop",
    "raw_scan": "SELECT count(*), sum(price * price), max(shop) FROM sales WHERE day > {} AND price > {}",
}


class Completion(NamedTuple):
    """One statement to score against a gold query."""

    database: Path
    sql: str
    gold: str


def make_completions(folder: Path, runaways: int) -> list[Completion]:
    """512 completions of 64 questions, grouped by question; half of them are correct, and `runaways` never end."""
    run_config = config.freeze(presets.get("tiny"))
    synth = dataclasses.replace(run_config.data.synth, sft_databases=1, grpo_databases=1, newnames_databases=1)
    generate.generate(synth, 0, folder)
    rng = random.Random(0)
    examples = example.read_examples(f"synsql:{folder}/heldout.json", databases=str(folder / "databases"))
    questions = rng.sample(examples, QUESTIONS)
    completions = [Completion(q.database, _predict(rng, q.sql), q.sql) for q in questions for _ in range(SAMPLES)]
    for number, index in enumerate(rng.sample(range(len(completions)), runaways)):
        completions[index] = completions[index]._replace(sql=RUNAWAY.format(number))
    return completions


def _predict(rng: random.Random, gold: str) -> str:
    wrong = (
        gold.replace("SELECT", "SELECT 1,", 1),
        f"SELECT * FROM ( {gold} ) LIMIT {rng.randint(1, 3)}",
        gold[: rng.randint(8, len(gold) - 1)],
        gold.replace("FROM", "FROM no_such_table,", 1),
        "DROP TABLE no_such_table",
    )
    return f"{gold} -- {rng.random()}" if rng.random() < 0.5 else rng.choice(wrong)


def score(work: Sequence[Completion], workers: int) -> dict[str, Any]:
    """Scores all completions with a new pool: seconds without the pool's start, query times and outcomes."""
    with Executor(config.ExecuteConfig(workers=workers)) as executor:
        for future in [executor.run(work[i].database, f"SELECT {i}") for i in range(2 * workers)]:
            future.result()
        executor.stats()
        start = time.perf_counter()
        futures = [executor.submit(item.database, item.sql, item.gold, "bird") for item in work]
        outcomes = collections.Counter(future.result().kind for future in futures)
        seconds = time.perf_counter() - start
        stats = executor.stats()
    return {
        "seconds": seconds,
        "p50_ms": stats["sql/p50_ms"],
        "p99_ms": stats["sql/p99_ms"],
        "right": sum(number for kind, number in outcomes.items() if kind.correct),
        "outcomes": dict(outcomes),
    }


def score_serially(work: Sequence[Completion]) -> dict[str, Any]:
    """Scores all completions by SQL-R1's scheme."""
    start = time.perf_counter()
    right = 0
    for item in work:
        rows, gold = _fetch_rows(item.database, item.sql), _fetch_rows(item.database, item.gold)
        right += rows is not None and gold is not None and set(rows) == set(gold)
    return {"seconds": time.perf_counter() - start, "right": right}


def _fetch_rows(database: Path, sql: str) -> list[tuple] | None:
    rows: list[list[tuple]] = []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, check_same_thread=False)) as connection:

        def run() -> None:
            with suppress(sqlite3.Error, sqlite3.Warning):
                rows.append(connection.execute(sql).fetchall())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(SERIAL_SECONDS)
        if thread.is_alive():
            connection.interrupt()
            thread.join()
    return rows[0] if rows else None


def make_aggregates(folder: Path, workload: str) -> list[Completion]:
    """RAW_QUERIES different queries over a table of RAW_ROWS rows, without gold queries."""
    path = folder / "heavy.sqlite"
    rng = random.Random(0)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE sales (shop INTEGER, day INTEGER, price REAL)")
        rows = ((rng.randrange(50), rng.randrange(365), rng.random()) for _ in range(RAW_ROWS))
        connection.executemany("INSERT INTO sales VALUES (?, ?, ?)", rows)
        connection.commit()
    sql = RAW[workload]
    return [Completion(path, sql.format(i % 300, i / (2 * RAW_QUERIES)), "") for i in range(RAW_QUERIES)]


def run_bare(work: Sequence[Completion]) -> dict[str, Any]:
    """Runs all queries on one connection in this process."""
    with closing(sqlite3.connect(f"file:{work[0].database}?mode=ro", uri=True)) as connection:
        start = time.perf_counter()
        for item in work:
            connection.execute(item.sql).fetchall()
        return {"seconds": time.perf_counter() - start}


def run_pool(work: Sequence[Completion], workers: int) -> dict[str, Any]:
    """Runs all queries with a new pool, without comparing their results."""
    with Executor(config.ExecuteConfig(workers=workers)) as executor:
        executor.run(work[0].database, "SELECT 1").result()
        start = time.perf_counter()
        futures = [executor.run(item.database, item.sql) for item in work]
        kinds = {future.result().kind for future in futures}
        seconds = time.perf_counter() - start
    assert kinds == {OutcomeKind.OK}, kinds
    return {"seconds": seconds}


def measure(engines: dict[str, Callable[[], dict[str, Any]]], repeats: int) -> dict[str, dict[str, Any]]:
    """Figures of each engine, with a list of seconds. Engines take turns; each round starts with the next engine."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    order = collections.deque(engines)
    for _ in range(repeats):
        for name in order:
            runs[name].append(engines[name]())
        order.rotate(-1)
    seconds = {name: [round(figures["seconds"], 4) for figures in runs[name]] for name in runs}
    return {name: runs[name][-1] | {"seconds": seconds[name]} for name in runs}


def run(workload: str, repeats: int, workers: int) -> dict[str, Any]:
    """Measures one workload and returns the result that main prints."""
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Callable[[], dict[str, Any]]]
        if workload in RAW:
            work = make_aggregates(Path(folder), workload)
            two_workers, one_worker = (functools.partial(run_pool, work, count) for count in (2, 1))
            engines = {"ours": two_workers, "one_worker": one_worker, "raw": functools.partial(run_bare, work)}
        else:
            work = make_completions(Path(folder), runaways=4 if workload == "runaways" else 0)
            engines = {
                "ours": functools.partial(score, work, workers),
                "serial": functools.partial(score_serially, work),
            }
        figures = measure(engines, repeats)
    ours = figures.pop("ours") | {"completions": len(work)}
    seconds = statistics.median(ours["seconds"])
    ratio = {name: statistics.median(peer["seconds"]) / seconds for name, peer in figures.items()}
    if workload in RAW:
        # Speed of one worker relative to a bare connection.
        ratio["raw_per_worker"] = ratio["raw"] / ratio["one_worker"]
    return {"benchmark": "sql", "workload": workload, "ours": ours, "peers": figures, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=("mixed", "runaways", *RAW), default="mixed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON line and nothing else")
    args = parser.parse_args()
    result = run(args.workload, args.repeats, args.workers)
    if args.json:
        print(json.dumps(result))
        return
    for name, figures in {"ours": result["ours"], **result["peers"]}.items():
        seconds = statistics.median(figures["seconds"])
        print(f"{name:<12} {result['ours']['completions'] / seconds:9.1f} per second   {figures}")
    print("speed of ours relative to " + ", ".join(f"{name}: {ratio:.2f} ×" for name, ratio in result["ratio"].items()))


if __name__ == "__main__":
    main()
