"""The committed data of a database that has a log beside it, in a private copy.

An application that is running, or was killed, leaves `x.sqlite-wal` or `x.sqlite-journal` beside `x.sqlite`. Without
that log the file lacks committed rows or holds half-written ones. Only a process that may write can apply the log, and
nothing here writes to a user's files. Therefore file and log are copied to a folder of this process, and SQLite applies
the log there. The folder is deleted when the process ends; that of a process that was killed, by the next one.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import os
import resource
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql import backends

MAX_COPY_BYTES = 8 * 2**30  # of all copies of a process: they are made on the disk for temporary files
_PREFIX = "sqlr1_jax-committed-"
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # of a journal that must be rolled back; else its bytes are zero
_WAL_HEADER_BYTES = 32

_Signature = tuple[tuple[str, int, int, int], ...]  # (path, inode, bytes, time of change) of a file and its log
_lock = threading.Lock()
_copies: dict[_Signature, str] = {}
_folder: tuple[int, Path, IO[bytes]] | None = None  # process, folder, and the locked file that shows it is in use


class LogError(Sqlr1Error):
    """A log that cannot be applied; the message names it and the fix."""


def committed_file(path: str) -> str:
    """The file that holds a database's committed data: `path`, or a copy to which its log was applied.

    A database is copied once per process, and again if the file or its log changes.

    Raises:
      LogError: there is a log, and it cannot be applied.
    """
    log = find_log(path)
    if log is None:
        return path
    with _lock, _log_errors(log):
        signature = _signature(path, log)
        if not (copy := _copies.get(signature)) or not os.path.isfile(copy):
            copy = _recover(path, log, signature)
            _copies[signature] = copy
    return copy


def find_log(path: str) -> str | None:
    """The log that must be applied before a database file can be read, or None. SQLite follows a link to the file."""
    if os.path.islink(path):
        path = os.path.realpath(path)
    with suppress(OSError):
        if os.stat(f"{path}-wal").st_size > _WAL_HEADER_BYTES:
            return f"{path}-wal"
    journal = f"{path}-journal"
    with suppress(OSError):
        if os.stat(journal).st_size:  # where there is no file, stat takes a quarter of the time of open
            with open(journal, "rb") as file:
                return journal if file.read(len(_JOURNAL_MAGIC)) == _JOURNAL_MAGIC else None
    return None


def _recover(path: str, log: str, signature: _Signature) -> str:
    total = sum(size for _, _, size, _ in signature) + sum(os.path.getsize(copy) for copy in _copies.values())
    if total > MAX_COPY_BYTES:
        raise OSError(f"the copies would take {total / 2**30:.1f} GiB")
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 0:  # a worker: its parent could not make the copy either
        raise OSError("a copy cannot be made")
    name = hashlib.blake2b(repr(signature).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    copy = str(_own_folder() / f"{name}.sqlite")
    try:
        shutil.copyfile(log, copy + log[log.rindex("-") :])
        shutil.copyfile(path, copy)
        if _signature(path, log) != signature:
            raise OSError("a program is writing to the database")
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema=ON").close()  # a malformed entry of the schema is no obstacle
            connection.execute("PRAGMA journal_mode=DELETE").fetchall()  # applies a WAL
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()  # rolls back a journal
        os.chmod(copy, 0o400)
    except BaseException:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(copy + suffix).unlink(missing_ok=True)
        raise
    return copy


@contextmanager
def _log_errors(log: str) -> Iterator[None]:
    try:
        yield
    except (OSError, *backends.ERRORS) as error:
        database = log[: log.rindex("-")]
        sql = "PRAGMA wal_checkpoint(TRUNCATE)" if log.endswith("-wal") else "SELECT count(*) FROM sqlite_master"
        raise LogError(
            f"{log} must be applied to {database} before it is read, and that failed in a private copy ({error}): stop "
            f"the program that writes to it, run `sqlite3 {database} '{sql}'`, then try again."
        ) from error


def _signature(path: str, log: str) -> _Signature:
    stats = [(name, os.stat(name)) for name in (os.path.realpath(path), log)]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _own_folder() -> Path:
    """The folder of this process's copies. The first call deletes folders of processes that have died."""
    global _folder
    if _folder is None or _folder[0] != os.getpid():
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            _remove_if_unused(folder)
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = (path / "lock").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _folder = os.getpid(), path, lock
        atexit.register(functools.partial(_remove_own, os.getpid(), path))
    return _folder[1]


def _remove_if_unused(folder: Path) -> None:
    """Deletes a folder whose process no longer holds its lock."""
    with suppress(OSError), (folder / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_own(process: int, folder: Path) -> None:
    if process == os.getpid():  # not in a child that was forked
        shutil.rmtree(folder, ignore_errors=True)
