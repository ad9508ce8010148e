"""Resources of an executor while it scores a million completions: descriptors, threads, memory, temporary files.

    python benchmarks/endurance.py --count=1000000 --plot=docs/endurance.svg

The completions have every outcome and run on four small databases. All statements differ. One in 5,000 never ends by
itself, and one in 50,000 must be killed. Prints one JSON line: {benchmark, completions, seconds, outcomes, samples:
{resource: [value after each fortieth of the completions]}}. `tests/sql/endurance_test.py` checks that no resource
grows. --plot needs matplotlib (extra `bench`).
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

SAMPLES = 40  # how often resources are sampled
MAX_PENDING = 2_000  # completions submitted before their results are awaited
EXECUTE_CONFIG = config.ExecuteConfig(workers=2, max_steps=200_000, wall_seconds=2.0, max_rows=1_000)
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
LONG_STEP = f"SELECT instr({LONG.format(450_000)}, {LONG.format(220_000)} || 'b')"


def create_databases(folder: Path) -> list[Path]:
    """Creates four databases with 50 rows each."""
    paths = [folder / f"{i}.sqlite" for i in range(4)]
    for path in paths:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE sales (shop INTEGER, price REAL)")
            connection.executemany("INSERT INTO sales VALUES (?, ?)", [(i % 7, i / 3) for i in range(50)])
            connection.commit()
    return paths


def statement(number: int) -> str:
    """The SQL of completion `number`; the comment makes each statement different."""
    sql = STATEMENTS[number % len(STATEMENTS)]
    if number % 5_000 == 17:
        sql = RUNAWAY
    if number % 50_000 == 18:
        sql = LONG_STEP
    return f"{sql} -- {number}"


def resource_usage(executor: Executor, folder: Path) -> dict[str, int]:
    """Resources that this process and its workers use now; `folder` has the databases."""
    worker_bytes = [_resident_bytes(worker.pid) for worker in executor.workers]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "megabytes": _resident_bytes(os.getpid()) >> 20,
        "worker_megabytes": max(worker_bytes) >> 20,
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "files": len(os.listdir(folder)),
    }


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # the worker has been replaced since its id was read
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def score(count: int) -> dict[str, Any]:
    """Scores `count` completions and samples resources SAMPLES times."""
    outcomes: collections.Counter[str] = collections.Counter()
    samples: dict[str, list[int]] = collections.defaultdict(list)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, Executor(EXECUTE_CONFIG) as executor:
        folder = Path(name)
        paths = create_databases(folder)
        for section in _sections(count):
            for first in range(section.start, section.stop, MAX_PENDING):
                numbers = range(first, min(first + MAX_PENDING, section.stop))
                futures = [executor.submit(paths[n % 4], statement(n), GOLD, "bird") for n in numbers]
                outcomes.update(future.result().kind for future in futures)
            for resource, value in resource_usage(executor, folder).items():
                samples[resource].append(value)
    seconds = round(time.perf_counter() - start, 1)
    return {
        "benchmark": "endurance", "completions": count, "seconds": seconds, "outcomes": dict(outcomes),
        "samples": dict(samples),
    }  # fmt: skip


def _sections(count: int) -> Iterator[range]:
    edges = [count * i // SAMPLES for i in range(SAMPLES + 1)]
    return (range(start, stop) for start, stop in itertools.pairwise(edges))


def plot(samples: dict[str, Sequence[int]], count: int, path: Path) -> None:
    """Draws one small chart for each resource."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(samples), figsize=(3 * len(samples), 2.4), layout="constrained")
    for axis, (name, values) in zip(axes, samples.items(), strict=True):
        axis.plot([count * (i + 1) / len(values) / 1e3 for i in range(len(values))], values)
        axis.set(title=name.replace("_", " "), xlabel="thousand completions", ylim=(0, max(values) * 1.2))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="number of completions")
    parser.add_argument("--plot", type=Path, help="file for the charts")
    args = parser.parse_args()
    result = score(args.count)
    if args.plot:
        plot(result["samples"], args.count, args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
