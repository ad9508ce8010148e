from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqlr1_jax import run_lock
from sqlr1_jax.run_lock import LockedError
from testing import tiny_runs

HOLDER = """
import sys, time
from pathlib import Path
from sqlr1_jax import run_lock
with run_lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def _start_holder(workdir: Path) -> subprocess.Popen[str]:
    """A process that holds the folder's lock when this returns."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir)], cwd=tiny_runs.REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    holder = _start_holder(tmp_path / "run")
    try:
        who = rf"\(process {holder.pid} on {re.escape(socket.gethostname())}, since .*\)"
        message = rf"another process works in .*run {who}\. .*another --workdir"
        with pytest.raises(LockedError, match=message), run_lock.hold(tmp_path / "run"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / "run" / run_lock.FILE_NAME).exists(), "SIGKILL leaves the file"
    with run_lock.hold(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / run_lock.FILE_NAME).read_text())["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_is_held_once_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with run_lock.hold(tmp_path):
            with pytest.raises(LockedError, match=str(os.getpid())), run_lock.hold(tmp_path):
                pass
            assert (tmp_path / run_lock.FILE_NAME).exists(), "a refused process removes no lock"


@pytest.mark.parametrize(("age", "is_free"), [(0, False), (run_lock.STALE_SECONDS + 60, True)])
def test_the_lock_of_another_host_is_free_once_it_is_not_touched(tmp_path: Path, age: float, is_free: bool) -> None:
    file = tmp_path / run_lock.FILE_NAME
    file.write_text(json.dumps({"pid": 1, "host": "another-host", "since": "2026-11-29"}))
    os.utime(file, (time.time() - age,) * 2)
    if is_free:
        with run_lock.hold(tmp_path):
            pass
    else:
        message = r"process 1 on another-host.*If it is dead, wait 120 s or remove .*run"
        with pytest.raises(LockedError, match=message), run_lock.hold(tmp_path):
            pass


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_lock_that_names_nobody_is_free(tmp_path: Path, text: str) -> None:
    (tmp_path / run_lock.FILE_NAME).write_text(text)
    with run_lock.hold(tmp_path):
        pass


def test_a_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "TOUCH_SECONDS", 0.01)
    with run_lock.hold(tmp_path):
        file = tmp_path / run_lock.FILE_NAME
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 30
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0
