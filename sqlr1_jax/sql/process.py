"""A worker process as its parent sees it: start, send jobs, take answers within a wall clock, kill."""

from __future__ import annotations

import os
import pathlib
import select
import subprocess
import sys
import time
from typing import Any

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql import backends
from sqlr1_jax.sql.worker import FrameReader, encode_frame

START_SECONDS = 60.0  # an import on a cold, loaded machine
_ROOT = pathlib.Path(__file__).resolve().parents[2]


class Failure(Exception):
    """The worker gave no answer; `phase` says what it was running, gold or prediction."""

    phase = "prediction"


class WallClock(Failure):
    """The worker said nothing for too long and must be killed."""


class Died(Failure):
    """The worker is gone; the message says how it ended."""


class WorkerError(Sqlr1Error):
    """No worker can be started; the message says why."""


class WorkerProcess:
    """One `python -m sqlr1_jax.sql.worker`: no site packages, no environment, its own session, nothing inherited."""

    def __init__(self, settings: dict[str, Any]):
        """settings: the fields of config.Execute. Returns at once; the first answer waits for the start.

        Raises ConfigError where the backend is not installed.
        """
        file = backends.find(settings["backend"])
        self.jobs = 0  # sent so far
        self._reader = FrameReader()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-m", "sqlr1_jax.sql.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the parent
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._sink, self._source = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._sink, False)
        self._unsent = bytearray()
        self._poll = select.poll()
        self._poll.register(self._source, select.POLLIN)
        self._send(settings | {"backend_file": file})
        self._ready = False

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, jobs: list[dict[str, Any]]) -> None:
        """Sends jobs, to be answered in order, and never waits: what the pipe cannot take goes while `answer` waits.

        That a worker is gone shows in `answer`.
        """
        self.jobs += len(jobs)
        self._send(jobs)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The answer to the next job; gold and prediction may each take so many seconds.

        Raises WallClock or Died, whose phase names the culprit, and WorkerError when the process never
        served.
        """
        self._wait_ready()
        phase = "prediction"
        try:
            while "phase" in (message := self._receive(seconds)):
                phase = message["phase"]
        except Failure as failure:
            failure.phase = phase
            raise
        return message

    def terminate(self) -> None:
        """Ends the process now; what waits for its answers sees Died."""
        self._process.kill()

    def kill(self) -> None:
        """Ends the process now and takes back all that it held. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (message := self._reader.next()) is None:
            ready = dict(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not ready:
                raise WallClock(f"no word for {seconds:g} s")
            if self._sink in ready:
                self._write()
            if self._source in ready:
                self._read()
        return dict(message)

    def _read(self) -> None:
        data = os.read(self._source, 2**16)
        if not data:
            raise Died(f"exit status {self._process.wait()}")
        self._reader.feed(data)

    def _wait_ready(self) -> None:
        if self._ready:
            return
        try:
            self._receive(START_SECONDS)
        except Failure as failure:
            raise WorkerError(f"A SQL worker does not start ({failure}): its own message is above.") from failure
        self._ready = True

    def _send(self, message: Any) -> None:
        self._unsent += encode_frame(message)
        self._write()

    def _write(self) -> None:
        """What the pipe takes at once. A worker at work reads nothing, and its answers may be waiting to be read."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self._sink, self._unsent)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unsent.clear()
        self._poll.register(self._sink, select.POLLOUT if self._unsent else 0)


def _environment() -> dict[str, str]:
    """Nothing of the parent's but where libraries are: no secret can be reached, no setting changes an answer."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return kept | {"PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
