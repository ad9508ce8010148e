"""What an executor holds while it scores a million completions: descriptors, threads, memory, temporary files.

    python benchmarks/endurance.py --count=1000000 --plot=docs/endurance.svg

Completions of every outcome on four small databases, none asked twice, a runaway in each 5,000 and one that must be
killed in each 50,000. Prints one JSON line: {benchmark, completions, seconds, outcomes, samples: {name: [of each
40th part of the way]}}; `tests/sql/endurance_test.py` holds it to not growing. --plot needs matplotlib (extra `bench`).
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlr1_jax import config
from sqlr1_jax.sql.executor import Executor

PARTS = 40
AHEAD = 2_000  # completions handed over before the first of them is waited for
CFG = config.ExecuteConfig(workers=2, max_steps=200_000, wall_seconds=2.0, max_rows=1_000)
GOLD = "SELECT shop, count(*) FROM sales GROUP BY shop"
STATEMENTS = (
    GOLD,
    "SELECT shop, sum(price) FROM sales GROUP BY shop",
    "SELECT count(*), shop FROM sales GROUP BY shop",
    "SELECT nope FROM sales",
    "SELECT FROM",
    "SELECT abs(-9223372036854775808)",
    "DROP TABLE sales",
    "SELECT a.shop FROM sales a, sales b",
    "SELECT group_concat(hex(zeroblob(1000))) FROM sales",
)
RUNAWAY = "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT count(*) FROM t"
LONG = "replace(hex(zeroblob({0})), '0', 'a')"
ONE_LONG_STEP = f"SELECT instr({LONG.format(450_000)}, {LONG.format(220_000)} || 'b')"


def databases(folder: Path) -> list[Path]:
    """Four files of 50 rows."""
    paths = [folder / f"{i}.sqlite" for i in range(4)]
    for path in paths:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE sales (shop INTEGER, price REAL)")
            connection.executemany("INSERT INTO sales VALUES (?, ?)", [(i % 7, i / 3) for i in range(50)])
            connection.commit()
    return paths


def statement(number: int) -> str:
    """The SQL of a completion, unlike that of any other."""
    kind = STATEMENTS[number % len(STATEMENTS)]
    if number % 5_000 == 17:
        kind = RUNAWAY
    if number % 50_000 == 18:
        kind = ONE_LONG_STEP
    return f"{kind} -- {number}"


def held(executor: Executor, folder: Path) -> dict[str, int]:
    """What this process and its workers hold now."""
    workers = [_resident(worker.pid) for worker in executor.workers]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "megabytes": _resident(os.getpid()) >> 20,
        "worker_megabytes": max(workers) >> 20,
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "files": len(os.listdir(folder)),
    }


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # replaced meanwhile
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def score(count: int) -> dict[str, Any]:
    """Scores `count` completions and samples what is held along the way."""
    outcomes: collections.Counter[str] = collections.Counter()
    samples: dict[str, list[int]] = collections.defaultdict(list)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, Executor(CFG) as executor:
        folder = Path(name)
        paths = databases(folder)
        for part in _parts(count):
            for first in range(part.start, part.stop, AHEAD):
                numbers = range(first, min(first + AHEAD, part.stop))
                futures = [executor.submit(paths[n % 4], statement(n), GOLD, "bird") for n in numbers]
                outcomes.update(future.result().kind for future in futures)
            for what, value in held(executor, folder).items():
                samples[what].append(value)
    seconds = round(time.perf_counter() - start, 1)
    return {
        "benchmark": "endurance", "completions": count, "seconds": seconds, "outcomes": dict(outcomes),
        "samples": dict(samples),
    }  # fmt: skip


def _parts(count: int) -> Iterator[range]:
    edges = [count * i // PARTS for i in range(PARTS + 1)]
    return (range(a, b) for a, b in itertools.pairwise(edges))


def plot(samples: dict[str, Sequence[int]], count: int, path: Path) -> None:
    """A small chart for each thing that is held."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(samples), figsize=(3 * len(samples), 2.4), layout="constrained")
    for axis, (name, values) in zip(axes, samples.items(), strict=True):
        axis.plot([count * (i + 1) / len(values) / 1e3 for i in range(len(values))], values)
        axis.set(title=name.replace("_", " "), xlabel="thousand completions", ylim=(0, max(values) * 1.2))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    result = score(args.count)
    if args.plot:
        plot(result["samples"], args.count, args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
