"""A graceful stop on Ctrl-C or SIGTERM, and warnings while a run waits for something."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sqlr1_jax.distributed import collectives, watchdog
from sqlr1_jax.errors import AGAIN, Sqlr1Error

log = logging.getLogger(__name__)


class Interrupted(Sqlr1Error):
    """A signal stopped the run and its state is saved; the message has the command that resumes it."""

    prefix = ""  # the user asked for it, so the command's last line does not say "error"
    exit_status = AGAIN


class StepAbandoned(Interrupted):
    """The work at hand was given up because of a signal, before it changed any state."""


class Interrupt:
    """A context in which the first Ctrl-C or SIGTERM sets `requested`; the second acts as it does outside.

    In any other thread than the main one it leaves signals as they are, since Python allows no handler there.
    """

    active: Interrupt | None = None  # the context that the process is in

    def __init__(self) -> None:
        self.requested = False
        self._previous_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupt:
        Interrupt.active = self
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[kind] = signal.signal(kind, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        Interrupt.active = None
        self._restore_handlers()

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        log.warning("%s: saving, then stopping. Again to stop at once.", signal.Signals(number).name)
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for kind, handler in self._previous_handlers.items():
            signal.signal(kind, handler)  # type: ignore[arg-type]
        self._previous_handlers = {}


def abandon_if_requested() -> None:
    """Gives up the work at hand if an active `Interrupt` of any process was requested. Collective.

    A step of a large model samples for minutes, and a machine that is taken away gives seconds. It costs nothing if no
    `Interrupt` is active.

    Raises:
      StepAbandoned: it was requested; on all processes.
    """
    if Interrupt.active and collectives.global_max(Interrupt.active.requested):
        raise StepAbandoned("stopped by a signal while a step was sampling")


@contextmanager
def log_while_waiting(what: str, seconds: float = 60.0) -> Iterator[None]:
    """Logs a warning that names `what` after every `seconds` that the block takes."""
    done = threading.Event()

    def watch() -> None:
        waited = 0.0
        while not done.wait(seconds):
            waited += seconds
            log.warning("still waiting for %s after %.0f s", what, waited)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with watchdog.activity(what):
            yield
    finally:
        done.set()
        thread.join()
