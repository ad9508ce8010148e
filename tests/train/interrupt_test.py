from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sqlr1_jax.train.interrupt import Interrupt, StepAbandoned, abandon_if_requested, log_while_waiting


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_the_flag_and_logs(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    with Interrupt() as interrupt:
        before = interrupt.requested
        os.kill(os.getpid(), number)
        assert (before, interrupt.requested) == (False, True)
    assert f"{number.name}: saving, then stopping" in caplog.text


def test_handlers_are_restored_after_the_context_and_after_the_first_signal() -> None:
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt():
        assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] != before
        os.kill(os.getpid(), signal.SIGTERM)
        assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before
    with Interrupt():
        pass
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before


_SCRIPT = """
import signal, time
from sqlr1_jax.train.interrupt import Interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with Interrupt() as interrupt:
    print("ready", flush=True)
    while True:
        if interrupt.requested:
            print("requested", flush=True)
        time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process(number: signal.Signals) -> None:
    command = [sys.executable, "-c", _SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "requested\n"
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (-number, 130)


def test_work_is_abandoned_only_in_an_interrupt_that_was_requested() -> None:
    abandon_if_requested()
    with Interrupt():
        abandon_if_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StepAbandoned):
            abandon_if_requested()
    abandon_if_requested()


def test_outside_the_main_thread_handlers_stay_the_same() -> None:
    before, observed = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Interrupt() as interrupt:
            observed.append((signal.getsignal(signal.SIGTERM), interrupt.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert observed == [(before, False)]


def test_a_long_wait_is_logged_repeatedly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), log_while_waiting("SQL results", seconds=0.05):
        deadline = time.monotonic() + 20
        while len(caplog.messages) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages[0] == "still waiting for SQL results after 0 s"
    assert len(caplog.messages) >= 3


def test_a_short_wait_logs_nothing_and_an_error_propagates(caplog: pytest.LogCaptureFixture) -> None:
    before = threading.enumerate()
    with pytest.raises(ZeroDivisionError), log_while_waiting("nothing"):
        assert len(threading.enumerate()) == len(before) + 1
        _ = 1 / 0
    assert not caplog.messages
    assert threading.enumerate() == before
