"""The schema format `rows`: each table's CREATE TABLE statement as the database stores it, then three example rows.

It is the form of BIRD's prompts, which Qwen2.5-Coder's report uses too. The rows stand in a comment, their columns
aligned to the right:

    CREATE TABLE dogs (code INTEGER, color TEXT)
     /*
     3 example rows:
     SELECT * FROM dogs LIMIT 3;
     code color
       10   red
       11   red
     */
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlr1_jax.data.schema import open_database, quote, read_columns, visible_objects
from sqlr1_jax.sql import backends, modules
from sqlr1_jax.sql import database as sqlite

FORMAT = "rows"  # a value of the setting data.schema
ROWS = 3  # example rows of a table
MAX_CELL_LENGTH = 40  # characters


def render(database: str | Path) -> str:
    """The tables of an SQLite file, then its views without rows, separated by empty lines, without a final newline.

    Shadow tables (sql/modules.py) are left out, and so are tables and views whose columns cannot be read. A table whose
    rows cannot be read is shown without them. The log names each once.

    Raises:
      sql.database.DatabaseError: the file cannot be opened; the message names it.
    """
    path = Path(database)
    with closing(open_database(path)) as connection:
        objects = visible_objects(connection, modules.virtual_tables(connection))
        tables_first = sorted(objects, key=lambda row: row[1])
        texts = [_object(connection, path, *row) for row in tables_first]
        return "\n\n".join(text for text in texts if text)


def _object(connection: sqlite3.Connection, path: Path, name: str, kind: str, sql: str) -> str:
    """The statement of a table, with its first rows, or of a view, which may be slow; "" if it cannot be read."""
    _, problem = read_columns(connection, path, kind, name)
    if problem or kind == "view":
        return "" if problem else sql
    try:
        return f"{sql} \n {_example_rows(connection, name)}"
    except backends.ERRORS as error:
        message = backends.message_of(error)
        sqlite.warn_once(f"{path}: table {name} is shown without rows, since they cannot be read ({message}).")
        return sql


def _example_rows(connection: sqlite3.Connection, table: str) -> str:
    """The comment with a table's first rows; its line ends are those of BIRD's prompts, blanks included."""
    query = f"SELECT * FROM {quote(table)} LIMIT {ROWS}"
    cursor = connection.execute(query)
    cells = [[column[0] for column in cursor.description]]
    cells += [[_cell(value) for value in row] for row in cursor.fetchmany(ROWS)]
    return f"/* \n {ROWS} example rows: \n {query}; \n {_align(cells)} \n */"


def _align(cells: Sequence[Sequence[str]]) -> str:
    """Lines of cells, each cell as wide as the widest in its column and followed by a blank."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("".join(f"{cell.rjust(width)} " for cell, width in zip(row, widths, strict=True)) for row in cells)


def _cell(value: Any) -> str:
    """A value on one line, cut after MAX_CELL_LENGTH characters; NULL is None, as in BIRD's prompts."""
    if isinstance(value, bytes):
        return f"x'{value[:4].hex()}…'" if len(value) > 4 else f"x'{value.hex()}'"
    text = " ".join(str(value).splitlines())
    return text if len(text) <= MAX_CELL_LENGTH else f"{text[:MAX_CELL_LENGTH]}…"
