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
import sys, time
import numpy as np
from sqlr1_jax import memory
memory._SECONDS = 0.01
memory.available = lambda: int(sys.argv[1])
assert memory.keep_freed() and memory.keep_freed()
def resident() -> int:
    return memory._fields(memory.Path("/proc/self/status"))["RssAnon:"] * 1024
before = resident()
held = np.ones(2**25)  # 256 MiB
most = resident()
del held
deadline = time.monotonic() + float(sys.argv[2])
while resident() > before + 2**25 and time.monotonic() < deadline:
    time.sleep(0.01)
print(most - before, resident() - before)
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


def _machine(root: Path, group: str, **files: str) -> Path:
    for path, text in {
        "proc/meminfo": "MemTotal:       24000000 kB\nMemAvailable:    5000 kB\nHugePages_Total:       0\n",
        "proc/self/cgroup": f"4:memory:/old\n0::{group}\n",
        **{f"sys/fs/cgroup/{group}/memory.{name}": text for name, text in files.items()},
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "left"),
    [({}, 5_120_000),
     ({"max": "max\n", "current": "7\n", "stat": "inactive_file 5\n"}, 5_120_000),
     ({"max": "9000\n", "current": "7000\n", "stat": "anon 6000\ninactive_file 500\n"}, 2500),
     ({"max": "900000000\n", "current": "7000\n", "stat": "anon 6000\ninactive_file 500\n"}, 5_120_000)],
)  # fmt: skip
@pytest.mark.parametrize("group", ["/", "/pod/one"])
def test_what_is_available_is_the_machines_and_the_control_groups(
    group: str, files: dict[str, str], left: int, tmp_path: Path
) -> None:
    assert memory.available(_machine(tmp_path, group, **files)) == left


def test_a_system_without_control_groups_has_the_machines_memory(tmp_path: Path) -> None:
    (_machine(tmp_path, "/") / "proc/self/cgroup").unlink()
    assert memory.available(tmp_path) == 5_120_000
