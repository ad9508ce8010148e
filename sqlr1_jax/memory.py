"""How this process keeps its memory, which on CPU decides a fifth of a step's time."""

from __future__ import annotations

import ctypes
import functools
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# mallopt's parameters, of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER = -1  # a threshold past all sizes


@functools.cache
def keep_freed(look_seconds: float = 1.0) -> bool:
    """Keeps freed memory for the next allocation; call it before anything starts threads. False where glibc isn't.

    A compiled program asks for its temporaries in one block of hundreds of megabytes at each call. By default glibc
    gives such a block back to the system, and each call pays to have its pages made anew: seen 92,000 page faults and
    0.2 of 0.95 processor seconds in an update of the tiny model.

    glibc asks for a few bytes more than a freed block has, so that a call may take a new one beside it. A thread makes
    room again before such blocks fill the machine, looking every `look_seconds`; where the system does not say what it
    has left, they are given back when those at the heap's end come to 2 GiB.
    """
    if not _is_glibc():
        return False
    watched = _look()
    mallopt = ctypes.CDLL(None).mallopt
    threshold = _NEVER if watched else 2**31 - 1
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: threshold, _TOP_PAD: 2**26}
    kept = {mallopt(parameter, value) for parameter, value in settings.items()} == {1}
    if watched:
        threading.Thread(target=_watch, args=(look_seconds,), name="memory", daemon=True).start()
    return kept


def _watch(look_seconds: float) -> None:
    while True:
        time.sleep(look_seconds)
        _look()


def _look() -> bool:
    """Makes room where it is due: whether the system says what it has left."""
    try:
        make_room()
    except (OSError, KeyError):
        return False
    return True


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
    """Bytes that this process may still take: of the machine's, and of what its control groups are limited to."""
    rooms = (_room(folder, files) for folder, files in _groups(root))
    return min([fields(root / "proc/meminfo")["MemAvailable:"] * 1024, *(room for room in rooms if room is not None)])


class _Files(NamedTuple):
    """How a version of control groups names things."""

    mount: str
    limit: str
    used: str
    cached: tuple[str, str]  # bytes of files, which the system takes back when it needs to


_BY_CONTROLLER = {
    "": _Files("", "memory.max", "memory.current", ("inactive_file", "active_file")),  # version 2
    "memory": _Files(
        "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
    ),
}


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """This process's groups and those above them, by /proc/self/cgroup's lines `number:controllers:path`."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        below = PurePosixPath(path.lstrip("/"))
        for controller in controllers.split(","):
            if files := _BY_CONTROLLER.get(controller):
                yield from ((root / "sys/fs/cgroup" / files.mount / group, files) for group in (below, *below.parents))


def _room(folder: Path, files: _Files) -> int | None:
    """Bytes that are left of a group's limit; None where there is no such group, or it has none."""
    try:
        limit, used = (int((folder / name).read_text()) for name in (files.limit, files.used))
        stat = fields(folder / "memory.stat")
        return limit - used + sum(stat[name] for name in files.cached)
    except (OSError, ValueError, KeyError):
        return None


def _kept() -> int:
    """Bytes that are freed and still ours; glibc counts on what was given back, so that resident ones bound it."""
    resident = fields(Path("/proc/self/status"))["RssAnon:"] * 1024
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):  # glibc before 2.33
        return resident
    libc.mallinfo2.restype = _Mallinfo2
    told = libc.mallinfo2()
    return max(0, min(int(told.fordblks), resident - int(told.uordblks)))


class _Mallinfo2(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _names = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def fields(path: Path) -> dict[str, int]:
    """The whole numbers of a file of lines `name number …`, as /proc has them; a name's colon is part of it."""
    pairs = (line.split()[:2] for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


@functools.cache
def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
