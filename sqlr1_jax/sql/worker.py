"""The process that runs and judges SQL: `python -m sqlr1_jax.sql.worker`, spoken to over stdin and stdout.

It imports the standard library and sqlr1_jax.sql alone. A frame is four bytes of length and JSON. The first
frame in is the settings; then each frame in is a list of jobs and each job is answered by one frame. Before
a gold query that is not in the store, and before the prediction behind it, comes a frame {"phase": …}: the
parent then knows whom to blame when it has to kill.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from sqlr1_jax.sql import backends, official
from sqlr1_jax.sql.compare import canonical_hash, cell_overlap, compare
from sqlr1_jax.sql.gold import GoldStore, decode, encode
from sqlr1_jax.sql.official_session import MANNERS
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.sql.sandbox import Limits, Manner, Result, Row, Sandbox

ROWS_SHOWN = 20
COLUMNS_SHOWN = 50
CHARACTERS_SHOWN = 200  # of a text or blob
FLUSH_SECONDS = 0.02
PYTHON_BYTES = 2**30  # address space besides SQLite's heap

_LENGTH = struct.Struct("<I")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


def encode_frame(message: Any) -> bytes:
    """A message in its frame."""
    body = _to_json(message).encode()
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Takes frames out of bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Adds what arrived."""
        self._buffer += data

    def next(self) -> Any | None:
        """The next whole message, None while it has not arrived."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        message = json.loads(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return message


class Judge:
    """Answers jobs: runs gold once, runs the prediction, compares."""

    def __init__(self, settings: dict[str, Any], announce: Callable[[str], None]):
        """settings: the fields of config.Execute; announce is told "gold" or "prediction" before either may be slow."""
        limits = Limits(**{name: settings[name] for name in Limits._fields})
        self._settings = settings
        self._announce = announce
        self._golds: dict[Manner | None, GoldStore] = defaultdict(GoldStore)
        self._fresh: str | None = None  # the result of the gold that this job was the first to run
        self.sandbox = Sandbox(limits, settings["backend"])

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """What became of a job {database, sql, gold, known, rule, ordered, repeats}; gold None: it is not judged.

        known: gold's result from disk, or None. repeats: how often a match is run again, and its gold, to be
        timed. Beside an Outcome's fields the answer has `kept`, a result for the disk, or None.
        """
        if job["gold"] is None:
            result = self.sandbox.query(job["database"], job["sql"], self._settings["max_steps"])
            return reply(result) | {"kept": self._kept(result)}
        self._fresh = None
        return self._judge(job) | {"kept": self._fresh}

    def _judge(self, job: dict[str, Any]) -> dict[str, Any]:
        manner = MANNERS.get(job["rule"])
        gold = self._golds[manner].get(job["database"], job["gold"], lambda: self._gold(job, manner))
        if gold.kind != OutcomeKind.OK:
            message = f"the gold query failed ({gold.kind}): {gold.message}"
            return reply(Result(OutcomeKind.GOLD_ERROR, [], (), gold.steps, gold.milliseconds, message))
        result = self.sandbox.query(job["database"], job["sql"], self._steps_allowed(gold), manner)
        if result.kind != OutcomeKind.OK:
            return reply(result, gold)
        score = float(_compare(job["rule"], gold.rows, result.rows, job["ordered"]))
        matched = OutcomeKind.MATCH if gold.rows else OutcomeKind.MATCH_EMPTY
        kind = OutcomeKind.MISMATCH if score < 1 else matched
        times = [self._time(job, manner) for _ in range(job["repeats"] if score == 1 else 0)]
        return reply(result._replace(kind=kind), gold, score) | {"times": times}

    def _gold(self, job: dict[str, Any], manner: Manner | None) -> Result:
        if job["known"] is not None:
            return decode(job["known"])
        self._announce("gold")
        result = self.sandbox.query(job["database"], job["gold"], self._settings["max_steps"], manner)
        self._fresh = self._kept(result) if manner is None else None
        self._announce("prediction")
        return result

    def _kept(self, result: Result) -> str | None:
        return encode(result) if self._settings["gold_cache_dir"] else None

    def _time(self, job: dict[str, Any], manner: Manner | None) -> tuple[float, float]:
        """Milliseconds of gold and of the prediction, which runs first as in the official code."""
        steps = self._settings["max_steps"]
        prediction, gold = (self.sandbox.query(job["database"], job[sql], steps, manner) for sql in ("sql", "gold"))
        return gold.milliseconds, prediction.milliseconds

    def _steps_allowed(self, gold: Result) -> int:
        factor, most = self._settings["gold_factor"], int(self._settings["max_steps"])
        return min(most, max(self._settings["min_steps"], int(factor * gold.steps))) if factor > 0 else most


def _compare(rule: str, gold_rows: list[Row], rows: list[Row], ordered: bool) -> bool | float:
    if rule in official.RULES:
        return official.RULES[rule].compare(gold_rows, rows, ordered)
    return compare(rule, gold_rows, rows, ordered)


def reply(result: Result, gold: Result | None = None, score: float = 0.0) -> dict[str, Any]:
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
        "overlap": cell_overlap(gold.rows, result.rows) if result.kind.complete and gold else 0.0,
    }


def _show(rows: list[Row]) -> list[list[Any]]:
    return [[_show_cell(cell) for cell in row[:COLUMNS_SHOWN]] for row in rows[:ROWS_SHOWN]]


def _show_cell(cell: Any) -> Any:
    if cell is None or isinstance(cell, int):
        return cell
    if isinstance(cell, float):
        return cell if abs(cell) < float("inf") else str(cell)
    text = f"x'{cell[:CHARACTERS_SHOWN].hex()}'" if isinstance(cell, bytes) else cell
    if len(text) > CHARACTERS_SHOWN:
        text = text[:CHARACTERS_SHOWN] + "…"
    return text.encode(errors="replace").decode()


def _restrict(settings: dict[str, Any]) -> None:
    """Limits of the operating system: what is left when every layer above has a hole."""
    _set_limit(resource.RLIMIT_FSIZE, 0)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_NOFILE, 256)
    _set_limit(resource.RLIMIT_AS, settings["heap_bytes"] + 8 * settings["max_bytes"] + PYTHON_BYTES)


def _set_limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except (ValueError, OSError):  # macOS knows no address-space limit
        print(f"sql worker: the operating system refuses resource limit {which}", file=sys.stderr)


class _Sink:
    """Sends messages a few at a time, none later than FLUSH_SECONDS, even while SQLite is at work.

    Each write wakes the parent, whose interpreter lock is wanted elsewhere, and costs some 30 µs where that needs an
    interrupt of another core.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._pending = bytearray()
        self._lock = threading.Lock()
        self._filled = threading.Event()
        threading.Thread(target=self._flush_late, daemon=True).start()

    def put(self, message: Any) -> None:
        """Takes a message in order."""
        frame = encode_frame(message)
        with self._lock:
            self._pending += frame
        self._filled.set()

    def flush(self) -> None:
        """Sends all that was put."""
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


def _serve(source: int, sink: _Sink) -> None:
    """Answers until the other end closes. A query that outlives its parent is ended by the alarm."""
    frames = _frames(source)
    settings = next(frames)
    backends.load(settings["backend"], settings["backend_file"])
    _restrict(settings)

    def announce(phase: str) -> None:
        sink.put({"phase": phase})
        sink.flush()  # who dies of a query takes what was not sent along

    judge = Judge(settings, announce)
    sink.put({"ready": backends.version(settings["backend"])})
    sink.flush()
    for jobs in frames:
        try:
            for job in jobs:
                signal.setitimer(signal.ITIMER_REAL, 3 * settings["wall_seconds"] + 1)
                reply = judge.answer(job)
                sink.put(reply | {"tired": judge.sandbox.exhausted})
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            sink.flush()


def _frames(source: int) -> Iterator[Any]:
    reader = FrameReader()
    while data := os.read(source, 2**16):
        reader.feed(data)
        while (message := reader.next()) is not None:
            yield message


def main() -> None:
    """Serves stdin and stdout, which nothing else in this process can then reach."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        _serve(source, _Sink(sink))
    except BrokenPipeError:  # the parent is gone
        sys.exit(0)


if __name__ == "__main__":
    main()
