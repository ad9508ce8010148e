"""The pool of workers that run SQL and compare results: submit(database, sql, gold_sql, rule) → Future[Outcome].

The pool knows nothing of models, tokens or rewards. Workers are processes (sql/worker.py); for each there is a thread
here that sends jobs and receives answers. All jobs on one database go to one worker, so that each gold query runs once;
an idle worker takes jobs from one that is far behind. An outcome does not depend on the worker that computed it.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import zlib
from collections import OrderedDict, deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql.compare import RULES
from sqlr1_jax.sql.compat import official
from sqlr1_jax.sql.database import DatabaseError, readable_file
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.sql.process import WallTimeout, WorkerFailure, WorkerProcess
from sqlr1_jax.sql.result import decode
from sqlr1_jax.sql.result_cache import ResultCache
from sqlr1_jax.sql.worker import outcome_fields
from sqlr1_jax.sql.worker_queue import MAX_BATCH, Job, JobKey, WorkerQueue

if TYPE_CHECKING:
    from sqlr1_jax.config import ExecuteConfig

STEAL_SECONDS = 0.01  # after this time on one batch, a worker's waiting jobs may go to another worker
MAX_WAITING = 65_536  # jobs in the queues; beyond it, `submit` blocks
MAX_REMEMBERED = 8_192  # outcomes kept for jobs that are submitted again
RECYCLE_AFTER = 20_000  # jobs after which a worker process is replaced


class ExecutorError(Sqlr1Error):
    """The pool cannot answer; the message says why."""


class _Counts:
    """Statistics since the last call of `Executor.stats`; guarded by the executor's lock."""

    def __init__(self) -> None:
        self.milliseconds: deque[float] = deque(maxlen=100_000)
        self.timeouts = self.wall_kills = self.crashes = self.cache_hits = 0

    def summary(self) -> dict[str, float]:
        """The statistics as metrics by name."""
        ordered = sorted(self.milliseconds) or [0.0]
        return {
            "sql/p50_ms": ordered[len(ordered) // 2],
            "sql/p99_ms": ordered[len(ordered) * 99 // 100],
            "sql/timeouts": self.timeouts,
            "sql/wall_kills": self.wall_kills,
            "sql/crashes": self.crashes,
            "sql/cache_hits": self.cache_hits,
        }


class Executor:
    """A pool of sandboxed workers, used as a context manager. Safe to call from several threads."""

    def __init__(self, config: ExecuteConfig):
        """The workers start when the context is entered."""
        self._config = config
        self._settings = dataclasses.asdict(config)
        self._cache = ResultCache(config.gold_cache_dir, config) if config.gold_cache_dir else None
        # Guards the fields below; reading a single counter or dict entry needs no lock.
        self._condition = threading.Condition()
        self._open = False
        self._error: Exception | None = None  # what broke the pool
        self._readable_files: dict[str, str] = {}  # by database
        self._outcomes: OrderedDict[JobKey, Future[Outcome]] = OrderedDict()
        # Gold queries that kill a worker: (database, gold SQL) → message.
        self._fatal_golds: dict[tuple[str, str | None], str] = {}
        self._counts = _Counts()
        self._from_disk = 0
        self._queues: list[WorkerQueue] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._open = True
        self._queues = [WorkerQueue(WorkerProcess(self._settings)) for _ in range(self._config.workers)]
        self._threads = [threading.Thread(target=self._serve, args=(queue,), daemon=True) for queue in self._queues]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cancels the jobs that wait, kills the workers and joins the threads."""
        with self._condition:
            self._close()
            for queue in self._queues:
                queue.worker.terminate()
        for thread in self._threads:
            thread.join()

    def submit(
        self, database: str | os.PathLike[str], sql: str, gold_sql: str, rule: str = "spider", repeats: int = 0
    ) -> Future[Outcome]:
        """Runs a query, runs the gold query unless its result is already known, and compares the results.

        Submitting the same arguments again returns the same Future, so the database must not change while the executor
        is open.
        Blocks while MAX_WAITING jobs wait; therefore do not call it from a Future's callback.

        Args:
          database: a SQLite file.
          sql: the predicted query.
          gold_sql: the gold query.
          rule: a comparison rule of compare.RULES, or of official.RULES to reproduce an official evaluator exactly.
          repeats: how often to run a matching query and its gold query again, to time them. The wall-clock limit
            applies to all repeats together.

        Raises:
          ValueError: the rule is unknown.
          ExecutorError: the executor is not open.
        """
        if rule not in RULES and rule not in official.RULES:
            raise ValueError(f"There is no comparison rule {rule!r}; the rules are {', '.join(RULES)}.")
        return self._submit(JobKey(self._readable_file(database), sql, gold_sql, rule, repeats))

    def run(self, database: str | os.PathLike[str], sql: str) -> Future[Outcome]:
        """Runs a query without a comparison. The outcome's kind is OK, or says why the query did not run."""
        return self._submit(JobKey(self._readable_file(database), sql, None, "", 0))

    @property
    def workers(self) -> list[WorkerProcess]:
        """The worker processes of this moment; a process that ends is replaced by another."""
        with self._condition:
            return [queue.worker for queue in self._queues]

    @property
    def waiting(self) -> int:
        """The number of jobs that no worker has taken yet."""
        return sum(len(queue.jobs) for queue in self._queues)

    @property
    def from_disk(self) -> int:
        """The number of `run` queries so far whose result was in the cache on disk."""
        return self._from_disk

    def stats(self) -> dict[str, float]:
        """Metrics since the last call: a query's milliseconds (p50, p99), timeouts, wall kills, crashes, cache hits."""
        with self._condition:
            counts, self._counts = self._counts, _Counts()
        return counts.summary()

    def _readable_file(self, database: str | os.PathLike[str]) -> str:
        """The file for the worker, which cannot apply a log (sql/committed.py). The worker reports a file's errors."""
        name = os.path.abspath(os.fspath(database))
        if name not in self._readable_files:
            try:
                self._readable_files[name] = readable_file(name)
            except DatabaseError:
                self._readable_files[name] = name
        return self._readable_files[name]

    def _submit(self, key: JobKey) -> Future[Outcome]:
        with self._condition:
            while self._open and key not in self._outcomes and self.waiting >= MAX_WAITING:
                self._condition.wait()
            if not self._open:
                raise ExecutorError("The executor is closed: submit inside `with Executor(config)`.") from self._error
            known = self._outcomes.get(key)
            if known is not None and not known.cancelled():
                self._outcomes.move_to_end(key)
                self._counts.cache_hits += 1
                return known
            job = Job(key, Future())
            self._outcomes[key] = job.future
            if len(self._outcomes) > MAX_REMEMBERED:
                self._outcomes.popitem(last=False)
            number = zlib.crc32(key.database.encode(errors="replace")) % len(self._queues)
            self._queues[number].jobs.append(job)
            self._condition.notify_all()
        return job.future

    def _serve(self, queue: WorkerQueue) -> None:
        """The thread of a worker: answers jobs until the executor closes. Any exception closes the executor."""
        batch: deque[Job] = deque()
        try:
            while batch := self._next_batch(queue):
                self._answer(queue, batch)
        except Exception as error:
            with self._condition:
                self._close(error)
            for job in batch:
                job.future.set_exception(error)
        finally:
            queue.worker.kill()

    def _close(self, error: Exception | None = None) -> None:
        """Accepts no more jobs. Waiting jobs are cancelled, or get the error that broke the pool."""
        if self._open:
            self._error = error
        self._open = False
        for queue in self._queues:
            for job in queue.jobs:
                if error is None:
                    job.future.cancel()
                elif job.future.set_running_or_notify_cancel():
                    job.future.set_exception(error)
            queue.jobs.clear()
        self._condition.notify_all()

    def _next_batch(self, queue: WorkerQueue) -> deque[Job]:
        """Waits for jobs; empty when the executor closes."""
        with self._condition:
            queue.busy_since = float("inf")
            while self._open:
                if batch := self._pick(queue):
                    queue.busy_since = time.monotonic()
                    self._condition.notify_all()  # `submit` may wait for space
                    return batch
                self._condition.wait(STEAL_SECONDS if self.waiting else None)
        return deque()

    def _pick(self, queue: WorkerQueue) -> deque[Job]:
        """The queue's own next jobs. If it has none, the last jobs of the longest queue that is stuck or far behind."""
        stuck_since = time.monotonic() - STEAL_SECONDS
        behind = [q for q in self._queues if len(q.jobs) > 2 * MAX_BATCH or (q.jobs and q.busy_since < stuck_since)]
        if queue.jobs or not behind:
            return queue.take_first()
        return max(behind, key=lambda other: len(other.jobs)).take_last()

    def _answer(self, queue: WorkerQueue, batch: deque[Job]) -> None:
        """Answers a batch, and the jobs sent after it, even if the worker fails in between."""
        while batch:
            if self._needs_restart(queue):
                self._restart(queue)
            self._send(queue, batch)
            try:
                while batch:
                    if len(batch) <= MAX_BATCH and len(batch) < len(queue.jobs) and not self._needs_restart(queue):
                        self._send_ahead(queue, batch)
                    answer = queue.worker.answer(self._config.wall_seconds)
                    queue.needs_restart |= answer.pop("needs_restart")
                    self._cache_result(batch[0], answer.pop("result_to_cache"))
                    self._resolve(batch.popleft(), Outcome.from_json(answer))
            except WorkerFailure as failure:
                self._check_open()
                self._restart(queue)
                self._blame(batch, failure)

    def _send(self, queue: WorkerQueue, batch: deque[Job]) -> None:
        """Answers and removes jobs whose outcome is known, then sends the rest.

        A worker that dies loses the answers that it has not sent. After a crash, each job is therefore a message
        of its own; the worker answers a message before it starts the next, so the next crash has one possible cause.
        """
        self._answer_known(batch)
        self._check_open()
        messages = [job.message(self._gold_result(queue, job)) for job in batch]
        if messages and batch[0].suspect:
            for message in messages:
                queue.worker.send([message])
        elif messages:
            queue.worker.send(messages)

    def _send_ahead(self, queue: WorkerQueue, batch: deque[Job]) -> None:
        """Sends the queue's next jobs before the worker has finished, so that the worker need not wait for them."""
        with self._condition:
            jobs = queue.take_first(in_flight=len(batch))
            queue.busy_since = time.monotonic()
            self._condition.notify_all()
        try:
            self._send(queue, jobs)
        finally:
            batch.extend(jobs)

    def _needs_restart(self, queue: WorkerQueue) -> bool:
        return queue.needs_restart or queue.worker.jobs_sent >= RECYCLE_AFTER

    def _restart(self, queue: WorkerQueue) -> None:
        """Replaces the worker process, without waiting for the new one."""
        queue.worker.kill()
        with self._condition:
            if self._open:
                queue.worker, queue.needs_restart = WorkerProcess(self._settings), False
                queue.sent_golds.clear()

    def _check_open(self) -> None:
        if not self._open:
            raise ExecutorError("The executor was closed before it answered.")

    def _blame(self, batch: deque[Job], failure: WorkerFailure) -> None:
        """Handles the job during which a worker failed.

        A wall-clock kill becomes the job's outcome at once. A crash becomes the outcome only after the job has crashed
        the worker twice while it was sent alone.
        """
        job = batch[0]
        killed = isinstance(failure, WallTimeout)
        with self._condition:
            self._counts.wall_kills += killed
            self._counts.crashes += not killed
        if not killed and not job.crashed:
            job.crashed, job.suspect = job.suspect, True
            return
        kind = OutcomeKind.TIMEOUT if killed else OutcomeKind.RUNTIME_ERROR
        message = f"killed: {failure}" if killed else f"it crashed the worker process twice: {failure}"
        if failure.phase == "gold":
            key = job.key.database, job.key.gold_sql
            self._fatal_golds[key] = f"the gold query failed ({kind}): {message}"
        else:
            self._resolve(batch.popleft(), Outcome(kind, message=message))

    def _gold_result(self, queue: WorkerQueue, job: Job) -> str | None:
        """The text of a job's gold result from disk. It is sent to each worker only once; the worker keeps it."""
        database, gold_sql, rule = job.key.database, job.key.gold_sql, job.key.rule
        if not self._cache or gold_sql is None or rule in official.RULES or (database, gold_sql) in queue.sent_golds:
            return None
        queue.sent_golds.add((database, gold_sql))
        return self._cache.get(database, gold_sql)

    def _cache_result(self, job: Job, result: str | None) -> None:
        """Writes the result of the gold query to disk; if the job has none, the result of the query itself."""
        if result is not None and self._cache:
            sql = job.key.sql if job.key.gold_sql is None else job.key.gold_sql
            self._cache.put(job.key.database, sql, result)

    def _answer_known(self, batch: deque[Job]) -> None:
        """Answers the jobs that need no worker.

        A job without a gold query needs none if the result of its own query is in the cache on disk. A job with a gold
        query needs none if that gold query is known to kill its worker.
        """
        for job in list(batch) if self._cache or self._fatal_golds else []:
            database, gold_sql = job.key.database, job.key.gold_sql
            if gold_sql is not None:
                message = self._fatal_golds.get((database, gold_sql))
                known = Outcome(OutcomeKind.GOLD_ERROR, message=message) if message is not None else None
            else:
                text = self._cache.get(database, job.key.sql) if self._cache else None
                known = Outcome.from_json(outcome_fields(decode(text))) if text is not None else None
            if known is not None:
                batch.remove(job)
                with self._condition:
                    self._from_disk += gold_sql is None
                self._resolve(job, known)

    def _resolve(self, job: Job, outcome: Outcome) -> None:
        with self._condition:
            self._counts.milliseconds.append(outcome.milliseconds)
            self._counts.timeouts += outcome.kind == OutcomeKind.TIMEOUT
        job.future.set_result(outcome)
