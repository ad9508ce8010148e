from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from sqlr1_jax.data import example_rows
from sqlr1_jax.sql.database import DatabaseError
from testing.databases import make_broken_parts, make_malformed

PETS = (
    """CREATE TABLE owners (tag INTEGER PRIMARY KEY, city TEXT /* where they live */, "full name" TEXT) \n"""
    " /* \n 3 example rows: \n SELECT * FROM owners LIMIT 3; \n"
    " tag city    full name \n"
    "  1 rome    Ada Byron \n"
    "  2 oslo     Max Born \n"
    "  3 rome Lise Meitner  \n */"
    "\n\n"
    "CREATE TABLE dogs (code INTEGER PRIMARY KEY, color TEXT, age INTEGER, -- in years\n"
    "    keeper INTEGER REFERENCES owners (tag)) \n"
    " /* \n 3 example rows: \n SELECT * FROM dogs LIMIT 3; \n"
    " code color age keeper \n"
    "  10   red   3      1 \n"
    "  11   red   5      2 \n"
    "  12 black   5      3  \n */"
)


def test_tables_are_shown_with_three_rows(pets: Path) -> None:
    assert example_rows.render(pets) == PETS


def rendered(folder: Path, sql: str) -> str:
    path = folder / "test.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)
    return example_rows.render(path)


def test_cells_are_short_and_on_one_line(tmp_path: Path) -> None:
    values = f"(NULL), ('a\nb'), ('{'z' * 41}')"
    text = rendered(tmp_path, f"CREATE TABLE t (v); INSERT INTO t VALUES {values}")
    assert [line.strip() for line in text.splitlines()[4:8]] == ["v", "None", "a b", "z" * 40 + "…"]


def test_blobs_are_shown_by_their_first_bytes(tmp_path: Path) -> None:
    text = rendered(tmp_path, "CREATE TABLE t (v); INSERT INTO t VALUES (x'00ff'), (x'0102030405'), (x'')")
    assert [line.strip() for line in text.splitlines()[5:8]] == ["x'00ff'", "x'01020304…'", "x''"]


def test_names_are_quoted_and_empty_tables_have_a_header(tmp_path: Path) -> None:
    text = rendered(tmp_path, "CREATE TABLE 'the order' (id INTEGER PRIMARY KEY AUTOINCREMENT, \"group\" TEXT)")
    assert text == (
        "CREATE TABLE 'the order' (id INTEGER PRIMARY KEY AUTOINCREMENT, \"group\" TEXT) \n"
        " /* \n 3 example rows: \n SELECT * FROM `the order` LIMIT 3; \n id group  \n */"
    )


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("not a database, though long enough to be taken for one by its size" * 20)
    with pytest.raises(DatabaseError, match=r"text\.sqlite"):
        example_rows.render(tmp_path / "text.sqlite")


def test_every_real_database_can_be_shown(shared_data: Path) -> None:
    paths = sorted((shared_data / "spider_train" / "database").glob("*/*.sqlite"))
    assert len(paths) > 130
    for path in paths:
        text = example_rows.render(path)
        assert text.count(" example rows: ") == text.count("SELECT * FROM ") > 0, path


def test_views_are_shown_without_rows_and_unreadable_tables_are_left_out(tmp_path: Path) -> None:
    path = make_broken_parts(tmp_path / "parts.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE VIRTUAL TABLE book USING fts5(title); CREATE VIEW v AS SELECT name FROM city")
    text = example_rows.render(path)
    assert text.endswith("*/\n\nCREATE VIEW v AS SELECT name FROM city")
    assert "Via Appia" in text
    assert "CREATE VIRTUAL TABLE book USING fts5(title)" in text
    assert "SpatialIndex" not in text
    assert "book_data" not in text


def test_a_malformed_entry_is_left_out_and_unreadable_rows_are_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_malformed(tmp_path / "parts.sqlite")
    text = example_rows.render(path)
    assert [line for line in text.splitlines() if line.startswith("CREATE")] == [
        "CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT) ",
        "CREATE TABLE shop (id INTEGER PRIMARY KEY, city INT REFERENCES city (id), street REFERENCES street (id)) ",
    ]
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096  # the page of the rows of shop
    path.write_bytes(data)
    assert example_rows.render(path).endswith("street REFERENCES street (id))")
    assert "shop is shown without rows, since they cannot be read (database disk image is malf" in caplog.messages[-1]


def test_views_that_double_their_tables_take_no_longer_than_reading_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "views.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE v0 (a)")
        for i in range(15):
            connection.execute(f"CREATE VIEW v{i + 1} AS SELECT x.a FROM v{i} x, v{i} y")
    start = time.process_time()
    assert example_rows.render(path).count("CREATE VIEW") == 15
    assert time.process_time() - start < 5  # 1 s; a query on each view takes 10 s
