"""A database's schema, read from the file and written as text for a prompt, in four forms (sql-r1.md §6).

- retrieved: CREATE TABLE statements, with comments, values retrieved for the question, then sampled ones.
- fixed: the same with sampled values alone, so one text for every question on a database.
- compact: a line a table, `- dogs: code, color, age`, then a line a key pair, `- join dogs, owners on keeper = tag`.
- qualified: compact, with each column behind its table's name: `- dogs code, dogs color, dogs age`.
"""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from sqlr1_jax.data import comments
from sqlr1_jax.sql import database as sqlite

FORMS = ("retrieved", "fixed", "qualified", "compact")
WITHOUT_VALUES = ("qualified", "compact")
LONGEST_VALUE = 40  # characters
VALUES_SHOWN = 6  # a column
VALUES_SAMPLED = 2  # a column
ROWS_SAMPLED = 2000  # first rows of a table that sampled values come from

Value = str | int | float
Values = Mapping[tuple[str, str], Sequence[Value]]  # by (table, column)

# Words that SQLite does not take for a name as they stand, or takes for something else.
_RESERVED = """add all alter and as autoincrement between case cast check collate commit constraint create
    current_date current_time current_timestamp default deferrable delete distinct drop else
    escape except exists foreign from group having if in index insert intersect into is isnull
    join limit not nothing notnull null on or order primary raise references returning select
    set table then to transaction union unique update using values when where"""
RESERVED = frozenset(_RESERVED.split())
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

_COLUMNS = """SELECT m.name, c.name, c.type, c.pk FROM sqlite_master m JOIN pragma_table_xinfo(m.name) c
    WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND c.hidden != 1
    ORDER BY m.rowid, c.cid"""
_KEYS = """SELECT m.name, k.id, k."from", k."table", k."to", k.seq
    FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) k WHERE m.type = 'table'
    ORDER BY m.rowid, k.id DESC, k.seq"""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column as declared, and what is said and sampled of it."""

    name: str
    type: str  # as declared; may be empty
    primary_key: int = 0  # its place in the table's primary key, from 1; 0: not in it
    comment: str = ""
    values: tuple[Value, ...] = ()  # sampled


@dataclasses.dataclass(frozen=True)
class ForeignKey:
    """`columns` of `table` hold keys of `parent`, pairwise."""

    table: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and its columns, in their order."""

    name: str
    columns: tuple[Column, ...]


@dataclasses.dataclass(frozen=True)
class Schema:
    """The tables of a database, and the keys between them."""

    tables: tuple[Table, ...]  # in the order in which they were created
    foreign_keys: tuple[ForeignKey, ...]


def read_schema(database: str | Path, sampled: bool = True) -> Schema:
    """The schema of a SQLite file, its columns' comments and, if `sampled`, a few of their values.

    Keys to tables that are not there are left out. Raises `sql.database.DatabaseError`, which names the file.
    """
    path = Path(database)
    with closing(sqlite.open_readonly(path)) as connection:
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        try:
            tables = _read_tables(connection, _comments(connection, path))
            keys = _read_keys(connection, tables)
            if sampled:
                tables = [_with_values(connection, table) for table in tables]
        except sqlite3.Error as error:
            raise sqlite.DatabaseError(f"{path}: its schema cannot be read: {error}") from error
    return Schema(tuple(tables), tuple(keys))


def render(schema: Schema, form: str, values: Values | None = None) -> str:
    """The schema as text, without a line end behind it. `values` are those retrieved for a question."""
    if form not in FORMS:
        raise ValueError(f"a schema's form is one of {', '.join(FORMS)}, not {form!r}")
    if form in WITHOUT_VALUES:
        return _names_alone(schema, form)
    keys: dict[str, list[ForeignKey]] = {}
    for key in schema.foreign_keys:
        keys.setdefault(key.table, []).append(key)
    shown = (values or {}) if form == "retrieved" else {}
    return "\n\n".join(_create_table(table, keys.get(table.name, []), shown) for table in schema.tables)


def quoted(name: str) -> str:
    """The name as SQL takes it: in backticks only where it needs them."""
    if _BARE.match(name) and name.lower() not in RESERVED:
        return name
    return "`" + name.replace("`", "``") + "`"


def literal(value: Value) -> str:
    """The value as SQL writes it."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _names_alone(schema: Schema, form: str) -> str:
    tables_with = Counter(column.name.lower() for table in schema.tables for column in table.columns)

    def name(table: str, column: str) -> str:
        bare = quoted(column)
        return bare if tables_with[column.lower()] == 1 else f"{quoted(table)}.{bare}"

    if form == "qualified":
        lines = ["- " + ", ".join(f"{quoted(t.name)} {quoted(c.name)}" for c in t.columns) for t in schema.tables]
    else:
        lines = [f"- {quoted(t.name)}: {_names([c.name for c in t.columns])}" for t in schema.tables]
    for key in schema.foreign_keys:
        pairs = zip(key.columns, key.parent_columns, strict=True)
        equal = " and ".join(f"{name(key.table, ours)} = {name(key.parent, theirs)}" for ours, theirs in pairs)
        lines.append(f"- join {quoted(key.table)}, {quoted(key.parent)} on {equal}")
    return "\n".join(lines)


def _create_table(table: Table, keys: Sequence[ForeignKey], values: Values) -> str:
    lines = [(_declaration(c), _remark(c, values.get((table.name, c.name), ()))) for c in table.columns]
    primary = sorted((c for c in table.columns if c.primary_key), key=lambda c: c.primary_key)
    if primary:
        lines.append((f"PRIMARY KEY ({_names([c.name for c in primary])})", ""))
    lines += [
        (f"FOREIGN KEY ({_names(k.columns)}) REFERENCES {quoted(k.parent)} ({_names(k.parent_columns)})", "")
        for k in keys
    ]
    commas = [","] * (len(lines) - 1) + [""]
    body = [f"    {text}{comma}{remark}" for (text, remark), comma in zip(lines, commas, strict=True)]
    return "\n".join([f"CREATE TABLE {quoted(table.name)} (", *body, ");"])


def _declaration(column: Column) -> str:
    return f"{quoted(column.name)} {column.type}".rstrip()


def _names(names: Sequence[str]) -> str:
    return ", ".join(quoted(name) for name in names)


def _remark(column: Column, retrieved: Sequence[Value]) -> str:
    values = list(dict.fromkeys([*retrieved, *column.values]))[:VALUES_SHOWN]
    example = f"example: [{', '.join(literal(v) for v in values)}]" if values else ""
    parts = [part for part in (column.comment, example) if part]
    return f" -- {', '.join(parts)}" if parts else ""


def _comments(connection: sqlite3.Connection, path: Path) -> dict[tuple[str, str], str]:
    found = {}
    for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"):
        if "--" in (sql or "") or "/*" in (sql or ""):
            found.update({(name.lower(), column): text for column, text in comments.from_sql(sql).items()})
    return found | comments.from_descriptions(path)


def _read_tables(connection: sqlite3.Connection, remarks: Mapping[tuple[str, str], str]) -> list[Table]:
    columns: dict[str, list[Column]] = {}
    for table, name, kind, key in connection.execute(_COLUMNS):
        remark = remarks.get((table.lower(), name.lower()), "")
        columns.setdefault(table, []).append(Column(name, kind, key, remark))
    return [Table(name, tuple(found)) for name, found in columns.items()]


def _read_keys(connection: sqlite3.Connection, tables: Sequence[Table]) -> list[ForeignKey]:
    """Foreign keys in the tables' own spelling; one that names no columns means the parent's primary key."""
    by_name = {table.name.lower(): table for table in tables}
    rows: dict[tuple[str, int], list[tuple[str, str, str | None]]] = {}
    for table, number, ours, parent, theirs, _ in connection.execute(_KEYS):
        rows.setdefault((table, number), []).append((ours, parent, theirs))
    keys = [_key(by_name, table, pairs) for (table, _), pairs in rows.items()]
    return [key for key in keys if key]


def _key(by_name: Mapping[str, Table], table: str, pairs: Sequence[tuple[str, str, str | None]]) -> ForeignKey | None:
    child, parent = by_name[table.lower()], by_name.get(pairs[0][1].lower())
    if parent is None:
        return None
    primary = [c.name for c in sorted(parent.columns, key=lambda c: c.primary_key) if c.primary_key]
    theirs = [pair[2] for pair in pairs] if pairs[0][2] is not None else primary
    ours_spelled = [_spelled(child, pair[0]) for pair in pairs]
    theirs_spelled = [_spelled(parent, name or "") for name in theirs]
    if len(ours_spelled) != len(theirs_spelled) or None in (*ours_spelled, *theirs_spelled):
        return None
    return ForeignKey(child.name, tuple(map(str, ours_spelled)), parent.name, tuple(map(str, theirs_spelled)))


def _spelled(table: Table, column: str) -> str | None:
    return next((c.name for c in table.columns if c.name.lower() == column.lower()), None)


def _with_values(connection: sqlite3.Connection, table: Table) -> Table:
    columns = [dataclasses.replace(c, values=_sample(connection, table.name, c.name)) for c in table.columns]
    return dataclasses.replace(table, columns=tuple(columns))


def _sample(connection: sqlite3.Connection, table: str, column: str) -> tuple[Value, ...]:
    """The first distinct short values among the table's first rows, in the order of its rows."""
    name, source = quoted(column), quoted(table)
    rows = connection.execute(
        f"""SELECT DISTINCT v FROM (SELECT {name} AS v FROM {source} NOT INDEXED LIMIT {ROWS_SAMPLED})
        WHERE v IS NOT NULL AND typeof(v) != 'blob' AND length(v) BETWEEN 1 AND {LONGEST_VALUE}
        AND instr(v, char(10)) = 0 AND instr(v, char(13)) = 0 LIMIT {VALUES_SAMPLED}"""
    )
    return tuple(row[0] for row in rows)
