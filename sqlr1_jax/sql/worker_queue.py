"""The jobs of an executor, and the queue that holds those of one worker."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from sqlr1_jax.sql.compare import orders_at_top_level
from sqlr1_jax.sql.compat import official
from sqlr1_jax.sql.outcome import Outcome
from sqlr1_jax.sql.process import WorkerProcess

MAX_BATCH = 8  # jobs sent at once; a worker has at most two batches, which other workers cannot take from it


class JobKey(NamedTuple):
    """What a job computes. Equal keys have equal outcomes."""

    database: str
    sql: str
    gold_sql: str | None  # None: run `sql` alone
    rule: str
    repeats: int


@dataclasses.dataclass(eq=False)
class Job:
    """A query to run, and the Future of its outcome."""

    key: JobKey
    future: Future[Outcome]
    suspect: bool = False  # the worker died when this was its first unanswered job: send it alone
    crashed: bool = False  # the worker died when this job was sent alone

    def message(self, gold_result: str | None) -> dict[str, Any]:
        """The job as a worker receives it; gold_result: the text of the gold result if it is known."""
        database, sql, gold_sql, rule, repeats = self.key
        is_ordered = official.is_ordered if rule in official.RULES else orders_at_top_level
        ordered = gold_sql is not None and is_ordered(gold_sql)
        return {
            "database": database,
            "sql": sql,
            "gold_sql": gold_sql,
            "gold_result": gold_result,
            "rule": rule,
            "ordered": ordered,
            "repeats": repeats,
        }


@dataclasses.dataclass(eq=False)
class WorkerQueue:
    """One worker and the jobs that wait for it."""

    worker: WorkerProcess
    jobs: deque[Job] = dataclasses.field(default_factory=deque)
    busy_since: float = float("inf")
    needs_restart: bool = False  # the worker asked to be replaced
    sent_golds: set[tuple[str, str]] = dataclasses.field(default_factory=set)  # (database, gold SQL) of sent results

    def take_first(self, in_flight: int = 0) -> deque[Job]:
        """Takes the queue's next jobs for its own worker, which has `in_flight` jobs already."""
        return _take(self.jobs.popleft, batch_size(len(self.jobs), in_flight))

    def take_last(self) -> deque[Job]:
        """Takes the queue's last jobs for an idle worker."""
        return _take(self.jobs.pop, batch_size(len(self.jobs)))


def batch_size(waiting: int, in_flight: int = 0) -> int:
    """How many jobs a worker takes from a queue of `waiting` jobs when it has `in_flight` already.

    It takes at most MAX_BATCH. With the jobs in flight it then has at most half of all `waiting` + `in_flight` jobs,
    rounded up; if it already has that many, it takes none. The others are left for idle workers.
    """
    return max(0, min(MAX_BATCH, (1 + waiting - in_flight) // 2))


def _take(pop: Callable[[], Job], count: int) -> deque[Job]:
    """Pops jobs and drops those that were cancelled."""
    jobs = [pop() for _ in range(count)]
    return deque(job for job in jobs if job.future.set_running_or_notify_cancel())
