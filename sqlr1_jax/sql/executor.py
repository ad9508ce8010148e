"""The pool that runs and judges SQL: submit(database, sql, gold, rule) → Future[Outcome].

Knows nothing of models, tokens or rewards. Workers are processes (sql/worker.py); one thread each in this
process hands them jobs and takes answers. A database's jobs go to one worker, so that its golds run once; a
worker with nothing to do takes from one that has too much. Which worker answers never changes the answer.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql import official
from sqlr1_jax.sql.compare import RULES, orders_at_top_level
from sqlr1_jax.sql.gold import decode
from sqlr1_jax.sql.gold_files import GoldFiles
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.sql.process import Failure, WallClock, WorkerProcess
from sqlr1_jax.sql.worker import reply

if TYPE_CHECKING:
    from sqlr1_jax.config import ExecuteConfig

_Key = tuple[str, str, str | None, str, int]  # database, sql, gold, rule, repeats

BATCH = 8  # jobs sent at once at most; a worker has two batches, and an idle one cannot take from them
STEAL_SECONDS = 0.01  # a worker busy on one batch for longer may be robbed
MAX_WAITING = 65_536  # jobs that no worker has taken, past which `submit` waits
CACHED_ANSWERS = 8_192
RECYCLE_AFTER = 20_000  # jobs of one process


class ExecutorError(Sqlr1Error):
    """The pool itself cannot work; the message says why."""


class _Counts:
    """What happened since the last look; guarded by the executor's lock."""

    def __init__(self) -> None:
        self.milliseconds: deque[float] = deque(maxlen=100_000)
        self.timeouts = self.wall_kills = self.crashes = self.cache_hits = 0

    def summary(self) -> dict[str, float]:
        """As metrics, by name."""
        ordered = sorted(self.milliseconds) or [0.0]
        return {
            "sql/p50_ms": ordered[len(ordered) // 2],
            "sql/p99_ms": ordered[len(ordered) * 99 // 100],
            "sql/timeouts": self.timeouts,
            "sql/wall_kills": self.wall_kills,
            "sql/crashes": self.crashes,
            "sql/cache_hits": self.cache_hits,
        }


@dataclasses.dataclass(eq=False)
class _Job:
    key: _Key
    future: Future[Outcome]
    suspect: bool = False  # a worker died at it: it is sent alone
    crashed: bool = False  # a worker died of it alone

    def payload(self, known: str | None) -> dict[str, Any]:
        """What the worker is told; `known`: gold's result."""
        database, sql, gold, rule, repeats = self.key
        orders = official.orders if rule in official.RULES else orders_at_top_level
        ordered = gold is not None and orders(gold)
        return {
            "database": database, "sql": sql, "gold": gold, "known": known, "rule": rule, "ordered": ordered,
            "repeats": repeats,
        }  # fmt: skip


@dataclasses.dataclass(eq=False)
class _Lane:
    """One worker and the jobs that are its own."""

    worker: WorkerProcess
    queue: deque[_Job]
    busy_since: float = float("inf")
    tired: bool = False  # the worker asks to be replaced
    told: set[tuple[str, str]] = dataclasses.field(default_factory=set)  # (database, gold) whose result it was sent


class Executor:
    """A pool of sandboxed workers, used as a context; see `submit`. Safe to call from several threads."""

    def __init__(self, cfg: ExecuteConfig):
        """cfg: config.Execute. Workers start on entering the context."""
        self._cfg = cfg
        self._settings = dataclasses.asdict(cfg)
        self._golds = GoldFiles(cfg.gold_cache_dir, cfg) if cfg.gold_cache_dir else None
        self._condition = threading.Condition()  # guards all below
        self._open = False
        self._error: Exception | None = None  # why the pool broke
        self._answers: OrderedDict[_Key, Future[Outcome]] = OrderedDict()
        self._killed_golds: dict[tuple[str, str | None], str] = {}  # (database, gold): what to say of it
        self._counts = _Counts()
        self._from_disk = 0
        self._lanes: list[_Lane] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._open = True
        self._lanes = [_Lane(WorkerProcess(self._settings), deque()) for _ in range(self._cfg.workers)]
        self._threads = [threading.Thread(target=self._serve, args=(lane,), daemon=True) for lane in self._lanes]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cancels what has not begun, kills the workers, joins the threads."""
        with self._condition:
            self._close()
            for lane in self._lanes:
                lane.worker.terminate()
        for thread in self._threads:
            thread.join()

    def submit(
        self, database: str | os.PathLike[str], sql: str, gold: str, rule: str = "spider", repeats: int = 0
    ) -> Future[Outcome]:
        """Runs `sql`, and `gold` unless its result is known, on a database file and compares the results.

        rule: of compare.RULES, or of official.RULES for a metric to the letter. repeats: how often a match is
        run again, beside its gold, to be timed; the wall clock holds for all of them together.
        The same question again gets the same Future. The file must not change while the executor lives.
        Waits while MAX_WAITING jobs wait, so not to be called from a Future's callback.
        Raises ValueError for an unknown rule, ExecutorError outside the context.
        """
        if rule not in RULES and rule not in official.RULES:
            raise ValueError(f"There is no rule of comparison {rule!r}; it is one of {', '.join(RULES)}.")
        return self._submit((os.path.abspath(os.fspath(database)), sql, gold, rule, repeats))

    def run(self, database: str | os.PathLike[str], sql: str) -> Future[Outcome]:
        """Runs `sql` with nothing to compare it with: kind ok, or why it did not run."""
        return self._submit((os.path.abspath(os.fspath(database)), sql, None, "", 0))

    @property
    def from_disk(self) -> int:
        """Queries of `run`, so far, whose outcome was known."""
        return self._from_disk

    def stats(self) -> dict[str, float]:
        """Since the last call: queries' p50 and p99 in milliseconds, time-outs, wall kills, crashes, cache hits."""
        with self._condition:
            counts, self._counts = self._counts, _Counts()
        return counts.summary()

    def _submit(self, key: _Key) -> Future[Outcome]:
        with self._condition:
            while self._open and key not in self._answers and self._full():
                self._condition.wait()
            if not self._open:
                raise ExecutorError("The executor is closed: submit inside `with Executor(cfg)`.") from self._error
            known = self._answers.get(key)
            if known is not None and not known.cancelled():
                self._answers.move_to_end(key)
                self._counts.cache_hits += 1
                return known
            job = _Job(key, Future())
            self._answers[key] = job.future
            if len(self._answers) > CACHED_ANSWERS:
                self._answers.popitem(last=False)
            self._lanes[zlib.crc32(key[0].encode(errors="replace")) % len(self._lanes)].queue.append(job)
            self._condition.notify_all()
        return job.future

    def _full(self) -> bool:
        return sum(len(lane.queue) for lane in self._lanes) >= MAX_WAITING

    def _serve(self, lane: _Lane) -> None:
        """A lane's thread: answers jobs until the executor closes. Whatever fails, nobody waits for ever."""
        batch: deque[_Job] = deque()
        try:
            while batch := self._take(lane):
                self._work(lane, batch)
        except Exception as error:
            with self._condition:
                self._close(error)
            for job in batch:
                job.future.set_exception(error)
        finally:
            lane.worker.kill()

    def _close(self, error: Exception | None = None) -> None:
        """Takes no more jobs; those that wait are cancelled, or get the error that broke the pool."""
        if self._open:
            self._error = error
        self._open = False
        for lane in self._lanes:
            for job in lane.queue:
                if error is None:
                    job.future.cancel()
                elif job.future.set_running_or_notify_cancel():
                    job.future.set_exception(error)
            lane.queue.clear()
        self._condition.notify_all()

    def _take(self, lane: _Lane) -> deque[_Job]:
        """Waits for jobs and takes some; none when the executor closes."""
        with self._condition:
            lane.busy_since = float("inf")
            while self._open:
                if batch := self._pick(lane):
                    lane.busy_since = time.monotonic()
                    self._condition.notify_all()  # whoever waits to submit
                    return batch
                self._condition.wait(STEAL_SECONDS if any(other.queue for other in self._lanes) else None)
        return deque()

    def _pick(self, lane: _Lane) -> deque[_Job]:
        """The lane's own next jobs, else the last ones of the fullest lane that is stuck or far behind."""
        stuck_since = time.monotonic() - STEAL_SECONDS
        behind = [o for o in self._lanes if len(o.queue) > 2 * BATCH or (o.queue and o.busy_since < stuck_since)]
        if lane.queue or not behind:
            return self._draw(lane.queue.popleft, len(lane.queue))
        source = max((other.queue for other in behind), key=len)
        return self._draw(source.pop, len(source))

    def _draw(self, take: Callable[[], _Job], waiting: int, held: int = 0) -> deque[_Job]:
        """At most half of what a lane holds and what waits: the rest is for whoever is idle first."""
        jobs = [take() for _ in range(min(BATCH, (1 + waiting - held) // 2))]
        return deque(job for job in jobs if job.future.set_running_or_notify_cancel())

    def _work(self, lane: _Lane, batch: deque[_Job]) -> None:
        """Answers a batch and what follows it, whatever becomes of the worker meanwhile."""
        while batch:
            if self._spent(lane):
                self._replace(lane)
            self._send(lane, batch)
            try:
                while batch:
                    if len(batch) <= BATCH and len(batch) < len(lane.queue) and not self._spent(lane):
                        self._send_more(lane, batch)
                    answer = lane.worker.answer(self._cfg.wall_seconds)
                    lane.tired |= answer.pop("tired")
                    self._keep(batch[0], answer.pop("kept"))
                    self._resolve(batch.popleft(), Outcome.from_json(answer))
            except Failure as failure:
                self._check_open()
                self._replace(lane)
                self._blame(batch, failure)

    def _send(self, lane: _Lane, batch: deque[_Job]) -> None:
        """Sends what needs a worker; all else is settled and leaves the batch.

        After a crash jobs go one by one: each is answered before the next begins, so that the next crash is its own.
        (A worker that dies takes along what it had not sent.)
        """
        self._settle_known(batch)
        self._settle_hopeless(batch)
        self._check_open()
        jobs = [job.payload(self._untold(lane, job)) for job in batch]
        if jobs and batch[0].suspect:
            for one in jobs:
                lane.worker.send([one])
        elif jobs:
            lane.worker.send(jobs)

    def _send_more(self, lane: _Lane, batch: deque[_Job]) -> None:
        """The lane's next jobs, before the worker would wait for them."""
        with self._condition:
            more = self._draw(lane.queue.popleft, len(lane.queue), held=len(batch))
            lane.busy_since = time.monotonic()
            self._condition.notify_all()
        try:
            self._send(lane, more)
        finally:
            batch.extend(more)

    def _spent(self, lane: _Lane) -> bool:
        return lane.tired or lane.worker.jobs >= RECYCLE_AFTER

    def _check_open(self) -> None:
        if not self._open:
            raise ExecutorError("The executor was closed before it answered.")

    def _replace(self, lane: _Lane) -> None:
        """A new process for the lane, which starts while other things go on."""
        lane.worker.kill()
        with self._condition:
            if self._open:
                lane.worker, lane.tired = WorkerProcess(self._settings), False
                lane.told.clear()

    def _blame(self, batch: deque[_Job], failure: Failure) -> None:
        """Settles the job at which a worker failed: a kill is an answer, of crashes alone the second is."""
        job = batch[0]
        killed = isinstance(failure, WallClock)
        with self._condition:
            self._counts.wall_kills += killed
            self._counts.crashes += not killed
        if not killed and not job.crashed:
            job.crashed, job.suspect = job.suspect, True
            return
        kind = OutcomeKind.TIMEOUT if killed else OutcomeKind.RUNTIME_ERROR
        message = f"killed, {failure}" if killed else f"the worker process died of it twice, {failure}"
        if failure.phase == "gold":
            self._killed_golds[job.key[0], job.key[2]] = f"the gold query failed ({kind}): {message}"
        else:
            self._resolve(batch.popleft(), Outcome(kind, message=message))

    def _untold(self, lane: _Lane, job: _Job) -> str | None:
        """The result on disk of the job's gold, once for each worker, which remembers it."""
        database, _, gold, rule, _ = job.key
        if not self._golds or gold is None or rule in official.RULES or (database, gold) in lane.told:
            return None
        lane.told.add((database, gold))
        return self._golds.get(database, gold)

    def _keep(self, job: _Job, result: str | None) -> None:
        database, sql, gold, *_ = job.key
        if result is not None and self._golds:
            self._golds.put(database, sql if gold is None else gold, result)

    def _settle_known(self, batch: deque[_Job]) -> None:
        """Answers the queries without gold whose result is on disk."""
        if not self._golds:
            return
        for job in [job for job in batch if job.key[2] is None]:
            if (known := self._golds.get(*job.key[:2])) is not None:
                batch.remove(job)
                with self._condition:
                    self._from_disk += 1
                self._resolve(job, Outcome.from_json(reply(decode(known))))

    def _settle_hopeless(self, batch: deque[_Job]) -> None:
        """Answers the jobs whose gold is known to take its worker down."""
        for job in list(batch) if self._killed_golds else []:
            message = self._killed_golds.get((job.key[0], job.key[2]))
            if message is not None:
                batch.remove(job)
                self._resolve(job, Outcome(OutcomeKind.GOLD_ERROR, message=message))

    def _resolve(self, job: _Job, outcome: Outcome) -> None:
        with self._condition:
            self._counts.milliseconds.append(outcome.milliseconds)
            self._counts.timeouts += outcome.kind == OutcomeKind.TIMEOUT
        job.future.set_result(outcome)
