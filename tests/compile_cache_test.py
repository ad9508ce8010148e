from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from sqlr1_jax import compile_cache
from testing import tiny_runs

NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
# Prints the programs that were compiled or read, those that were read, and the bits of a result.
PROGRAM = """
import jax, jax.numpy as jnp
from sqlr1_jax import compile_cache

counts = {"compile_requests_use_cache": 0, "cache_hits": 0}

def count(event, **_):
    name = event.rpartition("/")[2]
    counts[name] = counts.get(name, 0) + 1

jax.monitoring.register_event_listener(count)
compile_cache.enable()
x = jnp.linspace(0, 1, 300, dtype=jnp.float32)
y = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x) + jnp.exp(x).sum())(x)
print(counts["compile_requests_use_cache"], counts["cache_hits"], float(y).hex())
"""


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


@pytest.fixture(autouse=True)
def _jax_settings() -> Iterator[None]:
    before = {name: _setting(name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def _run(cache: Path, **variables: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(tiny_runs.REPOSITORY), "XDG_CACHE_HOME": str(cache)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | variables
    if not variables:
        del environment["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_second_process_compiles_nothing_and_computes_the_same_bits(tmp_path: Path) -> None:
    programs, hits, bits = _run(tmp_path)
    assert int(programs) > 0
    assert hits == "0"
    files = {path.name for path in (tmp_path / "sqlr1_jax" / "xla").rglob("*-cache")}
    assert len(files) == int(programs)

    assert _run(tmp_path) == [programs, programs, bits]
    assert {path.name for path in (tmp_path / "sqlr1_jax" / "xla").rglob("*-cache")} == files
    assert _run(tmp_path, JAX_COMPILATION_CACHE_DIR="")[1:] == ["0", bits]


def test_the_default_is_in_the_users_cache(no_variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_variables.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile_cache.enable()
    assert folder is not None
    assert folder.parent == tmp_path / "sqlr1_jax" / "xla"
    assert _setting(NAMES[0]) == str(folder)
    assert _setting(NAMES[1]) == 0.5


def test_jax_variables_win_over_the_defaults(no_variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_variables.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    no_variables.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    before = _setting(NAMES[1])
    assert compile_cache.enable() == tmp_path / "jax"
    assert _setting(NAMES[1]) == before
    assert compile_cache.enable(str(tmp_path / "mine")) == tmp_path / "mine"


def test_empty_means_no_cache(no_variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_variables.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache.enable("") is None
    assert not _setting(NAMES[0])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert compile_cache.enable(str(tmp_path / "file" / "cache")) is None
    assert f"compiled programs are not kept: {tmp_path}" in caplog.text
    assert not _setting(NAMES[0])
