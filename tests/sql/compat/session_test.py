from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sqlr1_jax.sql import backends
from sqlr1_jax.sql.compat.session import SESSION_FACTORIES
from sqlr1_jax.sql.database import content_hash
from sqlr1_jax.sql.result import Result
from sqlr1_jax.sql.sandbox import Limits, Sandbox

LIMITS = Limits(max_steps=1_000_000, max_rows=1000, max_bytes=100_000, heap_bytes=0)  # 0: none, tests share a process


@pytest.fixture(params=backends.NAMES)
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with closing(Sandbox(LIMITS, request.param)) as box:
        yield box


def run(box: Sandbox, database: Path, sql: str, rule: str = "official_spider") -> Result:
    return box.query(str(database), sql, LIMITS.max_steps, SESSION_FACTORIES[rule])


@pytest.mark.parametrize(
    "sql",
    ["", "-- a comment", ";", "PRAGMA foreign_keys = OFF", "BEGIN", "ATTACH ':memory:' AS other", "SELECT 1 WHERE 0"],
)
def test_what_has_no_rows(box: Sandbox, pets: Path, sql: str) -> None:
    result = run(box, pets, sql)
    assert (result.kind, result.rows) == ("ok", [])


def test_what_has_rows(box: Sandbox, pets: Path) -> None:
    assert run(box, pets, "SELECT count(*) FROM dogs").rows == [(4,)]
    assert [row[1] for row in run(box, pets, "PRAGMA table_info(owners)").rows] == ["tag", "city", "full name"]
    assert run(box, pets, "SELECT typeof(random()), date('now') > '2025-06-01'").rows == [("integer", 1)]
    assert run(box, pets, "EXPLAIN SELECT 1").kind == "ok"


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE dogs", "DELETE FROM dogs RETURNING code", "CREATE TEMP TABLE dogs AS SELECT 1", "VACUUM",
        "PRAGMA query_only = OFF", "PRAGMA hard_heap_limit = 100000", "PRAGMA writable_schema = ON",
        "ATTACH '/tmp/never.sqlite' AS other", "ATTACH '' AS other", "ATTACH ':mem' || 'ory:' AS other",
        "EXPLAIN DELETE FROM dogs", "SELECT load_extension('x')", "SELECT 1; SELECT 2",
    ],
)  # fmt: skip
def test_defect_03_and_13_what_could_write_or_reach_out_is_denied(box: Sandbox, pets: Path, sql: str) -> None:
    before = content_hash(pets)
    assert run(box, pets, sql).kind == "denied"
    assert content_hash(pets) == before
    assert run(box, pets, "SELECT count(*) FROM dogs").rows == [(4,)]


@pytest.mark.parametrize("box", ["sqlite3"], indirect=True)
def test_bytes_that_are_no_text_are_dropped_or_an_error(box: Sandbox, pets: Path) -> None:
    sql = "SELECT CAST(x'FF41' AS TEXT)"
    assert run(box, pets, sql, "official_spider").rows == [("A",)]
    assert run(box, pets, sql, "official_bird").kind == "runtime_error"


def test_a_missing_database_has_no_tables_and_is_not_made(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "empty.sqlite").touch()
    for name in ("missing.sqlite", "empty.sqlite"):
        assert run(box, tmp_path / name, "SELECT 1").rows == [(1,)]
        assert run(box, tmp_path / name, "SELECT 1 FROM dogs").kind == "syntax_error"
    assert [path.name for path in tmp_path.iterdir()] == ["empty.sqlite"]
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be read as the beginning of one" * 20)
    assert run(box, tmp_path / "text.sqlite", "SELECT 1").kind == "runtime_error"


def test_steps_and_rows_are_limited(box: Sandbox, pets: Path) -> None:
    for_ever = "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT "
    assert run(box, pets, f"{for_ever} count(*) FROM t").kind == "timeout"
    assert run(box, pets, f"{for_ever} a FROM t").kind == "too_large"


def test_nothing_lasts_from_one_statement_to_the_next(box: Sandbox, pets: Path) -> None:
    run(box, pets, "BEGIN")
    assert run(box, pets, "COMMIT").kind == "runtime_error"  # there is no transaction
    assert run(box, pets, "PRAGMA foreign_keys = ON").kind == "ok"
    with closing(sqlite3.connect(pets)) as plain:
        default = plain.execute("PRAGMA foreign_keys").fetchall()
    assert run(box, pets, "PRAGMA foreign_keys").rows == default
