"""Rules for the tests themselves: no test reads or patches a private name of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}  # public in spite of the underscore
IMPORT = re.compile(r"^\s*(from|import) sqlr1_jax\b", re.MULTILINE)


def private_reads(source: str) -> list[str]:
    """Attributes with a leading underscore and `__new__`, except those of `self` and `cls`, each with its line."""
    found = [(line, name) for node in ast.walk(ast.parse(source)) for line, name in _read_by(node)]
    return [f"line {line}: {name}" for line, name in sorted(found)]


def _read_by(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Attribute) and _is_private(node.attr) and ast.unparse(node.value) not in ("self", "cls"):
        yield node.lineno, ast.unparse(node)
    elif isinstance(node, ast.ImportFrom):
        yield from ((node.lineno, alias.name) for alias in node.names if _is_private(alias.name))
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("setattr", "getattr", "delattr"):
        texts = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        yield from ((node.lineno, text) for text in texts if _is_private(text.rpartition(".")[2]))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and IMPORT.search(node.value):
        # The source of a script that a test runs in another process.
        names = re.findall(r"\b(?!self\.|cls\.)\w+\.(_\w+)", node.value)
        yield from ((node.lineno, name) for name in names if _is_private(name))


def _is_private(name: str) -> bool:
    return name == "__new__" or (name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("executor._lanes[0]", ["executor._lanes"]),
        ("box.session._authorize()", ["box.session._authorize"]),
        ("Asker.__new__(Asker)", ["Asker.__new__"]),
        ("from sqlr1_jax.rl.grpo import _kept", ["_kept"]),
        ("monkeypatch.setattr(engine, '_on_cpu', None)", ["_on_cpu"]),
        ("monkeypatch.setattr('sqlr1_jax.rollout.engine._on_cpu', None)", ["sqlr1_jax.rollout.engine._on_cpu"]),
        ("CODE = '''\nfrom PACKAGE import memory\nmemory._SECONDS = 1\n'''", ["_SECONDS"]),
        ("self._held + cls._held + rows._replace(weight=0).weight + module.__name__ + _local()", []),
        ("print('_lanes', 'memory._SECONDS')", []),
    ],
)
def test_private_reads_are_found(source: str, names: list[str]) -> None:
    found = private_reads(source.replace("PACKAGE", "sqlr1_jax"))
    assert [read.partition(": ")[2] for read in found] == names


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_reads_or_patches_a_private_name(path: Path) -> None:
    """A test that does would break in a harmless refactoring; tests use public interfaces instead."""
    assert private_reads(path.read_text(encoding="utf-8")) == []
