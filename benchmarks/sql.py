"""Completions scored a second: our executor against SQL-R1's way, and against a bare connection.

    python benchmarks/sql.py --workload=runaways --json

`mixed`: 512 completions, 8 a question, on the embedded data's held-out databases: right, wrong, failing, refused.
`runaways`: the same with four that never end. Their peer is `serial`, SQL-R1's scheme from its description: one
completion at a time, a fresh connection for each query, gold run again each time, 30 s for each query. (A query past
them is interrupted here; there its thread goes on.) `raw` and `raw_scan`: aggregates
of a millisecond and more, with and without a sort of all rows, against one connection in one process: what a worker
loses, and what a second worker gains.

Ours and the peer take turns. Each of our repeats has a new pool, so nothing is known from the last. Prints a table, and
with --json one line: {benchmark, workload, ours: {seconds, completions, p50_ms, p99_ms, outcomes}, peers, ratio}.
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
RAW = {  # `raw` sorts all its rows, each an allocation where temporary data stay in memory; `raw_scan` sorts none
    "raw": "SELECT shop, count(*), sum(price) FROM sales WHERE day > {} AND price > {} GROUP BY shop",
    "raw_scan": "SELECT count(*), sum(price * price), max(shop) FROM sales WHERE day > {} AND price > {}",
}


class Completion(NamedTuple):
    database: Path
    sql: str
    gold: str


def completions(folder: Path, runaways: int) -> list[Completion]:
    """512 completions over 64 questions, in the order of their groups: half of them right."""
    cfg = config.freeze(presets.get("tiny"))
    synth = dataclasses.replace(cfg.data.synth, sft_databases=1, grpo_databases=1, newnames_databases=1)
    generate.generate(synth, 0, folder)
    rng = random.Random(0)
    asked = example.read_examples(f"synsql:{folder}/heldout.json", databases=str(folder / "databases"))
    asked = rng.sample(asked, QUESTIONS)
    made = [Completion(one.database, _answer(rng, one.sql), one.sql) for one in asked for _ in range(SAMPLES)]
    for number, place in enumerate(rng.sample(range(len(made)), runaways)):
        made[place] = made[place]._replace(sql=RUNAWAY.format(number))
    return made


def _answer(rng: random.Random, gold: str) -> str:
    wrong = (
        gold.replace("SELECT", "SELECT 1,", 1),
        f"SELECT * FROM ( {gold} ) LIMIT {rng.randint(1, 3)}",
        gold[: rng.randint(8, len(gold) - 1)],
        gold.replace("FROM", "FROM no_such_table,", 1),
        "DROP TABLE no_such_table",
    )
    return f"{gold} -- {rng.random()}" if rng.random() < 0.5 else rng.choice(wrong)


def ours(work: Sequence[Completion], workers: int) -> dict[str, Any]:
    """Seconds that a new pool takes for all of them, its start aside, and what it says of its queries."""
    with Executor(config.ExecuteConfig(workers=workers)) as executor:
        for future in [executor.run(work[i].database, f"SELECT {i}") for i in range(2 * workers)]:
            future.result()
        executor.stats()
        start = time.perf_counter()
        futures = [executor.submit(one.database, one.sql, one.gold, "bird") for one in work]
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


def serial(work: Sequence[Completion]) -> dict[str, Any]:
    """Seconds that SQL-R1's scheme takes for all of them."""
    start = time.perf_counter()
    right = 0
    for one in work:
        rows, gold = _rows(one.database, one.sql), _rows(one.database, one.gold)
        right += rows is not None and gold is not None and set(rows) == set(gold)
    return {"seconds": time.perf_counter() - start, "right": right}


def _rows(database: Path, sql: str) -> list[tuple] | None:
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


def heavy(folder: Path, kind: str) -> list[Completion]:
    """Queries over some thousands of rows, no two alike."""
    path = folder / "heavy.sqlite"
    rng = random.Random(0)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE sales (shop INTEGER, day INTEGER, price REAL)")
        rows = ((rng.randrange(50), rng.randrange(365), rng.random()) for _ in range(RAW_ROWS))
        connection.executemany("INSERT INTO sales VALUES (?, ?, ?)", rows)
        connection.commit()
    sql = RAW[kind]
    return [Completion(path, sql.format(i % 300, i / (2 * RAW_QUERIES)), "") for i in range(RAW_QUERIES)]


def raw(work: Sequence[Completion]) -> dict[str, Any]:
    """Seconds of one connection in this process."""
    with closing(sqlite3.connect(f"file:{work[0].database}?mode=ro", uri=True)) as connection:
        start = time.perf_counter()
        for one in work:
            connection.execute(one.sql).fetchall()
        return {"seconds": time.perf_counter() - start}


def unjudged(work: Sequence[Completion], workers: int) -> dict[str, Any]:
    """Seconds that a new pool takes to run them."""
    with Executor(config.ExecuteConfig(workers=workers)) as executor:
        executor.run(work[0].database, "SELECT 1").result()
        start = time.perf_counter()
        futures = [executor.run(one.database, one.sql) for one in work]
        kinds = {future.result().kind for future in futures}
        seconds = time.perf_counter() - start
    assert kinds == {OutcomeKind.OK}, kinds
    return {"seconds": seconds}


def measure(ways: dict[str, Callable[[], dict[str, Any]]], repeats: int) -> dict[str, dict[str, Any]]:
    """Each way's figures, its seconds a list: the ways take turns, and each round begins with another."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    order = collections.deque(ways)
    for _ in range(repeats):
        for name in order:
            runs[name].append(ways[name]())
        order.rotate(-1)
    return {name: some[-1] | {"seconds": [round(run["seconds"], 4) for run in some]} for name, some in runs.items()}


def run(workload: str, repeats: int, workers: int) -> dict[str, Any]:
    """One workload's result, as printed."""
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], dict[str, Any]]]
        if workload in RAW:
            work = heavy(Path(folder), workload)
            two, one = (functools.partial(unjudged, work, count) for count in (2, 1))
            ways = {"ours": two, "one_worker": one, "raw": functools.partial(raw, work)}
        else:
            work = completions(Path(folder), runaways=4 if workload == "runaways" else 0)
            ways = {"ours": functools.partial(ours, work, workers), "serial": functools.partial(serial, work)}
        figures = measure(ways, repeats)
    mine = figures.pop("ours") | {"completions": len(work)}
    seconds = statistics.median(mine["seconds"])
    ratio = {name: statistics.median(peer["seconds"]) / seconds for name, peer in figures.items()}
    if workload in RAW:
        ratio["raw_per_worker"] = ratio["raw"] / ratio["one_worker"]  # of one worker to a bare connection
    return {"benchmark": "sql", "workload": workload, "ours": mine, "peers": figures, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=("mixed", "runaways", *RAW), default="mixed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    args = parser.parse_args()
    result = run(args.workload, args.repeats, args.workers)
    if args.json:
        print(json.dumps(result))
        return
    for name, one in {"ours": result["ours"], **result["peers"]}.items():
        seconds = statistics.median(one["seconds"])
        print(f"{name:<12} {result['ours']['completions'] / seconds:9.1f} a second   {one}")
    print("ours against " + ", ".join(f"{name}: {ratio:.2f} ×" for name, ratio in result["ratio"].items()))


if __name__ == "__main__":
    main()
