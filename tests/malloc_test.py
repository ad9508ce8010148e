from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sqlr1_jax import malloc

requires_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

_PAGE_FAULTS = """
import resource, sys
if sys.argv[1] == "tuned":
    from sqlr1_jax import malloc
    assert malloc.tune_malloc()
import numpy as np
def page_faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
page_faults()
print(page_faults())
"""

# The block's pages are never written, so they take no memory; only the heap's end shows what was returned.
_HEAP_SIZE = """
import ctypes, sys
from sqlr1_jax import malloc
assert malloc.tune_malloc()
libc = ctypes.CDLL(None)
libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
before = libc.sbrk(ctypes.c_ssize_t(0))
block = libc.malloc(ctypes.c_size_t(int(sys.argv[1])))
libc.free(ctypes.c_void_p(block))
print(libc.sbrk(ctypes.c_ssize_t(0)) - before)
malloc.trim_heap()
print(libc.sbrk(ctypes.c_ssize_t(0)) - before)
"""


def _printed(code: str, argument: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@requires_glibc
def test_freed_memory_is_reused_without_page_faults() -> None:
    (tuned,), (default,) = _printed(_PAGE_FAULTS, "tuned"), _printed(_PAGE_FAULTS, "default")
    assert tuned < 100 < default


@requires_glibc
def test_freed_memory_is_returned_only_by_trimming() -> None:
    before_trim, after_trim = _printed(_HEAP_SIZE, str(2**32))
    assert before_trim > 2**32
    assert after_trim < 2**28


def test_other_c_libraries_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not malloc.tune_malloc()
