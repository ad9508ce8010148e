"""Settings of glibc's malloc that make XLA for CPU faster."""

import ctypes
import platform

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_SETTINGS = {
    _M_ARENA_MAX: 1,  # one heap for all threads, so a thread can reuse what another one freed
    _M_MMAP_MAX: 0,  # large blocks come from the heap too; glibc unmaps a mapped block when it is freed
    _M_TRIM_THRESHOLD: -1,  # never return memory by itself; `trim_heap` does
    _M_TOP_PAD: 2**26,  # bytes by which the heap grows beyond each request
}


def tune_malloc() -> bool:
    """Makes glibc reuse freed memory instead of returning it to the system. Must be called before any thread starts.

    XLA for CPU allocates a program's temporaries in one block at each call. By default glibc returns the block to the
    system when it is freed, and the next call faults all its pages in again. In an update of the tiny model that was
    92,000 page faults, and 0.2 of 0.95 CPU seconds; an update of larger rows, whose temporaries take gigabytes, lost
    4 % even when only blocks of at least 2 GiB were returned.

    Returns:
      Whether the settings apply: False if the C library is not glibc, or if it refuses one of them.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return {mallopt(parameter, value) for parameter, value in _SETTINGS.items()} == {1}  # 1: accepted


def trim_heap() -> None:
    """Returns freed memory to the system; the next allocations fault their pages in again. Only glibc supports it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
