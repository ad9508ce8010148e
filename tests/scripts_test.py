"""The console scripts of pyproject.toml."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def test_every_command_has_a_script() -> None:
    commands = [path.stem for path in (ROOT / "sqlr1_jax").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    scripts = {f"sqlr1-{name}": f"sqlr1_jax.{name}:main" for name in commands}
    packages = [path.parent.name for path in (ROOT / "sqlr1_jax").glob("*/__main__.py")]
    scripts |= {f"sqlr1-{name}": f"sqlr1_jax.{name}.__main__:main" for name in packages}
    assert scripts == SCRIPTS


@pytest.mark.parametrize("target", SCRIPTS.values())
def test_a_script_is_a_function_that_needs_no_arguments(target: str) -> None:
    module, _, name = target.partition(":")
    inspect.signature(getattr(importlib.import_module(module), name)).bind()


@pytest.mark.parametrize(("command", "flag"), [("main", "--workdir"), ("plan", "--topology"), ("score", "--gold")])
def test_help_lists_the_flags(command: str, flag: str) -> None:
    code = f"import sys; from sqlr1_jax.{command} import main; sys.argv = ['sqlr1-{command}', '--help']; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"python -m sqlr1_jax.{command}" in done.stdout
    assert flag in done.stdout, done.stderr
