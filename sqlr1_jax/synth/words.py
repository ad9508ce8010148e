"""The words of the synthetic databases, read from words.toml: names by role, and values by kind.

The reserved names occur only in the split newnames.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Pool(NamedTuple):
    """Names by role."""

    tables: tuple[str, ...]
    keys: tuple[str, ...]  # of primary keys
    links: tuple[str, ...]  # of foreign keys
    numbers: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]  # (name, kind of its values)


def names(pool: Pool) -> tuple[str, ...]:
    """Every name of a pool, in the order of words.toml."""
    return (*pool.tables, *pool.keys, *pool.links, *pool.numbers, *(name for name, _ in pool.texts))


def values() -> tuple[str, ...]:
    """Every text value, without quotes, in the order of words.toml."""
    return tuple(word for words in VALUES.values() for word in words)


def _pool(section: Mapping[str, Any]) -> Pool:
    roles = {role: tuple(section[role].split()) for role in ("tables", "keys", "links", "numbers")}
    texts = tuple((word, kind) for kind, words in section["texts"].items() for word in words.split())
    return Pool(**roles, texts=texts)


_FILE = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
VALUES: dict[str, tuple[str, ...]] = {kind: tuple(words.split()) for kind, words in _FILE["values"].items()}
COMMON = _pool(_FILE["common"])
RESERVED = _pool(_FILE["reserved"])
