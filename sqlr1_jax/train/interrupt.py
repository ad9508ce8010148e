"""Ctrl-C and SIGTERM finish the step; a watchdog names what a stalled run waits for."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sqlr1_jax.errors import Sqlr1Error

log = logging.getLogger(__name__)


class Interrupted(Sqlr1Error):
    """The run was asked to stop and its state is saved; the message holds the command that resumes it."""

    prefix = ""  # it is no error


class Interrupt:
    """A context in which the first Ctrl-C or SIGTERM sets `asked`, and the second ends the process as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, object] = {}

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        log.warning("%s: finishing this step, then saving. Again to stop at once.", signal.Signals(number).name)
        self._restore()

    def _restore(self) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)  # type: ignore[arg-type]
        self._before = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._before[kind] = signal.signal(kind, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()


@contextmanager
def log_while_waiting(what: str, seconds: float = 60.0) -> Iterator[None]:
    """Logs `what` is being waited for, each time another `seconds` pass without it."""
    done = threading.Event()

    def watch() -> None:
        waited = 0.0
        while not done.wait(seconds):
            waited += seconds
            log.warning("still waiting for %s after %.0f s", what, waited)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
