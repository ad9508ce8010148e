"""What a database's makers say of its columns: comments in CREATE TABLE, and BIRD's description files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
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

    A comment belongs to the definition it stands in; behind a comma, to the one that the comma ends.
    """
    comments: dict[str, str] = {}
    column = last = ""
    depth = 0
    for kind, token in _tokens(create_table):
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        elif token == "," and depth == 1:
            last, column = column, ""
        elif kind == "line" and not column:
            last = ""
        elif kind == "name" and depth == 1 and not column:
            column = _unquoted(token).lower()
        elif kind == "comment" and depth >= 1 and (column or last):
            _add(comments, column or last, _comment_text(token))
    return comments


def from_descriptions(database: Path) -> dict[tuple[str, str], str]:
    """BIRD's `database_description/<table>.csv` beside a database, if any, by lower-case (table, column)."""
    comments: dict[tuple[str, str], str] = {}
    for path in sorted((database.parent / "database_description").glob("*.csv")):
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            for row in csv.DictReader(lines):
                column = (row.get("original_column_name") or "").strip().lower()
                text = row.get("column_description") or row.get("column_name") or ""
                if column and text.strip():
                    comments[path.stem.lower(), column] = " ".join(text.split())
    return comments


def _tokens(sql: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(sql):
        yield str(match.lastgroup), match[0]


def _unquoted(name: str) -> str:
    if name[0] in '"`':
        return name[1:-1].replace(name[0] * 2, name[0])
    return name[1:-1] if name[0] == "[" else name


def _comment_text(token: str) -> str:
    inner = token[2:] if token.startswith("--") else token[2:].removesuffix("*/")
    return " ".join(inner.split())


def _add(comments: dict[str, str], column: str, text: str) -> None:
    if text:
        comments[column] = f"{comments[column]} {text}" if column in comments else text
