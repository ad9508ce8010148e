from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import sqlr1_jax
from sqlr1_jax import config, errors, plan
from sqlr1_jax.errors import ConfigError, Sqlr1Error, exit_on_error
from sqlr1_jax.sql import process
from sqlr1_jax.train.interrupt import Interrupted


def _exceptions() -> Iterator[type[BaseException]]:
    """Every exception class that the package defines and that is not private."""
    for module in pkgutil.walk_packages(sqlr1_jax.__path__, "sqlr1_jax."):
        for name, item in vars(importlib.import_module(module.name)).items():
            defined_here = inspect.isclass(item) and item.__module__ == module.name
            if defined_here and issubclass(item, BaseException) and not name.startswith("_"):
                yield item


def test_every_exception_has_the_one_base() -> None:
    """Except those of a worker process, which the executor catches and converts to outcomes."""
    found = set(_exceptions())
    assert {errors.ConfigError, Interrupted, process.WorkerError} <= found
    strays = {error for error in found if not issubclass(error, (Sqlr1Error, process.WorkerFailure))}
    assert not strays


def test_errors_module_imports_only_the_cleaning_of_text() -> None:
    code = "import sys, sqlr1_jax.errors; print(*(name for name in sys.modules if name.startswith('sqlr1_jax')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sqlr1_jax", "sqlr1_jax.terminal", "sqlr1_jax.errors"]


@pytest.mark.parametrize(
    ("raised", "status", "printed"),
    [
        (
            "errors.ConfigError('config.seed is 1.5; it takes a int.')",
            78,
            "error: config.seed is 1.5; it takes a int.\n",
        ),
        ("interrupt.Interrupted('stopped after step 3')", 75, "stopped after step 3\n"),
        (r"errors.ConfigError('no such table: \x1b[2Jx')", 78, "error: no such table: [2Jx\n"),
    ],
)
def test_a_command_prints_one_line_and_exits_with_the_status_of_its_error(
    raised: str, status: int, printed: str
) -> None:
    code = f"""
from sqlr1_jax import errors
from sqlr1_jax.train import interrupt
@errors.exit_on_error()
def main():
    raise {raised}
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", printed)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        raise ZeroDivisionError
    code = "from sqlr1_jax import errors\nwith errors.exit_on_error(): 1 / 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")


def test_a_decorated_command_can_run_again() -> None:
    @exit_on_error()
    def command(fails: bool) -> str:
        if fails:
            raise ConfigError("no")
        return "done"

    assert command(False) == "done"
    for _ in range(2):
        with pytest.raises(SystemExit, match="error: no"):
            command(True)
    assert command(False) == "done"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("ask.__main__", ["--model=gone", "--database=gone.sqlite", "How many?"]),
        ("check", ["--data=spider:gone"]),
        ("export", ["--checkpoint=gone", "--output=out"]),
        ("report.__main__", ["--workdir=gone"]),
        ("score", ["--gold=gone.json", "--predictions=gone.jsonl"]),
    ],
)
def test_each_command_names_a_missing_file_in_a_one_line_error(
    command: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: .*gone[^\n]*$"):
        importlib.import_module(f"sqlr1_jax.{command}").main(arguments)


def test_plan_names_an_unknown_topology_in_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    values = SimpleNamespace(config=config.default(), topology="v9:2x2", programs=[], json=False)
    monkeypatch.setattr(plan, "flags", SimpleNamespace(FLAGS=values))
    with pytest.raises(SystemExit, match=r"^error: --topology=v9:2x2: takes one of v4[^\n]*$"):
        plan.absl_main(["plan"])
