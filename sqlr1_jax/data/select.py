"""Named selections from SynSQL-2.5M (sql-r1.md §1), the same examples for the same seed.

A selection takes examples in the order of a hash of (seed, id), so it depends neither on the file's order
nor on how much of it is wanted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlr1_jax.data.example import Example

log = logging.getLogger(__name__)

COMPLEXITIES = ("Simple", "Moderate", "Complex", "Highly Complex")
SPARE = 4  # candidates kept for each example wanted, where some golds may return nothing

ReturnsRows = Callable[[Sequence["Example"]], Sequence[bool]]


@dataclasses.dataclass(frozen=True)
class Selection:
    """How many examples of each complexity, and whether their golds must return rows."""

    counts: Mapping[str, int]
    with_rows: bool


SELECTIONS = {
    "synsql-200k": Selection(dict.fromkeys(COMPLEXITIES, 50_000), with_rows=True),
    "complex-5k": Selection({"Complex": 5_000}, with_rows=False),
}


def select(
    selection: Selection, examples: Iterable[Example], seed: int, returns_rows: ReturnsRows | None = None
) -> list[Example]:
    """The selection's examples, in the order of their hash; a complexity that falls short is logged.

    `returns_rows` says of each example whether its gold returns rows; by default the golds are executed.
    """
    spare = SPARE if selection.with_rows else 1
    drawn = _draw(examples, {name: count * spare for name, count in selection.counts.items()}, seed)
    kept: list[tuple[int, Example]] = []
    for name, count in selection.counts.items():
        found = drawn[name]
        if selection.with_rows:
            found = _with_rows(found, count, returns_rows or execute_golds)
        if len(found) < count:
            log.warning("%s: %d examples where %d were to be selected", name, len(found), count)
        kept += found
    return [example for _, example in sorted(kept, key=lambda pair: pair[0])]


def execute_golds(examples: Sequence[Example]) -> list[bool]:
    """Whether each example's gold runs and returns rows, in the sandbox."""
    from sqlr1_jax import config
    from sqlr1_jax.sql.executor import Executor
    from sqlr1_jax.sql.outcome import OutcomeKind

    with Executor(config.ExecuteConfig()) as executor:
        futures = [executor.run(example.database, example.sql) for example in examples]
        return [outcome.kind == OutcomeKind.OK and outcome.row_count > 0 for outcome in (f.result() for f in futures)]


def _draw(examples: Iterable[Example], counts: Mapping[str, int], seed: int) -> dict[str, list[tuple[int, Example]]]:
    """Of each complexity the examples of smallest hash, in its order; no more than that is held in memory."""
    heaps: dict[str, list[tuple[int, int, Example]]] = {name: [] for name in counts}
    for number, example in enumerate(examples):
        heap = heaps.get(example.complexity)
        if heap is None:
            continue
        item = (-_hash(seed, example.id), number, example)
        if len(heap) < counts[example.complexity]:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    return {name: sorted(((-key, e) for key, _, e in heap), key=lambda p: p[0]) for name, heap in heaps.items()}


def _with_rows(
    drawn: Sequence[tuple[int, Example]], count: int, returns_rows: ReturnsRows
) -> list[tuple[int, Example]]:
    kept: list[tuple[int, Example]] = []
    rest: Iterator[tuple[int, Example]] = iter(drawn)
    while len(kept) < count:
        batch = list(itertools.islice(rest, count - len(kept)))
        if not batch:
            break
        verdicts = returns_rows([example for _, example in batch])
        kept += [pair for pair, sound in zip(batch, verdicts, strict=True) if sound]
    return kept


def _hash(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big")
