"""Benchmark of comparing a result with itself under another order of its columns, as the rule `spider` does.

    python benchmarks/compare.py --rows=20000 --columns=20 --json

Ours is `sql/column_order.py`. The peer, `exact`, pairs columns by their exact multisets of cells and of (row label,
cell), starting from each row's multiset of cells; it keeps all of these multisets at once. Both take turns on the same
rows. Prints a table, or with --json one line for each kind of table: {benchmark, kind, rows, columns, ours: {seconds},
peers: {exact: {seconds}}, ratio}, in seconds of this process's CPU time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sqlr1_jax.sql import compare

Table = list[tuple[Any, ...]]
KINDS: dict[str, Callable[[random.Random, int, int], Table]] = {
    # Few distinct cells: the columns' multisets differ.
    "small": lambda rng, rows, columns: [tuple(rng.randrange(50) for _ in range(columns)) for _ in range(rows)],
    # Python gives both cells the same hash, as in surveys that code "refused" as -1 and "does not apply" as -2.
    "codes": lambda rng, rows, columns: [tuple(rng.choices((-1, -2), k=columns)) for _ in range(rows)],
    "real": lambda rng, rows, columns: [tuple(rng.random() for _ in range(columns)) for _ in range(rows)],
    # All columns have the same multiset: rows must tell them apart.
    "ids": lambda rng, rows, columns: list(zip(*(rng.sample(range(rows), rows) for _ in range(columns)), strict=True)),
}


def exact(gold: Table, rows: Table) -> bool:
    """The peer: partition refinement on exact multisets. It does not search where refinement does not decide."""
    names: dict[Any, int] = {}

    def label(values: Any) -> list[int]:
        return [names.setdefault(value, len(names)) for value in values]

    def classes(columns: list[tuple], labels: list[int]) -> dict[Any, list[tuple]]:
        found: dict[Any, list[tuple]] = {}
        for column in columns:
            found.setdefault(_bag(zip(labels, column, strict=True)), []).append(column)
        return found

    gold_labels, labels = label(map(_bag, gold)), label(map(_bag, rows))
    gold_classes = classes(list(zip(*gold, strict=True)), gold_labels)
    for key, members in classes(list(zip(*rows, strict=True)), labels).items():
        gold_members = gold_classes.pop(key, [])
        if len(set(gold_members)) != 1 or len(gold_members) != len(members):
            return False
        gold_labels = label(zip(gold_labels, gold_members[0], strict=True))
        labels = label(zip(labels, members[0], strict=True))
    return Counter(gold_labels) == Counter(labels)


def _bag(cells: Any) -> frozenset:
    return frozenset(Counter(cells).items())


def ours(gold: Table, rows: Table) -> bool:
    """The rule `spider` of this package."""
    return bool(compare.compare("spider", gold, rows, ordered=False))


def measure(kind: str, num_rows: int, num_columns: int, repeats: int) -> dict[str, Any]:
    """The median CPU seconds of each engine over `repeats` turns."""
    rng = random.Random(0)
    gold = KINDS[kind](rng, num_rows, num_columns)
    order = rng.sample(range(num_columns), num_columns)
    rows = [tuple(row[i] for i in order) for row in gold]
    seconds: dict[str, list[float]] = {"ours": [], "exact": []}
    for _ in range(repeats):
        for engine in (ours, exact):
            start = time.process_time()
            assert engine(gold, rows), f"{engine.__name__} does not match"
            seconds[engine.__name__].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "benchmark": "compare",
        "kind": kind,
        "rows": num_rows,
        "columns": num_columns,
        "ours": {"seconds": medians["ours"]},
        "peers": {"exact": {"seconds": medians["exact"]}},
        "ratio": medians["exact"] / medians["ours"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the result")
    parser.add_argument("--columns", type=int, default=20, help="columns of the result")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each engine")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    args = parser.parse_args(argv)
    for kind in KINDS:
        found = measure(kind, args.rows, args.columns, args.repeats)
        exact_seconds, seconds = found["peers"]["exact"]["seconds"], found["ours"]["seconds"]
        line = f"{kind:6} ours {seconds:.2f} s, exact {exact_seconds:.2f} s, ratio {found['ratio']:.1f}"
        print(json.dumps(found) if args.json else line, flush=True)


if __name__ == "__main__":
    main()
