from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from sqlr1_jax import config
from sqlr1_jax.data import schema
from sqlr1_jax.synth import databases, words
from sqlr1_jax.synth.databases import Database


def _make(seed: int, reserved: bool = False) -> Database:
    return databases.make(random.Random(seed), words.COMMON, words.RESERVED if reserved else None)


def _names(database: Database) -> list[str]:
    return [name for table in database.tables for name in (table.name, *(c.name for c in table.columns))]


@pytest.mark.parametrize("seed", range(40))
def test_databases_have_the_promised_shape(seed: int) -> None:
    database = _make(seed)
    assert 2 <= len(database.tables) <= 4
    assert len(database.links) == len(database.tables) - 1
    assert len(set(_names(database))) == len(_names(database))
    for table in database.tables:
        assert 3 <= len(table.columns) <= 5
        assert 8 <= len(table.columns[0].values) <= 20
        assert {"key", "text", "number"} <= {column.kind for column in table.columns}


@pytest.mark.parametrize("seed", range(20))
def test_sqlite_finds_keys_unique_and_links_valid(seed: int) -> None:
    connection = databases.build(_make(seed))
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_links_repeat_some_keys_and_leave_some_out() -> None:
    for seed in range(40):
        database = _make(seed)
        link = database.links[0]
        child, parent = database.tables[link.child], database.tables[link.parent]
        used = next(column.values for column in child.columns if column.name == link.column)
        assert len(set(used)) < len(used)
        assert set(used) < set(parent.columns[0].values)


def test_half_of_the_names_come_from_the_reserved_pool() -> None:
    reserved = set(words.names(words.RESERVED))
    for seed in range(40):
        names = _names(_make(seed, reserved=True))
        assert abs(2 * sum(name in reserved for name in names) - len(names)) <= 1
    assert not any(reserved & set(_names(_make(seed))) for seed in range(40))


def test_table_of_finds_the_table_of_a_column() -> None:
    database = _make(3)
    for table in database.tables:
        assert {database.table_of(column.name) for column in table.columns} == {table.name}
    assert database.table_of("total") == ""


def test_a_saved_file_has_the_content_of_the_database_in_memory(tmp_path: Path) -> None:
    database = _make(5)
    connection = databases.build(database)
    path = tmp_path / "one" / "one.sqlite"
    databases.save(connection, path)
    with sqlite3.connect(path) as saved:
        assert list(saved.iterdump()) == list(connection.iterdump())


@pytest.mark.parametrize("seed", range(12))
def test_schema_text_equals_the_schema_in_a_prompt(seed: int, tmp_path: Path) -> None:
    database = _make(seed)
    path = tmp_path / "one.sqlite"
    databases.save(databases.build(database), path)
    assert schema.render(schema.read_schema(path), config.DataConfig().schema) == databases.schema_text(database)
