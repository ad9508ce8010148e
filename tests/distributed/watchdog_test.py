"""Two real processes of one run, with short times; one of them is killed, frozen, stuck or fails."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.distributed import watchdog
from sqlr1_jax.distributed.watchdog import Peer, Status, blocking
from testing import tiny_runs

SHORT = {"BEAT_SECONDS": 0.2, "SILENT_SECONDS": 1.0, "LOST_SECONDS": 3.0, "STUCK_SECONDS": 2.0, "GRACE_SECONDS": 1.0}
_WORKER = """
import json, os, signal, sys, time
from sqlr1_jax.distributed import collectives, watchdog
from sqlr1_jax.errors import ConfigError
settings, stuck_minutes, on_host_0, on_host_1 = sys.argv[1:]
for name, value in json.loads(settings).items():
    setattr(watchdog, name, value)
collectives.initialize()
watchdog.start(float(stuck_minutes))
with watchdog.ends_together():
    for i in range(40):
        if i == 20:
            print("ready", flush=True)
            exec((on_host_0, on_host_1)[collectives.process_index()])
        collectives.global_sum(1)
        time.sleep(0.02)
"""
HOST_0, HOST_1 = f"host 0 ({socket.gethostname()})", f"host 1 ({socket.gethostname()})"
STUCK = "with watchdog.activity('SQL results'): time.sleep(1000)"


@contextlib.contextmanager
def _hosts(folder: Path, on_host_0: str = "", on_host_1: str = "", stuck_minutes: float = 0) -> Iterator[Any]:
    """Two processes that have communicated and now run these lines; killed at the end."""
    command = ["-c", _WORKER, json.dumps(SHORT), str(stuck_minutes), on_host_0, on_host_1]
    processes = tiny_runs.start_hosts(folder, command, stderr=subprocess.PIPE)
    try:
        for process in processes:
            assert process.stdout and "ready\n" in process.stdout, process.communicate()[1][-2000:]
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _end(process: subprocess.Popen[str], seconds: float = 30) -> tuple[int, str]:
    """The exit status and the last line of standard error."""
    _, text = process.communicate(timeout=seconds)
    return process.returncode, text.strip().rpartition("\n")[2]


def test_a_killed_host_is_named_and_the_other_exits(tmp_path: Path) -> None:
    with _hosts(tmp_path, on_host_1="os.kill(os.getpid(), signal.SIGKILL)") as (host_0, _):
        status, line = _end(host_0)
    assert status == 75 and line.startswith(f"{HOST_1} is lost: it has said nothing for ")


@pytest.mark.nightly  # two processes take seconds to start; the tests beside it cover most of it
def test_without_the_coordinator_its_host_is_named(tmp_path: Path) -> None:
    with _hosts(tmp_path, on_host_0="os.kill(os.getpid(), signal.SIGKILL)") as (_, host_1):
        assert _end(host_1) == (75, f"aborted, most likely because {HOST_0}, which connects all hosts, is lost")


@pytest.mark.parametrize("host", [pytest.param(0, marks=pytest.mark.nightly), 1])
@pytest.mark.parametrize(
    ("raised", "statuses", "message"),
    [
        ("OSError('no space left')", (1, 75), "OSError: no space left"),
        ("ConfigError('no such shard')", (78, 78), "ConfigError: no such shard"),
    ],
)
def test_a_failed_host_is_named_and_the_other_exits(
    tmp_path: Path, host: int, raised: str, statuses: tuple[int, int], message: str
) -> None:
    lines = {f"on_host_{host}": f"raise {raised}"}
    with _hosts(tmp_path, **lines) as processes:  # type: ignore[arg-type]
        (own_status, own_line), (status, line) = _end(processes[host]), _end(processes[1 - host])
    assert (own_status, status) == statuses
    assert own_line == f"error: {message.partition(': ')[2]}"
    assert line == f"{(HOST_0, HOST_1)[host]} failed: {message}"


@pytest.mark.nightly  # two processes take seconds to start; the tests beside it cover most of it
def test_a_stuck_host_is_named_and_both_exit_at_the_limit(tmp_path: Path) -> None:
    with _hosts(tmp_path, on_host_1=STUCK, stuck_minutes=0.06) as processes:
        for process in processes:
            status, line = _end(process)
            assert status == 75 and f"{HOST_1} keeps the others waiting: SQL results, " in line


def test_sigterm_ends_hosts_that_wait_for_a_stuck_one(tmp_path: Path) -> None:
    """Neither main thread returns to Python: one sleeps, the other is in a collective."""
    handled = "signal.signal(signal.SIGTERM, lambda *_: None)\n"
    with _hosts(tmp_path, handled, handled + STUCK) as processes:
        time.sleep(SHORT["STUCK_SECONDS"])
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            status, line = _end(process)
            assert status == 75 and f"{HOST_1} keeps the others waiting: SQL results, " in line


@pytest.mark.nightly  # two processes take seconds to start; the tests beside it cover most of it
def test_a_frozen_host_is_named_and_the_other_exits(tmp_path: Path) -> None:
    with _hosts(tmp_path, on_host_1="os.kill(os.getpid(), signal.SIGSTOP)") as (host_0, _):
        status, line = _end(host_0)
    assert status == 75 and line.startswith(f"{HOST_1} is lost")


@pytest.mark.nightly  # two processes take seconds to start; the tests beside it cover most of it
def test_hosts_that_finish_apart_exit_with_0(tmp_path: Path) -> None:
    late = "for _ in range(20 - 1): collectives.global_sum(1)\ncollectives.global_sum(1); time.sleep(5); sys.exit()"
    early = "for _ in range(20): collectives.global_sum(1)\nsys.exit()"
    with _hosts(tmp_path, late, early) as processes:
        assert [_end(process)[0] for process in processes] == [0, 0]


def _peer(process: int, count: int, waits: bool, done: bool = False) -> Peer:
    peer = Peer(process)
    peer.update(Status("name", beat=1, count=count, waits=waits, done=done))
    return peer


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ([(5, True), (5, False)], [1]),  # one has not come
        ([(5, True), (4, False)], [1]),  # it is one behind
        ([(5, True), (5, True)], []),  # the devices compute
        ([(5, True), (4, True)], []),  # it still waits for its devices
        ([(5, False), (5, False)], []),
        ([(6, False), (5, False)], []),  # nobody waits yet
        ([(5, True), (5, False), (5, False)], [1, 2]),
        ([(5, True), (5, False, True)], []),  # that one is done
    ],
)
def test_the_host_that_others_wait_for_is_the_one_behind(peers: list[tuple[Any, ...]], expected: list[int]) -> None:
    found = blocking([_peer(i, *values) for i, values in enumerate(peers)])
    assert [peer.process for peer in found] == expected


def test_progress_is_any_change_but_that_of_the_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    peer = Peer(1)
    peer.update(Status("a", beat=1, count=3, activity="sampling"))
    now = 110.0
    peer.update(Status("a", beat=2, count=3, activity="sampling"))
    assert (peer.silent_seconds, peer.stuck_seconds) == (0, 10)
    now = 130.0
    peer.update(Status("a", beat=2, count=4))  # read again, not written again
    assert (peer.silent_seconds, peer.stuck_seconds) == (20, 30)
    peer.update(Status("a", beat=3, count=4))
    assert (peer.silent_seconds, peer.stuck_seconds) == (0, 0)
    now = 140.0
    peer.update(Status("a", beat=4, count=4, units=1))
    assert peer.stuck_seconds == 0


def test_alone_a_process_has_no_watchdog() -> None:
    with watchdog.ends_together(), watchdog.activity("anything"), watchdog.waiting():
        pass
    with pytest.raises(ZeroDivisionError), watchdog.ends_together():
        raise ZeroDivisionError
