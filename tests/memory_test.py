from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sqlr1_jax import memory

_FAULTS = """
import resource, sys
if sys.argv[1] == "keep":
    from sqlr1_jax import memory
    assert memory.keep_freed()
import numpy as np
def fault() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fault()
print(fault())
"""

_ROOM = """
import sys, threading, time
import numpy as np
from sqlr1_jax import memory
memory.available = lambda: int(sys.argv[1])
assert memory.keep_freed(0.01) and memory.keep_freed(0.01)
assert [thread.name for thread in threading.enumerate()].count("memory") == 1
def resident() -> int:
    return memory.fields(memory.Path("/proc/self/status"))["RssAnon:"] * 1024
before = resident()
held = np.ones(2**25)  # 256 MiB
most = resident()
del held
deadline = time.monotonic() + float(sys.argv[2])
while resident() > before + 2**25 and time.monotonic() < deadline:
    time.sleep(0.01)
print(most - before, resident() - before)
"""

# Two blocks in use keep freed ones from the heap's end: given back, they stay in glibc's count of what is free.
_AGAIN = """
import numpy as np
from sqlr1_jax import memory
memory.available = lambda: {}["MemAvailable:"]  # not watched: a thread might give back before make_room does
assert memory.keep_freed()
blocks = [np.ones(2**23) for _ in range(4)]
del blocks[::2]
memory.available = lambda: 2**26
print(int(memory.make_room()), int(memory.make_room()))
"""

_UNTOLD = """
import threading, time
from sqlr1_jax import memory
looks = []
def available():
    looks.append(None)
    raise KeyError("MemAvailable:")
memory.available = available
assert memory.keep_freed(0.01)
print([thread.name for thread in threading.enumerate()].count("memory"))
memory.available = lambda: 2**60
memory.keep_freed.cache_clear()
memory.keep_freed(0.01)
memory.available = available
deadline = time.monotonic() + 60
while len(looks) < 3 and time.monotonic() < deadline:
    time.sleep(0.01)
print(len(looks[:3]), [thread.name for thread in threading.enumerate()].count("memory"))
"""

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")


def _printed(code: str, *args: str) -> list[int]:
    ran = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return [int(word) for word in ran.stdout.split()]


@glibc_only
def test_freed_memory_is_used_again_without_page_faults() -> None:
    (kept,), (default,) = (_printed(_FAULTS, how) for how in ("keep", "default"))
    assert kept < 100 < default


@glibc_only
def test_what_is_freed_goes_back_where_the_system_has_no_room_for_as_much_again() -> None:
    held, left = _printed(_ROOM, str(2**27), "60")
    assert held > 2**27 and left <= 2**25


@glibc_only
def test_what_is_freed_is_kept_where_the_system_has_room() -> None:
    held, left = _printed(_ROOM, str(2**30), "0.5")
    assert held > 2**27 and left > 2**27


@glibc_only
def test_what_was_given_back_is_not_given_back_again() -> None:
    assert _printed(_AGAIN) == [1, 0]


@glibc_only
def test_a_system_that_does_not_say_what_it_has_is_not_watched_and_one_that_stops_saying_is_watched_on() -> None:
    assert _printed(_UNTOLD) == [0, 3, 1]


_MACHINE = {
    "proc/meminfo": "MemTotal:       24000000 kB\nMemAvailable:    5000 kB\nHugePages_Total:       0\n",
    "proc/self/cgroup": "5:cpu,cpuacct:/old\n4:memory:/old/one\n0::/pod/one\n",
}
_V2 = {"memory.current": "7000\n", "memory.stat": "anon 6000\ninactive_file 500\nactive_file 200\n"}
_V1 = {"memory.usage_in_bytes": "7000\n", "memory.stat": "total_inactive_file 500\ntotal_active_file 200\n"}


def _machine(root: Path, **folders: dict[str, str]) -> Path:
    of_groups = {f"sys/fs/cgroup/{at}/{name}": text for at, files in folders.items() for name, text in files.items()}
    for path, text in (_MACHINE | of_groups).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("folders", "left"),
    [({}, 5_120_000),
     ({"pod/one": _V2 | {"memory.max": "max\n"}}, 5_120_000),
     ({"pod/one": _V2 | {"memory.max": "9000\n"}}, 2700),
     ({"pod/one": _V2 | {"memory.max": "900000000\n"}}, 5_120_000),
     ({"pod/one": _V2 | {"memory.max": "9000\n"}, "pod": _V2 | {"memory.max": "8000\n"}}, 1700),
     ({"": _V2 | {"memory.max": "9000\n"}}, 2700),
     ({"pod/other": _V2 | {"memory.max": "9000\n"}}, 5_120_000),
     ({"memory/old/one": _V1 | {"memory.limit_in_bytes": "9000\n"}}, 2700),
     ({"memory": _V1 | {"memory.limit_in_bytes": "9500\n"}}, 3200),
     ({"cpu/old": _V1 | {"memory.limit_in_bytes": "9000\n"}}, 5_120_000)],
)  # fmt: skip
def test_what_is_available_is_the_machines_and_that_of_every_group_around(
    folders: dict[str, dict[str, str]], left: int, tmp_path: Path
) -> None:
    assert memory.available(_machine(tmp_path, **folders)) == left


def test_a_system_without_control_groups_has_the_machines_memory(tmp_path: Path) -> None:
    (_machine(tmp_path) / "proc/self/cgroup").unlink()
    assert memory.available(tmp_path) == 5_120_000
