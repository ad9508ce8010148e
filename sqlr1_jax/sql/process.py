"""A worker process as its parent sees it: start it, send jobs, receive answers within a time limit, kill it."""

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

START_SECONDS = 60.0  # for the import on a loaded machine with a cold disk cache
_ROOT = pathlib.Path(__file__).resolve().parents[2]


class WorkerFailure(Exception):
    """The worker gave no answer."""

    phase = "prediction"  # the query that it was running: gold or prediction


class WallTimeout(WorkerFailure):
    """The worker sent nothing within the time limit and must be killed."""


class WorkerDied(WorkerFailure):
    """The worker process ended; the message says how."""


class WorkerError(Sqlr1Error):
    """The worker cannot be started; the message says why."""


class WorkerProcess:
    """A child process `python -m sqlr1_jax.sql.worker`, without site packages and the parent's environment."""

    def __init__(self, settings: dict[str, Any]):
        """settings: the fields of config.ExecuteConfig. Does not wait for the process; the first `answer` does.

        Raises ConfigError if the backend is not installed.
        """
        backend_file = backends.find(settings["backend"])
        self.jobs_sent = 0
        self._reader = FrameReader()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-m", "sqlr1_jax.sql.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=_environment(),
            start_new_session=True,  # Ctrl-C must reach only the parent
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._sink, self._source = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._sink, False)
        self._unsent = bytearray()
        self._poll = select.poll()
        self._poll.register(self._source, select.POLLIN)
        self._send(settings | {"backend_file": backend_file})
        self._ready = False

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, jobs: list[dict[str, Any]]) -> None:
        """Sends jobs, which are answered in order. Never blocks.

        Bytes that the pipe cannot take yet are sent by the next `answer`. If the worker has died, `send` does not
        raise; the next `answer` does.
        """
        self.jobs_sent += len(jobs)
        self._send(jobs)

    def answer(self, seconds: float) -> dict[str, Any]:
        """Waits for the answer to the next job.

        Args:
          seconds: the time limit, which applies to the gold query and to the prediction separately.

        Raises:
          WallTimeout: the time is over; `phase` names the query.
          WorkerDied: the process ended; `phase` names the query.
          WorkerError: the process never became ready.
        """
        if not self._ready:
            try:
                self._receive(START_SECONDS)
            except WorkerFailure as failure:
                raise WorkerError(f"A SQL worker does not start ({failure}); see its message on stderr.") from failure
            self._ready = True
        phase = "prediction"
        try:
            while "phase" in (message := self._receive(seconds)):
                phase = message["phase"]
        except WorkerFailure as failure:
            failure.phase = phase
            raise
        return message

    def terminate(self) -> None:
        """Kills the process; `answer` then raises WorkerDied."""
        self._process.kill()

    def kill(self) -> None:
        """Kills the process and frees its resources. May be called twice."""
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
                raise WallTimeout(f"no answer within {seconds:g} s")
            if self._sink in ready:
                self._write()
            if self._source in ready:
                data = os.read(self._source, 2**16)
                if not data:
                    raise WorkerDied(f"exit status {self._process.wait()}")
                self._reader.feed(data)
        return dict(message)

    def _send(self, message: Any) -> None:
        self._unsent += encode_frame(message)
        self._write()

    def _write(self) -> None:
        """Writes as much as the pipe takes. Blocking could deadlock: a busy worker reads nothing and may be writing."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self._sink, self._unsent)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unsent.clear()
        self._poll.register(self._sink, select.POLLOUT if self._unsent else 0)


def _environment() -> dict[str, str]:
    """Keeps only the library paths of the parent's environment.

    This keeps secrets from leaking and settings from changing a result.
    """
    paths = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return paths | {"PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
