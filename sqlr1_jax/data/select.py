"""Named selections from SynSQL-2.5M (docs/method.md, section 10), each a function of the seed and the records' ids.

A selection takes examples in the order of a hash of (seed, id). So it does not depend on the order of the file, and a
smaller selection is the first part of a larger one.
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
SPARE = 4  # candidates kept per wanted example, because the gold SQL of some may return no rows

ReturnsRows = Callable[[Sequence["Example"]], Sequence[bool]]


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
    selection: Selection, examples: Iterable[Example], seed: int, returns_rows: ReturnsRows | None = None
) -> list[Example]:
    """Selects examples, in the order of their hash. Logs a warning for each complexity that has too few examples.

    returns_rows: tells for each example whether its gold SQL returns rows; by default the SQL is run.
    """
    spare = SPARE if selection.with_rows else 1
    drawn = _draw(examples, {name: count * spare for name, count in selection.counts.items()}, seed)
    selected: list[tuple[int, Example]] = []
    for complexity, count in selection.counts.items():
        candidates = drawn[complexity]
        if selection.with_rows:
            candidates = _with_rows(candidates, count, returns_rows or gold_sql_returns_rows)
        if len(candidates) < count:
            log.warning("%s: %d examples instead of %d were selected", complexity, len(candidates), count)
        selected += candidates
    return [example for _, example in sorted(selected, key=lambda pair: pair[0])]


def gold_sql_returns_rows(examples: Sequence[Example]) -> list[bool]:
    """Whether the gold SQL of each example, run in the sandbox, succeeds and returns rows."""
    from sqlr1_jax import config
    from sqlr1_jax.sql.executor import Executor
    from sqlr1_jax.sql.outcome import OutcomeKind

    with Executor(config.ExecuteConfig()) as executor:
        futures = [executor.run(example.database, example.sql) for example in examples]
        outcomes = [future.result() for future in futures]
    return [outcome.kind == OutcomeKind.OK and outcome.row_count > 0 for outcome in outcomes]


def _draw(examples: Iterable[Example], counts: Mapping[str, int], seed: int) -> dict[str, list[tuple[int, Example]]]:
    """(hash, example) of the `counts` examples with the smallest hashes of each complexity, in the order of the hash.

    Keeps only these in memory, because SynSQL as a whole does not fit.
    """
    heaps: dict[str, list[tuple[int, int, Example]]] = {complexity: [] for complexity in counts}
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
    drawn: Sequence[tuple[int, Example]], count: int, returns_rows: ReturnsRows
) -> list[tuple[int, Example]]:
    """The first `count` of the drawn examples whose gold SQL returns rows; runs no more SQL than it needs."""
    selected: list[tuple[int, Example]] = []
    remaining: Iterator[tuple[int, Example]] = iter(drawn)
    while len(selected) < count:
        batch = list(itertools.islice(remaining, count - len(selected)))
        if not batch:
            break
        has_rows = returns_rows([example for _, example in batch])
        selected += [pair for pair, keep in zip(batch, has_rows, strict=True) if keep]
    return selected


def _hash(seed: int, example_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{example_id}".encode(), digest_size=8).digest(), "big")
