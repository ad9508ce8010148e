"""The process that runs SQL and compares results: `python -m sqlr1_jax.sql.worker`, driven over stdin and stdout.

It imports only the standard library and sqlr1_jax.sql. A message is a frame: four bytes of length, then JSON. The first
message that the worker receives holds the settings; it replies {"ready": SQLite's version}. Each later one is a list of
jobs; it replies to each job with one message. Before a gold query runs, and before the prediction after it, the worker
sends {"phase": "gold"} or {"phase": "prediction"}, so that a parent that must kill the worker knows which of the two
hung.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sqlr1_jax.sql import backends
from sqlr1_jax.sql.compare import Row, canonical_hash, cell_overlap, compare
from sqlr1_jax.sql.compat import official
from sqlr1_jax.sql.compat.session import SESSION_FACTORIES
from sqlr1_jax.sql.outcome import MAX_CHARACTERS_SHOWN, MAX_COLUMNS_SHOWN, MAX_ROWS_SHOWN, OutcomeKind
from sqlr1_jax.sql.result import RecentResults, Result, decode, encode
from sqlr1_jax.sql.sandbox import Limits, Sandbox, SessionFactory

FLUSH_SECONDS = 0.02
PYTHON_BYTES = 2**30  # address space allowed in addition to SQLite's heap

_LENGTH = struct.Struct("<I")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


def encode_frame(message: Any) -> bytes:
    """A message as a frame."""
    body = _to_json(message).encode()
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Extracts messages from bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Appends bytes that arrived."""
        self._buffer += data

    def next(self) -> Any | None:
        """The next complete message, or None."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        message = json.loads(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return message


class JobRunner:
    """Answers jobs: runs each gold query once, runs the predictions and compares the results."""

    def __init__(self, settings: dict[str, Any], announce: Callable[[str], None]):
        """settings: the fields of config.ExecuteConfig. announce: called with a phase before its query runs."""
        limits = Limits(**{name: settings[name] for name in Limits._fields})
        self._settings = settings
        self._announce = announce
        self._gold_results: dict[SessionFactory | None, RecentResults] = defaultdict(RecentResults)
        self._new_gold_result: str | None = None  # the text of the gold result that the current job computed
        self.sandbox = Sandbox(limits, settings["backend"])

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to a job: the fields of an Outcome, and `result_to_cache`, a text or None.

        Fields of a job:
          database, sql: the file and the predicted query.
          gold_sql: the gold query, or None to run the prediction alone.
          gold_result: the text of the gold result from the disk cache, or None.
          rule: the comparison rule.
          ordered: whether the order of rows matters.
          repeats: how often to run a matching prediction and its gold query again, to time them.
        """
        if job["gold_sql"] is None:
            result = self.sandbox.query(job["database"], job["sql"], self._settings["max_steps"])
            return outcome_fields(result) | {"result_to_cache": self._encode(result)}
        self._new_gold_result = None
        return self._compare(job) | {"result_to_cache": self._new_gold_result}

    def _compare(self, job: dict[str, Any]) -> dict[str, Any]:
        factory = SESSION_FACTORIES.get(job["rule"])
        recent = self._gold_results[factory]
        gold = recent.get(job["database"], job["gold_sql"], lambda: self._run_gold(job, factory))
        if gold.kind != OutcomeKind.OK:
            message = f"the gold query failed ({gold.kind}): {gold.message}"
            return outcome_fields(Result(OutcomeKind.GOLD_ERROR, [], (), gold.steps, gold.milliseconds, message))
        result = self.sandbox.query(job["database"], job["sql"], self._max_steps(gold), factory)
        if result.kind != OutcomeKind.OK:
            return outcome_fields(result, gold)
        rule = official.RULES[job["rule"]].compare if job["rule"] in official.RULES else partial(compare, job["rule"])
        score = float(rule(gold.rows, result.rows, job["ordered"]))
        matched = OutcomeKind.MATCH if gold.rows else OutcomeKind.MATCH_EMPTY
        kind = OutcomeKind.MISMATCH if score < 1 else matched
        times = [self._time(job, factory) for _ in range(job["repeats"] if score == 1 else 0)]
        # Results that match under `spider` have the same cells, and counting those of a large result takes a second.
        overlap = 1.0 if score == 1 and job["rule"] == "spider" else cell_overlap(gold.rows, result.rows)
        return outcome_fields(result._replace(kind=kind), gold, score, overlap) | {"times": times}

    def _run_gold(self, job: dict[str, Any], factory: SessionFactory | None) -> Result:
        if job["gold_result"] is not None:
            return decode(job["gold_result"])
        self._announce("gold")
        result = self.sandbox.query(job["database"], job["gold_sql"], self._settings["max_steps"], factory)
        # The official rules run gold queries under other conditions, so the disk cache must not hold their results.
        self._new_gold_result = self._encode(result) if factory is None else None
        self._announce("prediction")
        return result

    def _encode(self, result: Result) -> str | None:
        return encode(result) if self._settings["gold_cache_dir"] else None

    def _time(self, job: dict[str, Any], factory: SessionFactory | None) -> tuple[float, float]:
        """Milliseconds (gold query, prediction). The prediction runs first, as in the official code."""
        max_steps = self._settings["max_steps"]
        prediction, gold = (
            self.sandbox.query(job["database"], job[sql], max_steps, factory) for sql in ("sql", "gold_sql")
        )
        return gold.milliseconds, prediction.milliseconds

    def _max_steps(self, gold: Result) -> int:
        """The steps that a prediction may take."""
        factor, most = self._settings["gold_factor"], int(self._settings["max_steps"])
        return min(most, max(self._settings["min_steps"], int(factor * gold.steps))) if factor > 0 else most


def outcome_fields(
    result: Result, gold: Result | None = None, score: float = 0.0, overlap: float = 0.0
) -> dict[str, Any]:
    """The fields of an Outcome, ready for JSON."""
    return {
        "kind": result.kind,
        "rows": _show(result.rows),
        "columns": result.columns,
        "row_count": len(result.rows),
        "steps": result.steps,
        "milliseconds": result.milliseconds,
        "message": result.message,
        "result_hash": canonical_hash(result.rows) if result.kind.complete else "",
        "gold_rows": _show(gold.rows) if gold else [],
        "score": score,
        "overlap": overlap,
    }


def _show(rows: list[Row]) -> list[list[Any]]:
    """The first rows, for display."""
    return [[_show_cell(cell) for cell in row[:MAX_COLUMNS_SHOWN]] for row in rows[:MAX_ROWS_SHOWN]]


def _show_cell(cell: Any) -> Any:
    if cell is None or isinstance(cell, int):
        return cell
    if isinstance(cell, float):
        return cell if abs(cell) < float("inf") else str(cell)
    text = f"x'{cell[:MAX_CHARACTERS_SHOWN].hex()}'" if isinstance(cell, bytes) else cell
    if len(text) > MAX_CHARACTERS_SHOWN:
        text = text[:MAX_CHARACTERS_SHOWN] + "…"
    return text.encode(errors="replace").decode()


def _restrict(settings: dict[str, Any]) -> None:
    """Sets resource limits of the operating system, in case every layer above them has a hole."""
    space = settings["heap_bytes"] + 8 * settings["max_bytes"] + PYTHON_BYTES
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 256, resource.RLIMIT_AS: space}
    for which, wanted in limits.items():
        hard = resource.getrlimit(which)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(which, (value, value))
        except (ValueError, OSError):  # macOS has no limit of the address space
            print(f"sql worker: the operating system refuses resource limit {which}", file=sys.stderr)


class _BufferedWriter:
    """Sends messages in batches, each at most FLUSH_SECONDS late, even while SQLite is running.

    Each write wakes a thread of the parent, which then competes for the parent's GIL. The write itself takes about
    30 µs if it must interrupt another core.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._pending = bytearray()
        self._lock = threading.Lock()
        self._filled = threading.Event()
        threading.Thread(target=self._flush_late, daemon=True).start()

    def put(self, message: Any) -> None:
        """Queues a message; messages keep their order."""
        frame = encode_frame(message)
        with self._lock:
            self._pending += frame
        self._filled.set()

    def flush(self) -> None:
        """Sends all queued messages."""
        with self._lock:
            self._filled.clear()
            data = memoryview(bytes(self._pending))
            self._pending.clear()
            while data:
                data = data[os.write(self._descriptor, data) :]

    def _flush_late(self) -> None:
        while True:
            self._filled.wait()
            time.sleep(FLUSH_SECONDS)
            try:
                self.flush()
            except OSError:  # the parent is gone
                os._exit(0)


def _serve(source: int, writer: _BufferedWriter) -> None:
    """Answers jobs until the parent closes the pipe. An alarm ends a query that outlives the parent."""
    frames = _read_frames(source)
    settings = next(frames)
    backends.load(settings["backend"], settings["backend_file"])
    _restrict(settings)

    def announce(phase: str) -> None:
        writer.put({"phase": phase})
        writer.flush()  # a crash loses what has not been sent

    runner = JobRunner(settings, announce)
    writer.put({"ready": backends.version(settings["backend"])})
    writer.flush()
    for jobs in frames:
        try:
            for job in jobs:
                signal.setitimer(signal.ITIMER_REAL, 3 * settings["wall_seconds"] + 1)
                answer = runner.run(job)
                writer.put(answer | {"needs_restart": runner.sandbox.exhausted})
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            writer.flush()


def _read_frames(source: int) -> Iterator[Any]:
    reader = FrameReader()
    while data := os.read(source, 2**16):
        reader.feed(data)
        while (message := reader.next()) is not None:
            yield message


def main() -> None:
    """Serves stdin and stdout, and makes both unreachable for all other code in this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()  # what a database lacks is said by the parent, which reads its schema
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        _serve(source, _BufferedWriter(sink))
    except BrokenPipeError:  # the parent is gone
        sys.exit(0)


if __name__ == "__main__":
    main()
