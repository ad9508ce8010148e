"""How this process keeps its memory, which on CPU decides a fifth of a step's time."""

from __future__ import annotations

import ctypes
import platform

# mallopt's parameters, of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed() -> bool:
    """Keeps freed memory for the next allocation; call it before anything starts threads. False where glibc isn't.

    A compiled program asks for its temporaries in one block of hundreds of megabytes at each call. By default glibc
    gives such a block back to the system, and each call pays to have its pages made anew: seen 92,000 page faults and
    0.2 of 0.95 processor seconds in an update of the tiny model.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return {mallopt(parameter, value) for parameter, value in settings.items()} == {1}
