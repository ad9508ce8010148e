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
"""


def _printed(code: str, argument: str) -> int:
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
    return int(done.stdout)


@requires_glibc
def test_freed_memory_is_reused_without_page_faults() -> None:
    assert _printed(_PAGE_FAULTS, "tuned") < 100 < _printed(_PAGE_FAULTS, "default")


@requires_glibc
@pytest.mark.parametrize(("size", "returned"), [(2**30, False), (2**31, True)])
def test_two_gibibytes_of_freed_memory_at_the_end_of_the_heap_are_returned(size: int, returned: bool) -> None:
    left = _printed(_HEAP_SIZE, str(size))
    assert left < 2**28 if returned else left > size


def test_other_c_libraries_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not malloc.tune_malloc()
