"""Damaged and odd SQLite files, each a function of a seed: bytes changed, schema entries changed, odd content."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

PAGE = 512  # bytes: a small file has many pages
_HEADER = 100  # bytes
# Tables of every kind, an index, a view, enough rows for interior pages, one cell with overflow pages.
_SCRIPT = """
CREATE TABLE owners (tag INTEGER PRIMARY KEY, city TEXT /* where they live */, "full name" TEXT UNIQUE);
CREATE TABLE dogs (code INTEGER PRIMARY KEY, color TEXT, age REAL, -- in years
    keeper INTEGER REFERENCES owners (tag), twice AS (age * 2), CHECK (age > 0));
CREATE TABLE tags (a TEXT, b BLOB, PRIMARY KEY (a, b)) WITHOUT ROWID;
CREATE INDEX by_age ON dogs (age, color);
CREATE VIEW old AS SELECT color, age FROM dogs WHERE age > 4;
CREATE VIRTUAL TABLE notes USING fts5(title, body);
CREATE VIRTUAL TABLE boxes USING rtree(id, low, high);
INSERT INTO owners SELECT value, 'city' || value % 9, 'name ' || value FROM generate_numbers;
INSERT INTO dogs (code, color, age, keeper)
    SELECT value, substr('redblackwhite', value % 5, 4), value % 13 + 1, value FROM generate_numbers;
INSERT INTO tags SELECT 'tag' || value, x'00ff' FROM generate_numbers;
INSERT INTO notes SELECT 'title ' || value, 'a body of words' FROM generate_numbers LIMIT 5;
INSERT INTO boxes SELECT value, value, value + 1 FROM generate_numbers LIMIT 5;
INSERT INTO owners VALUES (1000, printf('%.3000c', 'x'), 'long');
"""
QUERIES = (
    "SELECT count(*) FROM dogs",
    "SELECT color, age FROM dogs WHERE age > 4 ORDER BY code",
    "SELECT city, count(*) FROM owners JOIN dogs ON keeper = tag GROUP BY city",
    "SELECT * FROM owners",
    "SELECT a, length(b) FROM tags WHERE a LIKE 'tag1%'",
    "SELECT color FROM old",
    "SELECT title FROM notes WHERE notes MATCH 'words'",
    "SELECT id FROM boxes WHERE low > 2",
)
# Entries of sqlite_master: (type, name, tbl_name, root page, sql).
_ENTRIES = (
    ("table", "lost", "lost", 2, "CREATE TABLE lost (a"),
    ("table", "lost", "lost", 999_999, "CREATE TABLE lost (a)"),
    ("table", "lost", "lost", 0, "CREATE TABLE lost (a)"),
    ("table", "lost", "lost", -1, "CREATE TABLE lost (a)"),
    ("table", "lost", "lost", "two", "CREATE TABLE lost (a)"),
    ("table", "lost", "lost", 1, "CREATE TABLE lost (a, b, c, d, e)"),
    ("table", "dogs", "dogs", 2, "CREATE TABLE dogs (a)"),
    ("table", "lost", "lost", 2, "CREATE TABLE found (a)"),
    ("table", "lost", "lost", 3, "CREATE TABLE lost AS SELECT * FROM dogs"),
    ("table", "lost", "lost", 2, "SELECT load_extension('evil')"),
    ("table", "lost", "lost", 2, "CREATE TABLE lost (a); DROP TABLE dogs"),
    ("table", "lost", "lost", 2, "DELETE FROM dogs"),
    ("table", "lost", "lost", 2, b"\x00\xff\xfe"),
    ("table", "lost", "lost", 2, 17),
    ("table", "lost", "lost", 2, None),
    ("table", None, "lost", 2, "CREATE TABLE lost (a)"),
    ("table", 5, "lost", 2, "CREATE TABLE lost (a)"),
    ("table", b"\xff\xfe", "lost", 2, "CREATE TABLE lost (a)"),
    ("table", "", "", 2, 'CREATE TABLE "" (a)'),
    ("table", "lost", None, None, None),
    (None, None, None, None, None),
    ("tisch", "lost", "lost", 2, "CREATE TABLE lost (a)"),
    ("index", "lost", "gone", 2, "CREATE INDEX lost ON gone (a)"),
    ("index", "lost", "dogs", 2, None),
    ("index", "lost", "dogs", 2, "CREATE INDEX lost ON dogs (nothing)"),
    ("index", "lost", "dogs", 2, "CREATE INDEX lost ON dogs (color COLLATE LOCALIZED)"),
    ("index", "lost", "dogs", 2, "CREATE INDEX lost ON dogs (unknown_function(color))"),
    ("view", "lost", "lost", 0, "CREATE VIEW lost AS SELECT * FROM lost"),
    ("view", "lost", "lost", 0, "CREATE VIEW lost AS SELECT * FROM gone"),
    ("view", "lost", "lost", 0, "CREATE VIEW lost AS"),
    ("view", "lost", "lost", 0, "CREATE VIEW lost (a, b, c) AS SELECT 1"),
    (
        "view",
        "lost",
        "lost",
        0,
        "CREATE VIEW lost AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT * FROM n",
    ),
    ("view", "lost", "lost", 0, "CREATE VIEW lost AS SELECT randomblob(900000000), load_extension('evil')"),
    ("trigger", "lost", "dogs", 0, "CREATE TRIGGER lost AFTER INSERT ON dogs BEGIN SELECT 1"),
    ("trigger", "lost", "gone", 0, "CREATE TRIGGER lost AFTER INSERT ON gone BEGIN SELECT 1; END"),
    ("table", "lost", "lost", 0, "CREATE VIRTUAL TABLE lost USING VirtualSpatialIndex()"),
    ("table", "lost", "lost", 0, "CREATE VIRTUAL TABLE lost USING fts5"),
    ("table", "lost", "lost", 0, "CREATE VIRTUAL TABLE lost USING fts5(a, content='gone')"),
    ("table", "lost", "lost", 0, "CREATE VIRTUAL TABLE lost USING fts4(tokenize=icu)"),
    ("table", "lost", "lost", 0, "CREATE VIRTUAL TABLE lost USING rtree(a)"),
    ("table", "lost", "lost", 0, "CREATE VIRTUAL TABLE lost USING csv(filename='/etc/passwd')"),
    ("table", "lost", "lost", 0, "CREATE VIRTUAL TABLE lost USING dbstat"),
    ("table", "lost", "lost", 2, f"CREATE TABLE lost ({', '.join(f'c{i}' for i in range(2001))})"),
    ("table", "lost", "lost", 2, f"CREATE TABLE lost (a DEFAULT ({'(' * 1001}1{')' * 1001}))"),
)
# Statements that make odd but sound tables.
_ODD_SQL = (
    "CREATE TABLE odd (name TEXT COLLATE LOCALIZED, n)",
    "CREATE TABLE odd (name TEXT COLLATE LOCALIZED PRIMARY KEY, n) WITHOUT ROWID",
    "CREATE TABLE odd (name TEXT COLLATE LOCALIZED UNIQUE, n)",
    'CREATE TABLE "a""b`c]d" ("x""y`z]" TEXT, "" TEXT, "select" INT, " " INT)',
    "CREATE TABLE 'új tábla 表' ('größe\n' TEXT, 'a;--b' TEXT, '\t' INT)",
    "CREATE TABLE odd (a, b AS (unknown(a)), c AS (a || b) STORED)",
    f"CREATE TABLE odd ({', '.join(f'c{i} INT' for i in range(1500))})",
    f"CREATE TABLE odd (a {'VERYLONGTYPE ' * 2000})",
    "CREATE TABLE odd (a INT REFERENCES odd (a), b REFERENCES gone (x), c REFERENCES owners, PRIMARY KEY (a, b, c))",
    "CREATE TABLE odd (a /* never closed",
    f"CREATE TABLE odd (a, -- {'x' * 100_000}\n b)",
    "CREATE VIEW odd AS SELECT 1, 1, 1, NULL, x'00'",
    "CREATE VIEW odd AS SELECT * FROM dogs, owners, dogs d, owners o, dogs e, owners p",
    "CREATE TABLE sqlite AS SELECT 1 AS a",
)
_CELLS = (
    "CAST(x'ff00fe' AS TEXT)", "CAST(x'ffff' AS TEXT)", "CAST(x'eda080' AS TEXT)", "'a' || char(0) || 'b'",
    "printf('%.500000c', 'y')", "zeroblob(300000)", "char(0x1b) || '[2J'", "char(0x202e) || 'x'", "9e999", "-9e999",
    "9223372036854775807", "NULL", "''", "CAST(x'' AS TEXT)", "char(10, 13, 9)", "0.1 + 0.2",
)  # fmt: skip

Damage = Callable[[random.Random, Path], None]


def make_database(path: Path) -> Path:
    """The sound database that the others are mutations of: 60 rows a table in pages of PAGE bytes."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("CREATE TEMP TABLE generate_numbers (value)")
        connection.executemany("INSERT INTO generate_numbers VALUES (?)", [(i,) for i in range(1, 61)])
        connection.executescript(_SCRIPT)
    return path


def damaged_databases(folder: Path, count: int, first: int = 0) -> Iterator[tuple[str, Path]]:
    """Yields (kinds of damage, path) of databases at <folder>/<seed>/<seed>.sqlite; each is deleted after its turn."""
    sound = make_database(folder / "sound.sqlite")
    for seed in range(first, first + count):
        path = folder / str(seed) / f"{seed}.sqlite"
        path.parent.mkdir()
        shutil.copy(sound, path)
        yield damage(path, seed), path
        shutil.rmtree(path.parent)


def damage(path: Path, seed: int) -> str:
    """Changes the database that `make_database` wrote, and returns how; each of KINDS has its turn."""
    rng = random.Random(seed)
    kind = list(KINDS)[seed % len(KINDS)]
    KINDS[kind](rng, path)
    if rng.random() < 0.2:
        other = rng.choice(("bytes", "schema bytes", "truncated", "header", "pages", "log", "descriptions"))
        with suppress(sqlite3.Error, UnicodeDecodeError):  # from a log's update of a database that is damaged already
            KINDS[other](rng, path)
        return f"{kind}, {other}"
    return kind


def _flip(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    for _ in range(rng.choice((1, 3, 10, 100))):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    path.write_bytes(data)


def _flip_schema(rng: random.Random, path: Path) -> None:
    """Changes bytes of the header's page, where the schema's tree begins, and of the texts of CREATE."""
    data = bytearray(path.read_bytes().ljust(2 * _HEADER, b"\0"))
    start = data.find(b"CREATE", rng.randrange(len(data) // 4)) if rng.random() < 0.5 else _HEADER
    for _ in range(rng.choice((1, 2, 5, 20))):
        data[min(max(start, 0) + rng.randrange(100), len(data) - 1)] = rng.randrange(256)
    path.write_bytes(data)


def _truncate(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    size = rng.choice((0, 1, 15, 16, 99, 100, 511, PAGE * rng.randrange(9), rng.randrange(len(data) + 1)))
    path.write_bytes(data[:size])


def _change_header(rng: random.Random, path: Path) -> None:
    """Sets one or two of the fields that a file begins with: page size, versions, reserved bytes, encoding."""
    data = bytearray(path.read_bytes().ljust(_HEADER, b"\0"))
    fields = [(16, 2), *((i, 1) for i in range(18, 24)), *((i, 4) for i in range(24, 100, 4)), (0, 16)]
    for start, size in rng.sample(fields, rng.choice((1, 2))):
        value = rng.choice((0, 1, 2, 3, 4, 5, 255, 256**size - 1, rng.randrange(256**size)))
        data[start : start + size] = (value % 256**size).to_bytes(size, "big")
    path.write_bytes(data)


def _change_pages(rng: random.Random, path: Path) -> None:
    """Zeroes, fills, copies or swaps pages, or adds some at the end."""
    data = path.read_bytes()
    pages = [data[i : i + PAGE] for i in range(0, len(data), PAGE)] or [b""]
    for _ in range(rng.choice((1, 3, 10))):
        one, other = rng.randrange(len(pages)), rng.randrange(len(pages))
        what = rng.randrange(5)
        if what == 0:
            pages[one], pages[other] = pages[other], pages[one]
        else:
            pages[one] = (b"", bytes(PAGE), b"\xff" * PAGE, pages[other], rng.randbytes(PAGE))[what]
    path.write_bytes(b"".join(pages) + rng.randbytes(rng.choice((0, 0, 1, PAGE))))


def _point_pages_at_pages(rng: random.Random, path: Path) -> None:
    """Interior pages whose children are one another or themselves: a scan may be exponentially long."""
    data = bytearray(path.read_bytes())
    count = len(data) // PAGE
    interior = [page for page in range(1, count) if data[page * PAGE] in (2, 5)]
    depth, cells = rng.choice((1, 5, 18)), rng.choice((2, 20, 60))
    chain = [rng.choice(interior), *range(count, count + depth)]
    leaf = next((page for page in range(1, count) if data[page * PAGE] == 13), 1)
    data += bytes(PAGE * depth)
    for page, child in zip(chain, [*chain[1:], rng.choice((chain[-1], leaf, leaf))], strict=True):
        data[page * PAGE : (page + 1) * PAGE] = _interior_page(child + 1, cells)
    data[28:32] = (len(data) // PAGE).to_bytes(4, "big")
    path.write_bytes(data)


def _interior_page(child: int, cells: int) -> bytes:
    """An interior page of a table's tree; all of its cells have the child page `child`, counted from 1."""
    start = PAGE - 5 * cells
    pointers = b"".join((start + 5 * i).to_bytes(2, "big") for i in range(cells))
    header = b"\x05\0\0" + cells.to_bytes(2, "big") + start.to_bytes(2, "big") + b"\0" + child.to_bytes(4, "big")
    body = b"".join(child.to_bytes(4, "big") + bytes([min(i, 127)]) for i in range(cells))
    return (header + pointers).ljust(start, b"\0") + body


def _add_entry(rng: random.Random, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        for entry in rng.sample(_ENTRIES, rng.choice((1, 1, 3))):
            place = rng.choice(("INSERT", "INSERT", "REPLACE"))
            connection.execute(f"{place} INTO sqlite_master VALUES (?, ?, ?, ?, ?)", entry)
        connection.commit()


def _change_entry(rng: random.Random, path: Path) -> None:
    """Changes one field of the entry of one table, index or view."""
    column = rng.choice(("type", "name", "tbl_name", "rootpage", "sql"))
    value = rng.choice([entry[("type", "name", "tbl_name", "rootpage", "sql").index(column)] for entry in _ENTRIES])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        row = rng.choice(connection.execute("SELECT rowid FROM sqlite_master").fetchall())
        connection.execute(f"UPDATE sqlite_master SET {column} = ? WHERE rowid = ?", (value, *row))
        connection.commit()


def _damage_entry_text(rng: random.Random, path: Path) -> None:
    """Replaces part of the text of one entry by bytes that are no UTF-8, NULs or other words."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        rows = connection.execute("SELECT rowid, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        rowid, sql = rng.choice(rows)
        start = rng.randrange(len(sql))
        part = rng.choice((b"\xff", b"\0", b"\xed\xa0\x80", b"'", b'"', b"(", b")", b"/*", b" SELECT ", b"\xf0\x9f"))
        text = sql[:start].encode() + part + sql[start + rng.choice((0, 1, 5)) :].encode()
        column = rng.choice(("sql", "sql", "name"))
        connection.execute(f"UPDATE sqlite_master SET {column} = CAST(? AS TEXT) WHERE rowid = ?", (text, rowid))
        connection.commit()


def _add_odd_tables(rng: random.Random, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.create_collation("LOCALIZED", lambda a, b: (a > b) - (a < b))
        connection.create_function("unknown", 1, lambda value: value, deterministic=True)
        for sql in rng.sample(_ODD_SQL, 2):
            with suppress(sqlite3.Error):
                connection.execute(sql)
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()[-2:]:
            with suppress(sqlite3.Error):
                connection.execute('INSERT INTO "{}" DEFAULT VALUES'.format(name.replace('"', '""')))
        connection.commit()


def _add_view_bomb(rng: random.Random, path: Path) -> None:
    """Views of views: each doubles the number of tables, or of rows, or the last one is the first again."""
    with closing(sqlite3.connect(path)) as connection:
        count = rng.choice((3, 12, 16))
        for i in range(count):
            source = f"v{i - 1}" if i else "dogs"
            connection.execute(f"CREATE VIEW v{i} AS SELECT x.age FROM {source} x, {source} y")
        if rng.random() < 0.5:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                f"UPDATE sqlite_master SET sql = 'CREATE VIEW v0 AS SELECT age FROM v{count - 1}' WHERE name = 'v0'"
            )
        connection.commit()


def _add_odd_cells(rng: random.Random, path: Path) -> None:
    if rng.random() < 0.3:
        path.unlink()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA encoding = 'UTF-16{rng.choice(('le', 'be'))}'")
            connection.executescript("CREATE TABLE owners (tag INTEGER PRIMARY KEY, city TEXT, 'full name' TEXT)")
    with closing(sqlite3.connect(path)) as connection:
        for i in range(5):
            city, name = rng.choices(_CELLS, k=2)
            connection.execute(f"INSERT OR IGNORE INTO owners VALUES ({2000 + i}, {city}, {name})")
        connection.commit()


def _add_log(rng: random.Random, path: Path) -> None:
    """A WAL or journal: of random bytes, cut, or with changed bytes."""
    copy = path.with_name("logged")
    copy.write_bytes(path.read_bytes())
    suffix = rng.choice(("-wal", "-journal"))
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {'WAL' if suffix == '-wal' else 'PERSIST'}")
        connection.execute("UPDATE dogs SET age = age + 1")
        log = bytearray(copy.with_name(f"logged{suffix}").read_bytes())
        path.write_bytes(copy.read_bytes())
    if suffix == "-journal":
        log[:8] = bytes.fromhex("d9d505f920a163d7")
    for _ in range(rng.choice((0, 1, 50))):
        log[rng.randrange(len(log))] = rng.randrange(256)
    path.with_name(path.name + suffix).write_bytes(log[: rng.choice((len(log), rng.randrange(len(log)), 40))])
    for part in ("logged", "logged-wal", "logged-shm", "logged-journal"):
        path.with_name(part).unlink(missing_ok=True)


def _add_descriptions(rng: random.Random, path: Path) -> None:
    """BIRD's descriptions of columns: a folder for a file, huge fields, bytes that are not UTF-8, no header."""
    folder = path.parent / "database_description"
    (folder / "tags.csv").mkdir(parents=True, exist_ok=True)
    header = b"original_column_name,column_name,column_description\n"
    line = rng.choice(
        (b"age,,years\n", b"age,\xff\0,\xfe\n", b'age,"' + b"x" * 200_000 + b'",y\n', b'age,"never closed\n')
    )
    content = (
        rng.choice((header, b"", b"\xef\xbb\xbf" + header, b"a,b,c\n")) + line + b"color,,of the coat,more,and more\n"
    )
    (folder / "dogs.csv").write_bytes(rng.choice((content, content.decode("latin-1").encode("utf-16"))))


def _replace_file(rng: random.Random, path: Path) -> None:
    lfs = b"version https://git-lfs.github.com/spec/v1\n"
    start = rng.choice((b"", b"SQLite format 3\0", b"<html>", lfs, b"PK\3\4", b"\xff\xfe"))
    path.write_bytes(start + rng.randbytes(rng.choice((0, 10, 84, 100, 512, 5000))))


KINDS: dict[str, Damage] = {
    "bytes": _flip,
    "schema bytes": _flip_schema,
    "truncated": _truncate,
    "header": _change_header,
    "pages": _change_pages,
    "page loop": _point_pages_at_pages,
    "entry added": _add_entry,
    "entry changed": _change_entry,
    "entry text": _damage_entry_text,
    "odd tables": _add_odd_tables,
    "views": _add_view_bomb,
    "cells": _add_odd_cells,
    "log": _add_log,
    "descriptions": _add_descriptions,
    "other file": _replace_file,
}
