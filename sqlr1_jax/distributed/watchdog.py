"""Notices when a process of a run is lost, stuck or has failed, names its host, and ends this process.

JAX alone notices only a lost process, after 100 seconds, and names no host. So a thread of each process writes a
`Status` to the key-value store of JAX's coordination service every two seconds, and reads those of the others. It is a
thread because the main one may be blocked in a collective, where Python handles no signal.

    what happens on a host             noticed after                     what the other processes do
    an exception ends its process      2 s                               print it; exit with its status, or 75
    its process is killed or frozen    20 s without a status: a line     exit with 75 after 45 s
    process 0 is killed                at once, by JAX                   exit with 75
    its main thread is stuck           60 s: a line, and every 60 s      exit with 75 after mesh.stuck_minutes

A main thread is stuck if it keeps others waiting and its work makes no progress. Processes enter collectives, and wait
for their devices, in the same order, and each counts how often it has. The one with the lowest count keeps the others
waiting; with equal counts it is one that does not wait while others do. If all of them wait, the devices are computing,
or none will ever answer.

SIGTERM ends a process within 15 seconds if a host is stuck, since its main thread may never handle it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from sqlr1_jax import progress
from sqlr1_jax.errors import AGAIN, Sqlr1Error
from sqlr1_jax.terminal import printable

log = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
SILENT_SECONDS, LOST_SECONDS = 20.0, 45.0  # without a status: said, and the end
STUCK_SECONDS = 60.0
GRACE_SECONDS = 8.0  # for the main thread to handle a signal
_KEY = "sqlr1_jax/status/"
_COORDINATOR = 0  # the process that holds the key-value store
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)  # of a signal, called by the C library


@dataclasses.dataclass
class Status:
    """What a process tells the others about itself."""

    host: str
    beat: int = 0  # changes with every status
    count: int = 0  # collectives and waits for devices that it has entered
    waits: bool = False  # is in one of them
    units: int = 0  # progress.units_done
    activity: str = "starting"
    failure: str = ""  # the exception that ends it
    exit_status: int = AGAIN
    done: bool = False  # it has nothing left to do


class Watchdog:
    """This process's status and what it knows about the others. One per process, started by `start`."""

    def __init__(self, store: Any, process: int, processes: int, stuck_minutes: int):
        """`store` is JAX's client of the key-value store."""
        self.status = Status(socket.gethostname())
        self._store, self._process, self._stuck_minutes = store, process, stuck_minutes
        self._others = [Peer(i) for i in range(processes) if i != process]
        self._me = Peer(process)
        self._signalled_at = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def start(self) -> None:
        """Starts the thread, and lets signals and aborts reach it."""
        self._publish()
        self._wakeup, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._explain_aborts()
        self._thread.start()

    def finish(self) -> None:
        """Tells the others that this process has nothing left to do."""
        self._ended.set()
        self._thread.join(2 * BEAT_SECONDS)
        self.status.done = True
        with contextlib.suppress(Exception):  # the coordinator may have left
            self._publish()

    def fail(self, reason: str, line: str, exit_status: int = AGAIN) -> NoReturn:
        """Ends this process with a line, after the others had time to read the reason."""
        self.status.failure, self.status.exit_status = reason, exit_status
        with contextlib.suppress(Exception):
            self._publish()
        time.sleep((3 if self._process == _COORDINATOR else 1) * BEAT_SECONDS)
        _end(line, exit_status)

    def wait_for_verdict(self) -> None:
        """Waits until the thread ends this process because of a lost host; returns if it finds none."""
        time.sleep(LOST_SECONDS + 2 * BEAT_SECONDS)

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._read_signals(BEAT_SECONDS)
            with contextlib.suppress(Exception):  # if the coordinator is gone, JAX aborts the process
                self._publish()
                self._read_others()
            self._act()

    def _read_signals(self, seconds: float) -> None:
        """Waits that long, or until a signal comes."""
        readable, _, _ = select.select([self._wakeup], [], [], seconds)
        if readable and {signal.SIGTERM, signal.SIGINT} & set(os.read(self._wakeup, 64)):
            self._signalled_at = self._signalled_at or time.monotonic()

    def _publish(self) -> None:
        self.status.beat += 1
        self.status.units = progress.units_done
        text = json.dumps(dataclasses.asdict(self.status))
        self._store.key_value_set(f"{_KEY}{self._process}", text, allow_overwrite=True)
        self._me.update(dataclasses.replace(self.status))

    def _read_others(self) -> None:
        statuses = {int(key.removeprefix(_KEY)): text for key, text in self._store.key_value_dir_get(_KEY)}
        for peer in self._others:
            if peer.process in statuses:
                peer.update(Status(**json.loads(statuses[peer.process])))

    def _act(self) -> None:
        """Says what is wrong with other hosts, or ends this process because of it."""
        for peer in self._others:
            if peer.status.failure:
                line = f"{peer.name} failed: {peer.status.failure}"
                self.fail(line, line, AGAIN if peer.status.exit_status == 1 else peer.status.exit_status)
            silent = 0.0 if peer.status.done else peer.silent_seconds
            if silent > LOST_SECONDS:
                line = f"{peer.name} is lost: it has said nothing for {silent:.0f} s"
                self.fail(line, line)
            if silent > SILENT_SECONDS and peer.is_due():
                log.warning("%s has said nothing for %.0f s", peer.name, silent)
        for peer in blocking([self._me, *self._others]):
            self._act_on_stuck(peer)

    def _act_on_stuck(self, peer: Peer) -> None:
        seconds = peer.stuck_seconds
        what = f"{peer.name} keeps the others waiting: {peer.status.activity}, {seconds:.0f} s without progress"
        signalled = time.monotonic() - self._signalled_at if self._signalled_at else 0.0
        if seconds < STUCK_SECONDS:
            return
        if signalled > GRACE_SECONDS:
            self.fail(what, f"stopped by a signal while {what}")
        if 0 < self._stuck_minutes * 60 < seconds:
            self.fail(what, what)
        if peer.is_due():
            log.warning(what)

    def _explain_aborts(self) -> None:
        """Names the host and exits with 75 when JAX aborts this process because process 0, which connects all, is gone.

        JAX offers a callback for that, but calling it from Python raises std::bad_cast (jaxlib 0.10).
        """
        coordinator = next((peer for peer in self._others if peer.process == _COORDINATOR), None)
        if coordinator is None:
            return

        def handle(_: int) -> None:
            _end(f"aborted, most likely because {coordinator.name}, which connects all hosts, is lost")

        self._abort_handler = _HANDLER(handle)  # kept, because the C library holds no reference
        library = ctypes.CDLL(None)
        library.signal.argtypes = [ctypes.c_int, _HANDLER]
        library.signal(int(signal.SIGABRT), self._abort_handler)


class Peer:
    """A process as another sees it. Times are of the observer's clock."""

    def __init__(self, process: int):
        self.process = process
        self.status = Status("host of unknown name")
        self._heard_at = self._moved_at = time.monotonic()
        self._said_at = -math.inf

    @property
    def name(self) -> str:
        """The process's number and its host's name."""
        return f"host {self.process} ({self.status.host})"

    @property
    def silent_seconds(self) -> float:
        """Seconds since its last status."""
        return time.monotonic() - self._heard_at

    @property
    def stuck_seconds(self) -> float:
        """Seconds since it last entered or left a collective, a wait or an activity, or did a unit of work."""
        return time.monotonic() - self._moved_at

    def update(self, status: Status) -> None:
        """Takes a status that was read from the store, which may be an old one."""
        if status.beat == self.status.beat:
            return
        before, self.status = self.status, status
        self._heard_at = time.monotonic()
        if dataclasses.replace(status, beat=before.beat) != before:
            self._moved_at = self._heard_at

    def is_due(self) -> bool:
        """Whether it is time for a line about this process, the first or STUCK_SECONDS after the one before."""
        due = time.monotonic() - self._said_at >= STUCK_SECONDS
        self._said_at = time.monotonic() if due else self._said_at
        return due


def blocking(peers: list[Peer]) -> list[Peer]:
    """The processes that keep others waiting; empty if none does, or if all wait for their devices."""
    active = [peer for peer in peers if not peer.status.done]
    lowest = min((peer.status.count for peer in active), default=0)
    behind = [peer for peer in active if peer.status.count == lowest and not peer.status.waits]
    return behind if len(behind) < len(active) and any(peer.status.waits for peer in active) else []


_watchdog: Watchdog | None = None


def start(stuck_minutes: int) -> None:
    """Starts this process's watchdog, after jax.distributed.initialize and on the main thread.

    Args:
      stuck_minutes: how long a host may keep the others waiting before they end; 0: for ever.
    """
    global _watchdog
    from jax._src import distributed

    state: Any = distributed.global_state
    _watchdog = Watchdog(state.client, state.process_id, state.num_processes, stuck_minutes)
    _watchdog.start()


@contextlib.contextmanager
def activity(name: str) -> Iterator[None]:
    """Names what this process does in the block, for the lines of other hosts."""
    if not _watchdog:
        yield
        return
    before, _watchdog.status.activity = _watchdog.status.activity, name
    try:
        yield
    finally:
        _watchdog.status.activity = before


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """A block in which this process waits for others, or for its devices. All enter such blocks in the same order."""
    if not _watchdog:
        yield
        return
    _watchdog.status.count += 1
    _watchdog.status.waits = True
    try:
        yield
    finally:
        _watchdog.status.waits = False


@contextlib.contextmanager
def ends_together() -> Iterator[None]:
    """The block that is a process's whole work: its exception ends the other processes too, and names this host.

    Without other processes it does nothing. With them, an exception leaves by os._exit, because JAX's own exit would
    wait minutes for the others.
    """
    try:
        yield
    except Exception as error:
        stopped_together = isinstance(error, Sqlr1Error) and error.exit_status == AGAIN
        if _watchdog and not stopped_together:
            _leave(_watchdog, error)
        raise
    finally:
        if _watchdog:
            _watchdog.finish()


def _leave(watchdog: Watchdog, error: Exception) -> NoReturn:
    import jax

    # Another process that dies breaks this one's collectives; the thread then names that process.
    if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
        watchdog.wait_for_verdict()
    status = error.exit_status if isinstance(error, Sqlr1Error) else 1
    if status == 1:
        sys.excepthook(type(error), error, error.__traceback__)
    prefix = error.prefix if isinstance(error, Sqlr1Error) else "error: "
    watchdog.fail(f"{type(error).__name__}: {error}", f"{prefix}{error}", status)


def _end(message: str, status: int = AGAIN) -> NoReturn:
    """Prints a line and ends the process at once."""
    print(printable(message), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
