"""All layers of the sandbox together: hostile SQL changes nothing, loses no other answer, and ends in time."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.sql import backends
from sqlr1_jax.sql import executor as executor_module
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome
from testing import hostile_sql

WALL_SECONDS = 2.0
START_ROOM = 0.5  # seconds past the wall clock, as promised
CFG = ExecuteConfig(
    workers=2, max_steps=1_000_000, wall_seconds=WALL_SECONDS, max_rows=2000, max_bytes=2**21, heap_bytes=2**26
)
GOOD = [
    "SELECT color FROM dogs WHERE age > 4 ORDER BY code",
    "SELECT city, count(*) FROM owners JOIN dogs ON keeper = tag GROUP BY city",
    "WITH t AS (SELECT max(age) AS m FROM dogs) SELECT color FROM dogs, t WHERE age = m",
    "SELECT color, rank() OVER (ORDER BY age DESC) FROM dogs",
    "SELECT color FROM dogs WHERE color LIKE 'R%'",
    "SELECT date('now'), total(age) FROM dogs",
    "SELECT nope FROM dogs",
    "SELECT abs(-9223372036854775808)",
]


class Watch:
    """What must be as it was: the database, the folders that a statement can name, what good queries answer."""

    def __init__(self, executor: Executor, database: Path, backend: str) -> None:
        self.executor, self.database, self.backend = executor, database, backend
        self._before = self._seen()

    def check(self) -> None:
        assert self._seen() == self._before

    def _seen(self) -> tuple:
        answers = tuple(what(outcome) for outcome in self.answers(GOOD))
        digest = hashlib.sha256(self.database.read_bytes()).hexdigest()
        written = [name for folder in (tempfile.gettempdir(), "/tmp", os.getcwd(), "/") for name in os.listdir(folder)]
        strange = sorted(name for name in written if name.startswith(("sqlr1_hostile", "etilqs")))
        return answers, digest, strange, sorted(os.listdir(self.database.parent))

    def answers(self, statements: Iterable[str]) -> list[Outcome]:
        futures = [self.executor.run(self.database, sql) for sql in statements]
        return [future.result(timeout=120) for future in futures]


def what(outcome: Outcome) -> tuple:
    return outcome.kind, outcome.rows, outcome.columns, outcome.steps, outcome.message, outcome.result_hash


def most_memory(executor: Executor) -> int:
    """Bytes of the largest worker that is alive, at its largest."""
    status = [Path(f"/proc/{worker.pid}/status") for worker in executor.workers]
    peaks = [line.split()[1] for path in status for line in path.read_text().splitlines() if line.startswith("VmHWM")]
    return max(map(int, peaks)) * 1024


@pytest.fixture(scope="module", params=backends.NAMES)
def watch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pets: Path) -> Iterator[Watch]:
    database = tmp_path_factory.mktemp("hostile") / "pets.sqlite"
    database.write_bytes(pets.read_bytes())
    with pytest.MonkeyPatch.context() as patch, Executor(dataclasses.replace(CFG, backend=request.param)) as executor:
        patch.setattr(executor_module, "MAX_REMEMBERED", 0)  # a remembered outcome would say nothing about the workers
        yield Watch(executor, database, request.param)


def test_the_corpus_is_large_and_said_once() -> None:
    statements = [sql for _, sql, _ in hostile_sql.CORPUS]
    assert len(statements) == len(set(statements)) >= 150
    assert len({what for what, _, _ in hostile_sql.CORPUS}) == 7


def test_each_statement_ends_in_time_with_a_right_outcome(watch: Watch) -> None:
    wrong, late = [], []
    for want, sql, kinds in hostile_sql.CORPUS:
        start = time.monotonic()
        (outcome,) = watch.answers([sql])
        late += [sql[:80]] if time.monotonic() - start > WALL_SECONDS + START_ROOM else []
        unread = watch.backend == "apsw" and outcome.message.startswith("Could not decode to UTF-8")
        right = outcome.kind in kinds or (unread and outcome.kind == "runtime_error")
        wrong += [] if right else [(want, sql[:80], outcome.kind, outcome.message)]
    assert wrong == [] and late == []
    watch.check()


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(100_000, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])]
)
def test_nothing_that_a_grammar_writes_gets_out(watch: Watch, count: int) -> None:
    seen: collections.Counter[str] = collections.Counter()
    statements = list(hostile_sql.fuzzed(0, count))
    for start in range(0, count, 500):
        outcomes = watch.answers(statements[start : start + 500])
        seen.update(outcome.kind for outcome in outcomes)
        watch.check()
        assert most_memory(watch.executor) < CFG.heap_bytes + 8 * CFG.max_bytes + 2**26
    assert set(seen) <= hostile_sql.ANY and min(seen[kind] for kind in hostile_sql.ANY) > 0
    stats = watch.executor.stats()
    print(f"{count} statements: {dict(seen)}, {stats}")
    assert stats["sql/crashes"] == 0
