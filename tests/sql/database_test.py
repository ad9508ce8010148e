from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sqlr1_jax.sql import backends
from sqlr1_jax.sql.database import DatabaseError, content_hash, limit_steps, open_readonly
from testing.databases import make_malformed


def test_reads_rows_and_leaves_no_trace(pets: Path) -> None:
    before = content_hash(pets)
    with closing(open_readonly(pets)) as connection:
        assert connection.execute("SELECT count(*) FROM dogs").fetchall() == [(4,)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM dogs")
    assert content_hash(pets) == before
    assert [path.name for path in pets.parent.iterdir()] == ["pets.sqlite"]


@pytest.mark.parametrize("name", ["plain.sqlite", "a?mode=rwc.sqlite", "100%25 #1.sqlite", "ünïcode 'x'.sqlite"])
def test_any_file_name_is_just_a_name(tmp_path: Path, name: str) -> None:
    with closing(sqlite3.connect(tmp_path / name)) as connection:
        connection.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (7)")
    with closing(open_readonly(tmp_path / name)) as connection:
        assert connection.execute("SELECT a FROM t").fetchone() == (7,)


def test_missing_broken_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite").write_text("no database at all, but long enough to have a header" * 20)
    (tmp_path / "empty.sqlite").touch()
    kinds = {
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "mac": b"\0\5\x16\7" + b"\0" * 4092,
        "zip": b"PK\3\4" + b"x" * 600,
        "gzip": b"\x1f\x8b" + b"x" * 600,
        "html": b"<!DOCTYPE html>" + b"x" * 600,
        "duck": b"x" * 8 + b"DUCK" + b"x" * 600,
        "encrypted": bytes(range(256)) * 32,
        "cut": b"SQLite format 3\0" + b"x" * 20,
    }
    for name, content in kinds.items():
        (tmp_path / f"{name}.sqlite").write_bytes(content)
    expected = {
        "absent": "does not exist: check the folder",
        "broken": "not a database",
        "empty": "0 bytes",
        "lfs": "is a Git LFS pointer, not the database: run `git lfs pull`",
        "mac": "is macOS's metadata of another file",
        "zip": "is a zip archive: unpack it",
        "gzip": "is a gzip archive: unpack it",
        "html": "is a web page",
        "duck": "is a database of DuckDB",
        "encrypted": "is no SQLite database, or it is encrypted",
        "cut": "cannot be read as a SQLite database",
    }
    for name, message in expected.items():
        with pytest.raises(DatabaseError, match=message) as caught:
            open_readonly(tmp_path / f"{name}.sqlite")
        assert str(tmp_path / f"{name}.sqlite") in str(caught.value)
    assert not (tmp_path / "absent.sqlite").exists()
    with pytest.raises(DatabaseError, match="does not exist"):
        open_readonly(tmp_path)
    with pytest.raises(DatabaseError, match="NUL"):
        open_readonly("a\0b")


def test_content_hash_follows_the_bytes(tmp_path: Path) -> None:
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b") != content_hash(tmp_path / "c")
    with pytest.raises(DatabaseError, match="does not exist"):
        content_hash(tmp_path / "d")


@pytest.mark.parametrize("backend", backends.NAMES)
@pytest.mark.parametrize("text", ["CREATE TABLE street (id INTEGER", b"CREATE TABLE street (\xff\xfe", "", "17"])
def test_a_malformed_entry_of_the_schema_leaves_the_rest_readable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, backend: str, text: str | bytes
) -> None:
    path = make_malformed(tmp_path / "parts.sqlite", text)
    for _ in range(2):
        with closing(open_readonly(path, backend)) as connection:
            assert connection.execute("SELECT name FROM city JOIN shop ON shop.city = city.id").fetchall() == [
                ("Oslo",)
            ]
            with pytest.raises(sqlite3.OperationalError, match="no such table: street"):
                connection.execute("SELECT * FROM street")
            with pytest.raises(sqlite3.OperationalError, match=r"readonly|may not be modified"):
                connection.execute("DELETE FROM sqlite_master")
    (message,) = caplog.messages
    assert message.startswith(f"{path}: malformed database schema (street)")
    assert message.endswith("Tables that cannot be read: street. Restore the file.")
    with pytest.raises(DatabaseError, match=r"parts\.sqlite cannot be read .*\(malformed database schema \(street\)"):
        open_readonly(path, backend, whole=True)


@pytest.mark.parametrize("backend", backends.NAMES)
def test_a_database_without_a_sound_table_is_an_error(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "bad.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE t (a); PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = CAST(x'4352454154450aff' AS TEXT)")
        connection.commit()
    with pytest.raises(DatabaseError, match=r"bad\.sqlite cannot be read .*\(malformed database schema \(t\)"):
        open_readonly(path, backend)


@pytest.mark.parametrize("backend", backends.NAMES)
def test_statements_end_after_the_steps_that_reading_the_file_takes(pets: Path, backend: str) -> None:
    with closing(open_readonly(pets, backend)) as connection:
        limit_steps(connection, pets.stat().st_size)
        assert connection.execute("SELECT count(*) FROM dogs a, dogs b WHERE a.age > b.age").fetchall() == [(5,)]
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
            ).fetchall()
