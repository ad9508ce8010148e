from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from sqlr1_jax.data import example_rows, retrieval, schema
from sqlr1_jax.data.schema import ForeignKey
from sqlr1_jax.sql.database import DatabaseError
from testing.damage import few_or_many
from testing.damaged_databases import damaged_databases
from testing.databases import make_broken_parts, make_malformed

SECONDS = 30.0  # for one database on a busy machine; most take 10 ms


def make_database(folder: Path, sql: str) -> Path:
    path = folder / "test.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)
    return path


COMPACT = """\
- owners: tag, city, `full name`
- dogs: code, color, age, keeper
- join dogs, owners on keeper = tag"""

QUALIFIED = """\
- owners tag, owners city, owners `full name`
- dogs code, dogs color, dogs age, dogs keeper
- join dogs, owners on keeper = tag"""

FIXED = """\
CREATE TABLE owners (
    tag INTEGER, -- example: [1, 2]
    city TEXT, -- where they live, example: ['rome', 'oslo']
    `full name` TEXT, -- example: ['Ada Byron', 'Max Born']
    PRIMARY KEY (tag)
);

CREATE TABLE dogs (
    code INTEGER, -- example: [10, 11]
    color TEXT, -- example: ['red', 'black']
    age INTEGER, -- in years, example: [3, 5]
    keeper INTEGER, -- example: [1, 2]
    PRIMARY KEY (code),
    FOREIGN KEY (keeper) REFERENCES owners (tag)
);"""


def test_all_formats_are_exact(pets: Path) -> None:
    read = schema.read_schema(pets)
    assert schema.render(read, "compact") == COMPACT
    assert schema.render(read, "qualified") == QUALIFIED
    assert schema.render(read, "fixed") == FIXED
    shown = {("owners", "full name"): ["Lise Meitner", "Max Born"]}
    example = "example: ['Lise Meitner', 'Max Born', 'Ada Byron']"
    assert schema.render(read, "retrieved", shown) == FIXED.replace("example: ['Ada Byron', 'Max Born']", example)
    assert schema.render(read, "fixed", shown) == FIXED
    with pytest.raises(ValueError, match="not 'short'"):
        schema.render(read, "short")


def test_formats_without_values_need_no_sampled_values(pets: Path) -> None:
    read = schema.read_schema(pets, sampled=False)
    assert [schema.render(read, name) for name in schema.FORMATS_WITHOUT_VALUES] == [QUALIFIED, COMPACT]
    assert all(column.values == () for table in read.tables for column in table.columns)


def test_a_join_column_has_its_table_only_if_two_tables_have_it(tmp_path: Path) -> None:
    path = make_database(
        tmp_path,
        """CREATE TABLE a (id INTEGER PRIMARY KEY, x); CREATE TABLE b (ID INTEGER PRIMARY KEY, a_id REFERENCES a (id));
        CREATE TABLE c (x1 REFERENCES b (id), "a id" REFERENCES a (x))""",
    )
    lines = schema.render(schema.read_schema(path), "compact").splitlines()
    assert lines[3:] == ["- join b, a on a_id = a.id", "- join c, b on x1 = b.ID", "- join c, a on `a id` = x"]


def test_foreign_keys_are_spelled_as_in_the_tables(tmp_path: Path) -> None:
    path = make_database(
        tmp_path,
        """CREATE TABLE Parent (One, TWO, PRIMARY KEY (TWO, One));
        CREATE TABLE child (p, q, r REFERENCES gone (id), s REFERENCES parent (nowhere),
            FOREIGN KEY (P, Q) REFERENCES PARENT, FOREIGN KEY (q, p) REFERENCES parent (one, two));""",
    )
    assert schema.read_schema(path).foreign_keys == (
        ForeignKey("child", ("p", "q"), "Parent", ("TWO", "One")),
        ForeignKey("child", ("q", "p"), "Parent", ("One", "TWO")),
    )


def test_composite_primary_keys_keep_their_order(tmp_path: Path) -> None:
    path = make_database(tmp_path, "CREATE TABLE t (a, b, c, PRIMARY KEY (c, a))")
    assert "PRIMARY KEY (c, a)" in schema.render(schema.read_schema(path), "fixed")


def test_sampled_values_are_short_distinct_and_in_row_order(tmp_path: Path) -> None:
    path = make_database(
        tmp_path,
        f"""CREATE TABLE t (v); CREATE INDEX i ON t (v);
        INSERT INTO t VALUES (NULL), (x'00ff'), ('{"z" * 41}'), (''), ('two
lines'), ('it''s'), ('it''s'), (2.5), ('b')""",
    )
    read = schema.read_schema(path)
    assert read.tables[0].columns[0].values == ("it's", 2.5)
    assert "example: ['it''s', 2.5]" in schema.render(read, "fixed")


def test_at_most_six_values_are_shown_and_none_twice(tmp_path: Path) -> None:
    path = make_database(tmp_path, "CREATE TABLE t (v TEXT); INSERT INTO t VALUES ('a'), ('b')")
    shown = {("t", "v"): ["b", *"cdefgh"]}
    text = schema.render(schema.read_schema(path), "retrieved", shown)
    assert "example: ['b', 'c', 'd', 'e', 'f', 'g']" in text
    shown = {("t", "v"): ["b", "c"]}
    assert "example: ['b', 'c', 'a']" in schema.render(schema.read_schema(path), "retrieved", shown)


def test_quote_gives_names_that_sqlite_accepts() -> None:
    keywords = _keywords()
    assert len(keywords) > 140
    with closing(sqlite3.connect(":memory:")) as connection:
        for word in [*keywords, "a", "A_1", "1a", "a b", "a-b", "a`b", "größe", "a.b"]:
            assert _works(connection, schema.quote(word)), word
    assert all(schema.quote(word) == word for word in ("a", "A_1", "key", "Rank", "year", "match", "date"))


def _works(connection: sqlite3.Connection, name: str) -> bool:
    """Whether SQLite accepts the name of a table and of a column, in CREATE, INSERT and SELECT."""
    try:
        connection.execute(f"CREATE TABLE {name} ({name} TEXT, other TEXT)")
    except sqlite3.Error:
        return False
    try:
        connection.execute(f"INSERT INTO {name} VALUES ('value', 'x')")
        rows = connection.execute(f"SELECT {name} FROM {name} WHERE {name} = 'value' GROUP BY {name} ORDER BY {name}")
        return rows.fetchall() == [("value",)]
    except sqlite3.Error:
        return False
    finally:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            connection.execute('DROP TABLE "' + table.replace('"', '""') + '"')


def _keywords() -> list[str]:
    """The keywords that SQLite's documentation lists."""
    words = """ABORT ACTION ADD AFTER ALL ALTER ALWAYS ANALYZE AND AS ASC ATTACH AUTOINCREMENT BEFORE BEGIN BETWEEN BY
    CASCADE CASE CAST CHECK COLLATE COLUMN COMMIT CONFLICT CONSTRAINT CREATE CROSS CURRENT CURRENT_DATE CURRENT_TIME
    CURRENT_TIMESTAMP DATABASE DEFAULT DEFERRABLE DEFERRED DELETE DESC DETACH DISTINCT DO DROP EACH ELSE END ESCAPE
    EXCEPT EXCLUDE EXCLUSIVE EXISTS EXPLAIN FAIL FILTER FIRST FOLLOWING FOR FOREIGN FROM FULL GENERATED GLOB GROUP
    GROUPS HAVING IF IGNORE IMMEDIATE IN INDEX INDEXED INITIALLY INNER INSERT INSTEAD INTERSECT INTO IS ISNULL JOIN KEY
    LAST LEFT LIKE LIMIT MATCH MATERIALIZED NATURAL NO NOT NOTHING NOTNULL NULL NULLS OF OFFSET ON OR ORDER OTHERS OUTER
    OVER PARTITION PLAN PRAGMA PRECEDING PRIMARY QUERY RAISE RANGE RECURSIVE REFERENCES REGEXP REINDEX RELEASE RENAME
    REPLACE RESTRICT RETURNING RIGHT ROLLBACK ROW ROWS SAVEPOINT SELECT SET TABLE TEMP TEMPORARY THEN TIES TO
    TRANSACTION TRIGGER UNBOUNDED UNION UNIQUE UPDATE USING VACUUM VALUES VIEW VIRTUAL WHEN WHERE WINDOW WITH
    WITHOUT"""
    return words.split()


def test_views_are_shown_and_shadow_tables_are_not(tmp_path: Path) -> None:
    path = make_database(
        tmp_path,
        """CREATE TABLE dogs (code INTEGER PRIMARY KEY, age); CREATE VIEW "old dogs" AS SELECT code AS c, 1 FROM dogs;
        CREATE VIRTUAL TABLE book USING fts5(title, body); INSERT INTO book VALUES ('red car', 'fast');
        CREATE VIRTUAL TABLE page USING fts4(text); CREATE VIRTUAL TABLE box USING rtree(id, low, high);
        CREATE VIEW adults AS SELECT * FROM dogs WHERE age > 2""",
    )
    read = schema.read_schema(path)
    assert [table.name for table in read.tables] == ["dogs", "book", "page", "box"]
    assert [view.name for view in read.views] == ["old dogs", "adults"]
    assert schema.render(read, "compact") == (
        "- dogs: code, age\n- book: title, body\n- page: text\n- box: id, low, high\n"
        "- `old dogs`: c, `1`\n- adults: code, age"
    )
    text = schema.render(read, "fixed")
    assert "CREATE TABLE book ( -- virtual table of fts5\n    title, -- example: ['red car']\n" in text
    assert text.endswith(");\n\n-- view `old dogs` (c, `1`)\n-- view adults (code, age)")


def test_a_part_that_cannot_be_read_is_set_aside_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_broken_parts(tmp_path / "parts.sqlite")
    for _ in range(2):
        read = schema.read_schema(path)
    assert [(table.name, [c.values for c in table.columns]) for table in read.tables] == [
        ("city", [(1,), ("Rome",)]),
        ("street", [(1,), ()]),
    ]
    assert read.views == ()
    messages = sorted(caplog.messages)
    assert len(messages) == 3
    assert "table SpatialIndex is left out of the schema, since it cannot be read (no such module: Virt" in messages[0]
    assert "street is shown without values of name: no such collation sequence: LOCALIZED" in messages[1]
    assert "view lost is left out of the schema" in messages[2]
    assert all(str(path) in message for message in messages)


def test_the_error_names_a_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"gone\.sqlite"):
        schema.read_schema(tmp_path / "gone.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database, though long enough to be taken for one by its size" * 20)
    with pytest.raises(DatabaseError, match=r"text\.sqlite"):
        schema.read_schema(tmp_path / "text.sqlite")


def test_every_real_schema_survives_rendering_and_reading(shared_data: Path, tmp_path: Path) -> None:
    """The fixed format is SQL: SQLite runs it, and the database that it makes has the same tables and keys."""
    paths = sorted((shared_data / "spider_train" / "database").glob("*/*.sqlite"))
    paths += sorted((shared_data / "classic").glob("*.sqlite"))
    assert len(paths) > 130
    for path in paths:
        read = schema.read_schema(path, sampled=False)
        again = schema.read_schema(make_database(tmp_path, schema.render(read, "fixed")), sampled=False)
        (tmp_path / "test.sqlite").unlink()
        assert _columns(again) == _columns(read), path
        assert again.foreign_keys == read.foreign_keys, path


def _columns(read: schema.Schema) -> list[list[tuple[str, int]]]:
    """(name, position in the primary key) of each table's columns."""
    return [[(column.name, column.primary_key) for column in table.columns] for table in read.tables]


def test_a_malformed_entry_is_set_aside_with_the_keys_to_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_malformed(tmp_path / "parts.sqlite")
    for _ in range(2):
        read = schema.read_schema(path)
    assert (
        schema.render(read, "compact")
        == "- city: id, name\n- shop: id, city, street\n- join shop, city on city = city.id"
    )
    assert read.tables[0].columns[1].values == ("Rome", "Oslo")
    assert dict(read.left_out) == {"street": "its entry in the schema is malformed"}
    assert caplog.messages == [
        f"{path}: malformed database schema (street) - incomplete input. Tables that cannot be read: street. "
        "Restore the file."
    ]


@few_or_many
def test_a_damaged_database_is_read_or_named_by_the_error(tmp_path: Path, count: int) -> None:
    """Whatever is damaged: one error of this package, or texts for a prompt, within seconds."""
    num_read = 0
    for damage, path in damaged_databases(tmp_path, count):
        start = time.monotonic()
        try:
            read = schema.read_schema(path)
            texts = [schema.render(read, name) for name in schema.FORMATS] + [example_rows.render(path)]
            values = retrieval.Index(path, read).search("dogs of city5 with name 7")
        except DatabaseError as error:
            assert path.name in str(error), damage
        else:
            num_read += 1
            assert all(isinstance(text, str) for text in texts) and isinstance(values, dict)
        assert time.monotonic() - start < SECONDS, (damage, path)
    assert num_read > 0.6 * count
