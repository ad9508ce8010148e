"""A lock on a run's folder: two processes that train in one folder would overwrite each other's files.

The lock is `run.lock`, which names its holder and is locked with flock, so the lock of a dead process on this host is
free at once. flock may not reach other hosts; their locks are free when they have not been touched for `STALE_SECONDS`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlr1_jax.errors import Sqlr1Error

FILE_NAME = "run.lock"
TOUCH_SECONDS = 15.0  # between two touches of the file by its holder
STALE_SECONDS = 120.0


class LockedError(Sqlr1Error):
    """Another process works in the folder; the message names it and what to do."""


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is created if it does not exist.

    Raises:
      LockedError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, stop = workdir / FILE_NAME, threading.Event()
    descriptor = _acquire(path)
    threading.Thread(target=_keep_touching, args=(path, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """The descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _check_free(path, descriptor)
            # A holder that has just ended may have removed the file that was opened here.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _check_free(path: Path, descriptor: int) -> None:
    """Locks the file; raises LockedError if its holder is alive."""
    holder, is_reliable = _read_holder(descriptor), True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _refuse(path, holder, "Wait for it or stop it")
    except OSError:  # a file system without flock
        is_reliable = False
    if holder.get("host") == socket.gethostname():
        if not is_reliable and _is_alive(holder.get("pid")):
            _refuse(path, holder, "Wait for it or stop it")
    elif holder and time.time() - os.fstat(descriptor).st_mtime < STALE_SECONDS:
        _refuse(path, holder, f"If it is dead, wait {STALE_SECONDS:.0f} s or remove {path}")


def _read_holder(descriptor: int) -> dict[str, Any]:
    """What the file says of its holder; empty if nothing, as in a new file."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # another user's process
        return True
    except (ProcessLookupError, OverflowError, TypeError, ValueError):
        return False
    return pid != os.getpid()


def _refuse(path: Path, holder: dict[str, Any], fix: str) -> None:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
    raise LockedError(f"another process works in {path.parent} ({who}). {fix}, or choose another --workdir.")


def _keep_touching(path: Path, stop: threading.Event) -> None:
    while not stop.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
