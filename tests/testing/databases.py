"""Two small databases: pets, for all tests; a shop, with the faults that lint and check look for."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_PETS = """
CREATE TABLE owners (tag INTEGER PRIMARY KEY, city TEXT /* where they live */, "full name" TEXT);
CREATE TABLE dogs (code INTEGER PRIMARY KEY, color TEXT, age INTEGER, -- in years
    keeper INTEGER REFERENCES owners (tag));
INSERT INTO owners VALUES (1, 'rome', 'Ada Byron'), (2, 'oslo', 'Max Born'), (3, 'rome', 'Lise Meitner');
INSERT INTO dogs VALUES (10, 'red', 3, 1), (11, 'red', 5, 2), (12, 'black', 5, 3), (13, 'white', 8, 3);
"""

# Tables with ties, numbers stored as text, NULLs, and one table without rows.
_SHOP = """
CREATE TABLE shop (id INTEGER PRIMARY KEY, name TEXT, city TEXT, seats INTEGER, rating REAL);
CREATE TABLE clerk (id INTEGER PRIMARY KEY, shop_id INTEGER REFERENCES shop (id), name TEXT, wage INTEGER,
    weeks TEXT, boss INTEGER);
CREATE TABLE sale (id INTEGER PRIMARY KEY, clerk_id INTEGER REFERENCES clerk (id), amount INTEGER, day TEXT);
CREATE TABLE award (id INTEGER PRIMARY KEY, title TEXT);
INSERT INTO shop VALUES (1, 'Ada', 'Rome', 10, 4.5), (2, 'Bo', 'Oslo', 20, 4.0), (3, 'Cy', 'Rome', 20, 3.5);
INSERT INTO clerk VALUES (1, 1, 'Kim', 7, '9', NULL), (2, 1, 'Lou', 8, '10', 1), (3, 2, 'Max', 8, '100', 1),
    (4, 3, 'Noa', 5, '20', 3);
INSERT INTO sale VALUES (1, 1, 5, '2024-01-01'), (2, 1, 6, '2024-01-02'), (3, 2, 7, '2024-01-02'), (4, 3, 1, NULL),
    (5, 3, 2, '2024-03-01');
"""


def make_pets(folder: Path) -> Path:
    """Writes <folder>/pets/pets.sqlite, a database of dogs and their owners, and returns its path."""
    return _make(folder / "pets" / "pets.sqlite", _PETS)


def make_shop(folder: Path) -> Path:
    """Writes <folder>/shop/shop.sqlite and returns its path."""
    return _make(folder / "shop" / "shop.sqlite", _SHOP)


def _make(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def make_broken_parts(path: Path) -> Path:
    """A database with a table of an extension's module, a column of its collation, a view of no table."""
    with closing(sqlite3.connect(path)) as connection:
        connection.create_collation("LOCALIZED", lambda a, b: (a > b) - (a < b))
        connection.executescript(
            """CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO city VALUES (1, 'Rome');
            CREATE TABLE street (id INTEGER PRIMARY KEY, name TEXT COLLATE LOCALIZED);
            INSERT INTO street VALUES (1, 'Via Appia'); CREATE VIEW lost AS SELECT * FROM gone;
            PRAGMA writable_schema = ON;
            INSERT INTO sqlite_master VALUES ('table', 'SpatialIndex', 'SpatialIndex', 0,
                'CREATE VIRTUAL TABLE SpatialIndex USING VirtualSpatialIndex()')"""
        )
    return path


def make_malformed(path: Path, text: str | bytes = "CREATE TABLE street (id INTEGER") -> Path:
    """A database of the tables city, street and shop, of which the schema's entry for street is malformed.

    text: the statement of that entry; bytes need not be UTF-8.
    """
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO city VALUES (1, 'Rome'), (2, 'Oslo');
            CREATE TABLE street (id INTEGER PRIMARY KEY, name TEXT); CREATE INDEX by_name ON street (name);
            CREATE TABLE shop (id INTEGER PRIMARY KEY, city INT REFERENCES city (id), street REFERENCES street (id));
            INSERT INTO shop VALUES (1, 2, 3); PRAGMA writable_schema = ON"""
        )
        connection.execute("UPDATE sqlite_master SET sql = CAST(? AS TEXT) WHERE name = 'street'", (text,))
        connection.commit()
    return path
