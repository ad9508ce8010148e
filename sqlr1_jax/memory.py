"""How this process keeps its memory, which on CPU decides a fifth of a step's time."""

from __future__ import annotations

import ctypes
import functools
import platform
import threading
import time
from pathlib import Path

# mallopt's parameters, of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER = -1  # a threshold past all sizes
_SECONDS = 1.0  # between looks at what the system has left


@functools.cache
def keep_freed() -> bool:
    """Keeps freed memory for the next allocation; call it before anything starts threads. False where glibc isn't.

    A compiled program asks for its temporaries in one block of hundreds of megabytes at each call. By default glibc
    gives such a block back to the system, and each call pays to have its pages made anew: seen 92,000 page faults and
    0.2 of 0.95 processor seconds in an update of the tiny model.

    glibc asks for a few bytes more than a freed block has, so that a call may take a new one beside it. A thread makes
    room again before such blocks fill the machine.
    """
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: 2**26}
    kept = {mallopt(parameter, value) for parameter, value in settings.items()} == {1}
    threading.Thread(target=_watch, name="memory", daemon=True).start()
    return kept


def _watch() -> None:
    while True:
        time.sleep(_SECONDS)
        make_room()


def make_room() -> bool:
    """Gives freed memory back where the system has no room for as much again: whether it did."""
    short = _is_glibc() and available() < _kept()
    if short:
        give_back()
    return short


def give_back() -> None:
    """Gives freed memory back to the system; what is allocated next pays for its pages again."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def available(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: of the machine's, and of its control group's (cgroup v2) if limited."""
    left = _fields(root / "proc/meminfo")["MemAvailable:"] * 1024
    group = root / "sys/fs/cgroup" / _group(root).lstrip("/")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text()) - _fields(group / "memory.stat")["inactive_file"]
    except (OSError, ValueError, KeyError):  # no such group, or one without a limit: "max"
        return left
    return min(left, limit - used)


def _group(root: Path) -> str:
    """The path of this process's control group, from the line `0::PATH`."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _kept() -> int:
    """Bytes that are freed and still ours; at most those that are not a file's."""
    resident = _fields(Path("/proc/self/status"))["RssAnon:"] * 1024
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):  # glibc before 2.33
        return resident
    libc.mallinfo2.restype = _Mallinfo2
    return min(resident, int(libc.mallinfo2().fordblks))


class _Mallinfo2(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _names = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def _fields(path: Path) -> dict[str, int]:
    """The whole numbers of a file of lines `name number …`."""
    pairs = (line.split()[:2] for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


@functools.cache
def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
