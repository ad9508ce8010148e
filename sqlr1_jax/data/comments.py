"""Descriptions of a database's columns, from comments in CREATE TABLE and from BIRD's description files."""

from __future__ import annotations

import csv
import re
from pathlib import Path

_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
      | (?P<name>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|[^\W\d]\w*)
      | (?P<text>'(?:[^']|'')*')
      | (?P<mark>[(),])
      | (?P<line>\n)""",
    re.VERBOSE | re.DOTALL,
)


def from_sql(create_table: str) -> dict[str, str]:
    """Comments of the columns in a CREATE TABLE statement, by lower-case column name.

    A comment inside a column's definition belongs to that column; one after the comma that ends a definition, on the
    same line, belongs to the column before the comma:

        age INTEGER /* in years */,
        age INTEGER, -- in years
    """
    words: dict[str, list[str]] = {}  # of the comments of each column
    column = previous = ""  # the column being defined, and the one that the last comma ended
    depth = 0  # of parentheses
    for match in _TOKEN.finditer(create_table):
        kind, token = match.lastgroup, match[0]
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        elif token == "," and depth == 1:
            previous, column = column, ""
        elif kind == "line" and not column:
            previous = ""
        elif kind == "name" and depth == 1 and not column:
            column = _unquote(token).lower()
        elif kind == "comment" and depth >= 1 and (column or previous):
            inner = token[2:] if token.startswith("--") else token[2:].removesuffix("*/")
            words.setdefault(column or previous, []).extend(inner.split())
    return {name: " ".join(of_column) for name, of_column in words.items() if of_column}


def from_descriptions(database: Path) -> dict[tuple[str, str], str]:
    """Descriptions in BIRD's `database_description/<table>.csv` next to a database, by lower-case (table, column)."""
    comments: dict[tuple[str, str], str] = {}
    for path in sorted((database.parent / "database_description").glob("*.csv")):
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            for row in csv.DictReader(lines):
                column = (row.get("original_column_name") or "").strip().lower()
                text = row.get("column_description") or row.get("column_name") or ""
                if column and text.strip():
                    comments[path.stem.lower(), column] = " ".join(text.split())
    return comments


def _unquote(name: str) -> str:
    if name[0] in '"`':
        return name[1:-1].replace(name[0] * 2, name[0])
    return name[1:-1] if name[0] == "[" else name
