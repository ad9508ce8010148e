"""Descriptions of a database's columns, from comments in CREATE TABLE and from BIRD's description files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from sqlr1_jax.sql.database import warn_once

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
    """Descriptions in BIRD's `database_description/<table>.csv` next to a database, by lower-case (table, column).

    A file is used up to the line that cannot be read, which the log names once.
    """
    comments: dict[tuple[str, str], str] = {}
    for path in sorted((database.parent / "database_description").glob("*.csv")):
        try:
            for column, text in _read_descriptions(path):
                comments[path.stem.lower(), column] = text
        except (OSError, csv.Error) as error:
            warn_once(f"{path}: columns that it describes lack their descriptions: {error}. Repair the file.")
    return comments


def _read_descriptions(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (column in lower case, description)."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                column = (row.get("original_column_name") or "").strip().lower()
                text = row.get("column_description") or row.get("column_name") or ""
                if column and text.strip():
                    yield column, " ".join(text.split())
        except csv.Error as error:
            raise csv.Error(f"after line {reader.line_num}, {error}") from error


def _unquote(name: str) -> str:
    if name[0] in '"`':
        return name[1:-1].replace(name[0] * 2, name[0])
    return name[1:-1] if name[0] == "[" else name
