"""Random small databases: names from a pool, plausible values, primary and foreign keys."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from sqlr1_jax.data import schema
from sqlr1_jax.synth.words import VALUES, Pool

PAGE_BYTES = 512  # SQLite's smallest page, since a run starts by making thousands of these files


class Column(NamedTuple):
    """A column and its values."""

    name: str
    kind: str  # key (primary key), link (foreign key), number or text
    values: tuple[Any, ...]  # one for each row: strings in a text column, else ints


class Table(NamedTuple):
    """A table; all its columns have as many values."""

    name: str
    columns: tuple[Column, ...]

    def of_kind(self, *kinds: str) -> list[Column]:
        """The columns of any of these kinds."""
        return [column for column in self.columns if column.kind in kinds]


class Link(NamedTuple):
    """A foreign key: `column` of `child` refers to `key` of `parent`. Tables are given by their index."""

    child: int
    column: str
    parent: int
    key: str


class Database(NamedTuple):
    """Tables, and the foreign keys between them."""

    tables: tuple[Table, ...]
    links: tuple[Link, ...]

    def table_of(self, column: str) -> str:
        """The name of the only table that has `column`; "" for an alias, which no table has."""
        return next((table.name for table in self.tables if any(column == c.name for c in table.columns)), "")


class _Names:
    """Draws names without repetition, half of them from the reserved pool if there is one."""

    def __init__(self, rng: random.Random, pool: Pool, reserved: Pool | None) -> None:
        self._rng, self._pool, self._reserved = rng, pool, reserved
        self._counts = [0, 0]  # names drawn from the common pool and from the reserved one
        self._seen: set[str] = set()

    def draw(self, role: str) -> tuple[str, str]:
        """A new name for a role of `Pool` and, for texts, the kind of its values."""
        reserved = self._reserved is not None and self._counts[1] <= self._counts[0]
        pool = self._reserved if reserved and self._reserved is not None else self._pool
        word = self._rng.choice(getattr(pool, role))
        name, kind = word if isinstance(word, tuple) else (word, "")
        if name in self._seen:
            return self.draw(role)
        self._seen.add(name)
        self._counts[reserved] += 1
        return name, kind


def make(rng: random.Random, pool: Pool, reserved: Pool | None = None) -> Database:
    """A database of 2 to 4 tables with 8 to 20 rows each, linked in a chain or a star.

    reserved: a second pool, from which half of the names come.
    """
    names = _Names(rng, pool, reserved)
    count = rng.choices((2, 3, 4), (11, 8, 1))[0]
    chain = rng.random() < 0.5
    parents = [None, *((i if chain else 0) for i in range(count - 1))]
    tables: list[Table] = []
    links: list[Link] = []
    for i, parent in enumerate(parents):
        table = _table(rng, names, tables[parent] if parent is not None else None, widest=4 if count == 4 else 5)
        if parent is not None:
            links.append(Link(i, table.columns[1].name, parent, tables[parent].columns[0].name))
        tables.append(table)
    return _shuffled(rng, tables, links)


def _shuffled(rng: random.Random, tables: list[Table], links: list[Link]) -> Database:
    """The database with its tables in random order, and the columns after each table's key in random order."""
    order = rng.sample(range(len(tables)), len(tables))
    new_index = {old: new for new, old in enumerate(order)}
    shuffled = []
    for i in order:
        key, *others = tables[i].columns
        shuffled.append(Table(tables[i].name, (key, *rng.sample(others, len(others)))))
    moved = [Link(new_index[link.child], link.column, new_index[link.parent], link.key) for link in links]
    return Database(tuple(shuffled), tuple(sorted(moved)))


def _table(rng: random.Random, names: _Names, parent: Table | None, widest: int) -> Table:
    rows = rng.randint(8, 20)
    name = names.draw("tables")[0]
    key_name, start = names.draw("keys")[0], rng.choice((1, 1, 11, 20, 51))
    keys = sorted(rng.sample(range(start, start + rows + 8), rows))
    columns = [Column(key_name, "key", tuple(keys))]
    if parent is not None:
        link_name, parent_keys = names.draw("links")[0], parent.columns[0].values
        used = rng.sample(parent_keys, max(3, len(parent_keys) * 3 // 5))  # the others are never referred to
        columns.append(Column(link_name, "link", tuple(rng.choices(used, k=rows))))
    columns += [_text(rng, names, rows), _number(rng, names, rows)]
    for _ in range(rng.randint(len(columns), widest) - len(columns)):
        columns.append(rng.choice((_text, _number))(rng, names, rows))
    return Table(name, tuple(columns))


def _text(rng: random.Random, names: _Names, rows: int) -> Column:
    name, kind = names.draw("texts")
    few = rng.sample(VALUES[kind], rng.randint(3, 6))
    return Column(name, "text", tuple(rng.choices(few, k=rows)))


def _number(rng: random.Random, names: _Names, rows: int) -> Column:
    """Whole numbers, mostly without repetition, so that ORDER BY has no ties."""
    name = names.draw("numbers")[0]
    low, high = rng.choice(((1, 40), (1, 60), (5, 99), (10, 99), (20, 90), (1, 12), (100, 400)))
    unique = rng.random() < 0.7 and high - low >= rows
    values = rng.sample(range(low, high), rows) if unique else rng.choices(range(low, high), k=rows)
    return Column(name, "number", tuple(values))


def build(database: Database) -> sqlite3.Connection:
    """The database in memory. Callers only read from it."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("BEGIN")
    for i, table in enumerate(database.tables):
        connection.execute(_create_table(database, i))
        marks = ", ".join("?" * len(table.columns))
        rows = zip(*(column.values for column in table.columns), strict=True)
        connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", rows)
    connection.execute("COMMIT")
    return connection


def _create_table(database: Database, index: int) -> str:
    table = database.tables[index]
    types = {"key": "INTEGER PRIMARY KEY", "link": "INTEGER", "number": "INTEGER", "text": "TEXT"}
    lines = [f"{column.name} {types[column.kind]}" for column in table.columns]
    lines += [
        f"FOREIGN KEY ({link.column}) REFERENCES {database.tables[link.parent].name} ({link.key})"
        for link in database.links
        if link.child == index
    ]
    return f"CREATE TABLE {table.name} ({', '.join(lines)})"


def save(connection: sqlite3.Connection, path: Path) -> None:
    """Writes the database to a file, and makes the file's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(connection.serialize())


def schema_text(database: Database) -> str:
    """The schema in the qualified format of data/schema.py, on which the tokenizer is trained."""
    tables = [schema.Table(t.name, tuple(schema.Column(c.name, "") for c in t.columns)) for t in database.tables]
    keys = [
        schema.ForeignKey(tables[link.child].name, (link.column,), tables[link.parent].name, (link.key,))
        for link in database.links
    ]
    return schema.render(schema.Schema(tuple(tables), tuple(keys)), "qualified")
