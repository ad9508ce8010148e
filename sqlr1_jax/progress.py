"""Progress of long work: a bar in a terminal; elsewhere, such as in a log file, a line at least every 30 seconds."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from sqlr1_jax.terminal import printable

log = logging.getLogger(__name__)
LOG_SECONDS = 30.0
units_done = 0  # by all work of this process; distributed/watchdog.py sees from it that a process is not stuck


class Progress:
    """A context manager that shows how many of `total` units are done, the rate and the time left.

    Lines come from a thread of their own, so that they also appear while one unit takes long, as a compilation does.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        done: int = 0,
        seconds: float = LOG_SECONDS,
        report: Callable[[str], object] = log.info,
        bar: bool = True,
    ) -> None:
        """Names the work.

        Args:
          what: the work, such as "evaluating final".
          total: units of the whole work.
          unit: name of one unit, without a plural s.
          done: units that an earlier run has done.
          seconds: between two lines.
          report: takes a line; a command that sets up no logging passes `print_line`.
          bar: whether a terminal gets a bar.
        """
        self._what, self._total, self._unit, self._seconds = what, total, unit, seconds
        self._report = report
        self._initial = self._done = done
        self._start = time.perf_counter()
        self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, leave=False, disable=None if bar else True)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._log_lines, name="progress", daemon=True)

    def update(self, count: int = 1) -> None:
        """Counts units as done."""
        global units_done
        units_done += count
        self._done += count
        self._bar.update(count)

    def __enter__(self) -> Progress:
        if (
            self._report is not print_line or not sys.stderr.isatty()
        ):  # a log file gets lines, a bar's terminal does not
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._bar.close()
        if self._thread.is_alive():
            self._thread.join()

    def _log_lines(self) -> None:
        while not self._closed.wait(self._seconds):
            self._report(self.line())

    def line(self) -> str:
        """What is done, the rate since the start, and the time left at that rate."""
        seconds = time.perf_counter() - self._start
        rate = (self._done - self._initial) / seconds
        counts = f"{self._what}: {self._done} of {self._total} {self._unit}s in {_duration(seconds)}"
        if not rate:
            return counts
        return f"{counts}, {rate:.3g} {self._unit}s/s, {_duration((self._total - self._done) / rate)} left"


def print_line(line: str) -> None:
    """Prints to the error stream, where the lines of commands go whose result is on standard output."""
    print(printable(line), file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Such as 45 s, 12 min or 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
