"""Reads a database's schema from its file, and writes it as text for a prompt in one of four formats.

The formats (docs/method.md, section 10):

- retrieved: CREATE TABLE statements with comments and, for each column, values retrieved for the question, then sampled
  ones.
- fixed: the same with sampled values only, so the text is the same for every question on a database.
- compact: one line for each table, `- dogs: code, color, age`, then one for each foreign key,
  `- join dogs, owners on keeper = tag`.
- qualified: as compact, with each column after its table's name: `- dogs code, dogs color, dogs age`.
"""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlr1_jax.data import comments
from sqlr1_jax.sql import backends, modules
from sqlr1_jax.sql import database as sqlite

FORMATS = ("retrieved", "fixed", "qualified", "compact")  # values of the setting data.schema, longest text first
FORMATS_WITHOUT_VALUES = ("qualified", "compact")
MAX_VALUE_LENGTH = 40  # characters
MAX_VALUES = 6  # values shown per column
SAMPLED_VALUES = 2  # values sampled per column
SAMPLED_ROWS = 2000  # sampled values come from this many first rows of a table

Value = str | int | float
Values = Mapping[tuple[str, str], Sequence[Value]]  # by (table, column)

# Words that SQLite does not accept as a bare name, or reads as something else.
_RESERVED = """add all alter and as autoincrement between case cast check collate commit constraint create
    current_date current_time current_timestamp default deferrable delete distinct drop else
    escape except exists foreign from group having if in index insert intersect into is isnull
    join limit not nothing notnull null on or order primary raise references returning select
    set table then to transaction union unique update using values when where"""
RESERVED = frozenset(_RESERVED.split())
_BARE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

_OBJECTS = """SELECT name, type, CAST(sql AS TEXT) FROM sqlite_master WHERE type IN ('table', 'view')
    AND typeof(name) = 'text' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"""
_COLUMNS = "SELECT name, type, pk FROM pragma_table_xinfo(?) WHERE hidden != 1 ORDER BY cid"
_MALFORMED = "its entry in the schema is malformed"
_KEYS = """SELECT id, "from", "table", "to" FROM pragma_foreign_key_list(?) ORDER BY id DESC, seq"""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column, with its comment and some of its values."""

    name: str
    type: str  # as declared; may be empty
    primary_key: int = 0  # its position in the table's primary key, from 1; 0: not part of it
    comment: str = ""
    values: tuple[Value, ...] = ()  # sampled values


@dataclasses.dataclass(frozen=True)
class ForeignKey:
    """`columns` of `table` refer to `parent_columns` of `parent`, pairwise."""

    table: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or view and its columns, in the order of their declaration."""

    name: str
    columns: tuple[Column, ...]
    module: str = ""  # of a virtual table, as in USING


@dataclasses.dataclass(frozen=True)
class Schema:
    """The tables of a database, and the foreign keys between them."""

    tables: tuple[Table, ...]  # in the order of their creation
    foreign_keys: tuple[ForeignKey, ...]
    views: tuple[Table, ...] = ()  # their columns have no values: a view may be slow
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)  # why, by the name of a table or view


def read_schema(database: str | Path, sampled: bool = True) -> Schema:
    """The schema of an SQLite file with its columns' comments and, if `sampled`, a few values of each column.

    Shadow tables (sql/modules.py) and foreign keys to tables or columns that do not exist are left out. So is a table
    or view that cannot be read, such as one of an extension's module; the log names it once.

    Raises:
      sql.database.DatabaseError: the file cannot be opened; the message names it.
    """
    path = Path(database)
    with closing(open_database(path)) as connection:
        tables, views, left_out = _read_tables(connection, path, sampled)
        keys = [key for table in tables for key in _read_keys(connection, table, tables)]
    return Schema(tuple(tables), tuple(keys), tuple(views), left_out)


def open_database(path: Path) -> sqlite3.Connection:
    """Opens an SQLite file to read text for prompts from it: bytes that are not UTF-8 become replacement characters.

    Raises:
      sql.database.DatabaseError: the file cannot be opened.
    """
    connection = sqlite.open_readonly(path)
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    return connection


def visible_objects(connection: sqlite3.Connection, module_of: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, kind, sql) of each table and view, in the order of their creation, without shadow tables.

    module_of: as from `modules.virtual_tables`.
    """
    shadows = modules.shadow_tables(module_of)
    rows = sqlite.read_entries(connection, _OBJECTS)
    return [(name, kind, sql or "") for name, kind, sql in rows if name.lower() not in shadows]


def render(schema: Schema, schema_format: str, values: Values | None = None) -> str:
    """The schema as text, without a final newline.

    values: those retrieved for a question, which only the retrieved format shows.

    Raises:
      ValueError: there is no such format.
    """
    if schema_format not in FORMATS:
        raise ValueError(f"a schema's format is one of {', '.join(FORMATS)}, not {schema_format!r}")
    if schema_format in FORMATS_WITHOUT_VALUES:
        return _render_names(schema, qualified=schema_format == "qualified")
    keys: dict[str, list[ForeignKey]] = {}
    for key in schema.foreign_keys:
        keys.setdefault(key.table, []).append(key)
    retrieved = (values or {}) if schema_format == "retrieved" else {}
    tables = [_create_table(table, keys.get(table.name, []), retrieved) for table in schema.tables]
    # Of a view, only its columns: its query may be long, and the text must remain SQL.
    views = [f"-- view {quote(view.name)} ({_join_names([c.name for c in view.columns])})" for view in schema.views]
    return "\n\n".join([*tables, *(["\n".join(views)] if views else [])])


def quote(name: str) -> str:
    """The name as SQL, in backticks only if it needs them."""
    if _BARE_NAME.match(name) and name.lower() not in RESERVED:
        return name
    return "`" + name.replace("`", "``") + "`"


def literal(value: Value) -> str:
    """The value as an SQL literal."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _render_names(schema: Schema, qualified: bool) -> str:
    """Table and column names, then joins, in which columns are qualified only if their name is ambiguous."""
    tables_with = Counter(column.name.lower() for table in schema.tables for column in table.columns)

    def name(table: str, column: str) -> str:
        return quote(column) if tables_with[column.lower()] == 1 else f"{quote(table)}.{quote(column)}"

    shown = (*schema.tables, *schema.views)
    if qualified:
        lines = ["- " + ", ".join(f"{quote(t.name)} {quote(c.name)}" for c in t.columns) for t in shown]
    else:
        lines = [f"- {quote(t.name)}: {_join_names([c.name for c in t.columns])}" for t in shown]
    for key in schema.foreign_keys:
        pairs = zip(key.columns, key.parent_columns, strict=True)
        condition = " and ".join(f"{name(key.table, child)} = {name(key.parent, parent)}" for child, parent in pairs)
        lines.append(f"- join {quote(key.table)}, {quote(key.parent)} on {condition}")
    return "\n".join(lines)


def _create_table(table: Table, keys: Sequence[ForeignKey], retrieved: Values) -> str:
    lines = []  # (declaration, comment)
    for column in table.columns:
        declaration = f"{quote(column.name)} {column.type}".rstrip()
        values = dict.fromkeys([*retrieved.get((table.name, column.name), ()), *column.values])
        examples = f"example: [{', '.join([literal(v) for v in values][:MAX_VALUES])}]" if values else ""
        comment = ", ".join(text for text in (column.comment, examples) if text)
        lines.append((declaration, f" -- {comment}" if comment else ""))
    primary = sorted((c for c in table.columns if c.primary_key), key=lambda c: c.primary_key)
    if primary:
        lines.append((f"PRIMARY KEY ({_join_names([c.name for c in primary])})", ""))
    for key in keys:
        child, parent = _join_names(key.columns), _join_names(key.parent_columns)
        lines.append((f"FOREIGN KEY ({child}) REFERENCES {quote(key.parent)} ({parent})", ""))
    commas = [","] * (len(lines) - 1) + [""]
    body = [f"    {text}{comma}{comment}" for (text, comment), comma in zip(lines, commas, strict=True)]
    module = f" -- virtual table of {table.module}" if table.module else ""
    return "\n".join([f"CREATE TABLE {quote(table.name)} ({module}", *body, ");"])


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(quote(name) for name in names)


def _read_tables(
    connection: sqlite3.Connection, path: Path, sampled: bool
) -> tuple[list[Table], list[Table], dict[str, str]]:
    """Tables, views, and why others are left out. BIRD's descriptions win over comments in the SQL."""
    module_of = modules.virtual_tables(connection)
    objects = visible_objects(connection, module_of)
    comment_of: dict[tuple[str, str], str] = {}
    for name, kind, sql in objects:
        if kind == "table" and ("--" in sql or "/*" in sql):
            comment_of.update({(name.lower(), column): text for column, text in comments.from_sql(sql).items()})
    comment_of |= comments.from_descriptions(path)
    found: dict[str, list[Table]] = {"table": [], "view": []}
    left_out: dict[str, str] = {}
    for name, kind, _ in objects:
        rows, problem = read_columns(connection, path, kind, name)
        if problem:
            left_out[name] = problem
            continue
        columns = [
            Column(column, type_, key, comment_of.get((name.lower(), column.lower()), ""))
            for column, type_, key in rows
        ]
        if sampled and kind == "table":
            columns = _with_values(connection, path, name, columns)
        found[kind].append(Table(name, tuple(columns), module_of.get(name, "")))
    return found["table"], found["view"], left_out


def read_columns(
    connection: sqlite3.Connection, path: Path, kind: str, name: str
) -> tuple[list[tuple[str, str, int]], str]:
    """Returns (name, type, place in the primary key) of each column of a table or view, and "".

    If it cannot be read, returns no columns and the reason, which the log says once. kind: "table" or "view".
    """
    problem = _MALFORMED
    try:
        rows = connection.execute(_COLUMNS, (name,)).fetchall()
    except backends.ERRORS as error:
        rows, problem = [], backends.message_of(error)
    if rows:
        return rows, ""
    if not (problem == _MALFORMED and kind == "table" and sqlite.is_malformed(path)):
        sqlite.warn_once(f"{path}: {kind} {name} is left out of the schema, since it cannot be read ({problem}).")
    return [], problem


def _read_keys(connection: sqlite3.Connection, table: Table, tables: Sequence[Table]) -> list[ForeignKey]:
    """The foreign keys of a table, with names spelled as the tables spell them."""
    by_name = {other.name.lower(): other for other in tables}
    rows: dict[int, list[tuple[str, str, str | None]]] = {}
    with suppress(*backends.ERRORS):  # of a virtual table that cannot be connected
        for number, column, parent, parent_column in connection.execute(_KEYS, (table.name,)):
            rows.setdefault(number, []).append((column, parent, parent_column))
    keys = [_foreign_key(by_name, table.name, columns) for columns in rows.values()]
    return [key for key in keys if key]


def _foreign_key(
    by_name: Mapping[str, Table], table: str, rows: Sequence[tuple[str, str, str | None]]
) -> ForeignKey | None:
    """The key whose rows are (column, parent, parent's column); None if the parent or a column does not exist.

    A key that names no columns of the parent refers to the parent's primary key.
    """
    child, parent = by_name[table.lower()], by_name.get(rows[0][1].lower())
    if parent is None:
        return None
    primary = [c.name for c in sorted(parent.columns, key=lambda c: c.primary_key) if c.primary_key]
    referred = [row[2] for row in rows] if rows[0][2] is not None else primary
    columns = [_spelling(child, row[0]) for row in rows]
    parent_columns = [_spelling(parent, name or "") for name in referred]
    if len(columns) != len(parent_columns) or None in (*columns, *parent_columns):
        return None
    return ForeignKey(child.name, tuple(map(str, columns)), parent.name, tuple(map(str, parent_columns)))


def _spelling(table: Table, column: str) -> str | None:
    """The column's name as its table spells it; None if it has no such column."""
    return next((c.name for c in table.columns if c.name.lower() == column.lower()), None)


def _with_values(connection: sqlite3.Connection, path: Path, table: str, columns: Sequence[Column]) -> list[Column]:
    """The columns with their first distinct short values among the table's first rows, in row order."""
    queries = {column.name: _sample_query(table, column.name) for column in columns}
    values = dict(read_values(connection, queries, path, table))
    return [dataclasses.replace(c, values=tuple(row[0] for row in values.get(c.name, ()))) for c in columns]


def _sample_query(table: str, column: str) -> str:
    name, source = quote(column), quote(table)
    # NOT INDEXED, since an index would give the rows in its own order.
    return f"""SELECT DISTINCT v FROM (SELECT {name} AS v FROM {source} NOT INDEXED LIMIT {SAMPLED_ROWS})
        WHERE v IS NOT NULL AND typeof(v) != 'blob' AND length(v) BETWEEN 1 AND {MAX_VALUE_LENGTH}
        AND instr(v, char(10)) = 0 AND instr(v, char(13)) = 0 LIMIT {SAMPLED_VALUES}"""


def read_values(
    connection: sqlite3.Connection, queries: Mapping[str, str], path: Path, table: str
) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yields (column, rows of its query) for the columns of a table.

    Columns that cannot be read, as by an extension's collation, are missing; the log names them once.
    """
    size = sqlite.readable_size(path)
    errors: dict[str, str] = {}
    for column, query in queries.items():
        try:
            sqlite.limit_steps(connection, size)
            yield column, connection.execute(query).fetchall()
        except backends.ERRORS as error:
            errors[column] = backends.message_of(error)
    if errors:
        reasons = "; ".join(dict.fromkeys(errors.values()))
        sqlite.warn_once(f"{path}: table {table} is shown without values of {', '.join(errors)}: {reasons}.")
