"""Named selections from SynSQL-2.5M (docs/method.md, section 10), each a function of the seed and the records' ids.

A selection takes examples in the order of a hash of (seed, id). So it does not depend on the order of the file, and a
smaller selection is the first part of a larger one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

COMPLEXITIES = ("Simple", "Moderate", "Complex", "Highly Complex")
SPARE = 4  # candidates kept per wanted example, because the gold SQL of some may return no rows


class Candidate(Protocol):
    """What a selection looks at in an example."""

    @property
    def id(self) -> str: ...
    @property
    def complexity(self) -> str: ...
    @property
    def database(self) -> Path: ...
    @property
    def sql(self) -> str: ...


C = TypeVar("C", bound=Candidate)


@dataclasses.dataclass(frozen=True)
class Selection:
    """How many examples of each complexity to select, and whether their gold SQL must return rows."""

    counts: Mapping[str, int]
    with_rows: bool


SELECTIONS = {
    "synsql-200k": Selection(dict.fromkeys(COMPLEXITIES, 50_000), with_rows=True),
    "complex-5k": Selection({"Complex": 5_000}, with_rows=False),
}


def select(
    selection: Selection,
    examples: Iterable[C],
    seed: int,
    returns_rows: Callable[[Sequence[C]], Sequence[bool]] | None = None,
) -> list[C]:
    """Selects examples, in the order of their hash; `shortages` tells whether they are as many as wanted.

    returns_rows: tells for each example whether its gold SQL returns rows; by default the SQL is run.
    """
    spare = SPARE if selection.with_rows else 1
    drawn = _draw(examples, {name: count * spare for name, count in selection.counts.items()}, seed)
    selected: list[tuple[int, C]] = []
    for complexity, count in selection.counts.items():
        candidates = drawn[complexity]
        if selection.with_rows:
            candidates = _with_rows(candidates, count, returns_rows or gold_sql_returns_rows)
        selected += candidates
    return [example for _, example in sorted(selected, key=lambda pair: pair[0])]


def shortages(selection: Selection, selected: Iterable[Candidate]) -> list[str]:
    """A warning for each complexity of which fewer examples were selected than wanted."""
    found = Counter(example.complexity for example in selected)
    return [
        f"{complexity}: {found[complexity]} examples instead of {count} were selected"
        for complexity, count in selection.counts.items()
        if found[complexity] < count
    ]


def gold_sql_returns_rows(examples: Sequence[Candidate]) -> list[bool]:
    """Whether the gold SQL of each example, run in the sandbox, succeeds and returns rows."""
    from sqlr1_jax import config
    from sqlr1_jax.sql.executor import Executor
    from sqlr1_jax.sql.outcome import OutcomeKind

    with Executor(config.ExecuteConfig()) as executor:
        futures = [executor.run(example.database, example.sql) for example in examples]
        outcomes = [future.result() for future in futures]
    return [outcome.kind == OutcomeKind.OK and outcome.row_count > 0 for outcome in outcomes]


def _draw(examples: Iterable[C], counts: Mapping[str, int], seed: int) -> dict[str, list[tuple[int, C]]]:
    """(hash, example) of the `counts` examples with the smallest hashes of each complexity, in the order of the hash.

    Keeps only these in memory, because SynSQL as a whole does not fit.
    """
    heaps: dict[str, list[tuple[int, int, C]]] = {complexity: [] for complexity in counts}
    for number, example in enumerate(examples):
        heap = heaps.get(example.complexity)
        if heap is None:
            continue
        item = (-_hash(seed, example.id), number, example)  # heapq pops the smallest: the largest hash
        if len(heap) < counts[example.complexity]:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    return {
        complexity: sorted(((-key, example) for key, _, example in heap), key=lambda pair: pair[0])
        for complexity, heap in heaps.items()
    }


def _with_rows(
    drawn: Sequence[tuple[int, C]], count: int, returns_rows: Callable[[Sequence[C]], Sequence[bool]]
) -> list[tuple[int, C]]:
    """The first `count` of the drawn examples whose gold SQL returns rows; runs no more SQL than it needs."""
    selected: list[tuple[int, C]] = []
    remaining: Iterator[tuple[int, C]] = iter(drawn)
    while len(selected) < count:
        batch = list(itertools.islice(remaining, count - len(selected)))
        if not batch:
            break
        has_rows = returns_rows([example for _, example in batch])
        selected += [pair for pair, keep in zip(batch, has_rows, strict=True) if keep]
    return selected


def _hash(seed: int, example_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{example_id}".encode(), digest_size=8).digest(), "big")
