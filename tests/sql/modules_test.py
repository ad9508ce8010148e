from __future__ import annotations

import sqlite3

import pytest

from sqlr1_jax.sql import modules


@pytest.fixture
def connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


@pytest.mark.parametrize(
    ("sql", "module", "shadows"),
    [
        ("CREATE VIRTUAL TABLE Notes USING fts5(body)", "fts5", {"data", "idx", "content", "docsize", "config"}),
        ("create virtual table Notes using FTS4(body)", "fts4", {"content", "segments", "segdir", "docsize", "stat"}),
        ("CREATE VIRTUAL TABLE Notes USING rtree(id, low, high)", "rtree", {"node", "rowid", "parent"}),
    ],
)
def test_a_virtual_table_is_known_with_the_tables_that_sqlite_makes_for_it(
    connection: sqlite3.Connection, sql: str, module: str, shadows: set[str]
) -> None:
    connection.execute("CREATE TABLE plain (x)")
    connection.execute(sql)
    found = modules.virtual_tables(connection)
    assert found == {"Notes": module}
    assert modules.shadow_tables(found) == {f"notes_{suffix}" for suffix in shadows}
    tables = {name.lower() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables - {"plain", "notes"} <= modules.shadow_tables(found)


@pytest.mark.parametrize("name", ['"odd ""name"', "[odd name]", "`odd name`", "'odd name'"])
def test_a_quoted_name_does_not_hide_the_module(connection: sqlite3.Connection, name: str) -> None:
    connection.execute(f"CREATE VIRTUAL TABLE {name} USING fts5(body)")
    assert list(modules.virtual_tables(connection).values()) == ["fts5"]


def test_a_module_that_is_not_sqlites_own_has_no_known_shadow_tables() -> None:
    assert modules.shadow_tables({"places": "spatialite"}) == frozenset()


def test_functions_that_write_or_take_pointers_are_not_among_the_harmless_ones() -> None:
    assert {"bm25", "snippet", "geopoly_area"} <= modules.FUNCTIONS
    assert not {"optimize", "fts3_tokenizer", "rtreecheck", "load_extension"} & modules.FUNCTIONS
