"""A small shop for tests of `check`: tables with ties, numbers kept as text, NULLs, and one table without rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

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


def make(folder: Path) -> Path:
    """Writes <folder>/shop/shop.sqlite."""
    path = folder / "shop" / "shop.sqlite"
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(_SHOP)
    return path
