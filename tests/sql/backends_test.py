from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.config_checks import CHOICES
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.sql import backends
from sqlr1_jax.sql.executor import Executor

EACH = pytest.mark.parametrize("name", backends.NAMES)


def test_the_config_offers_each() -> None:
    assert CHOICES["execute.backend"] == backends.NAMES


def test_a_version_is_the_backends_own() -> None:
    assert backends.version("sqlite3") == sqlite3.sqlite_version
    with closing(backends.connect("apsw", ":memory:")) as connection:
        assert connection.execute("SELECT sqlite_version()").fetchone() == (backends.version("apsw"),)


@EACH
def test_an_answer_comes_from_the_backend_that_was_asked_for(name: str, pets: Path) -> None:
    with Executor(ExecuteConfig(workers=1, backend=name)) as executor:
        assert executor.run(pets, "SELECT count(*) FROM dogs").result().rows == ((4,),)
        maps = Path(f"/proc/{executor.workers[0].pid}/maps").read_text()
    assert ("/apsw/" in maps) == (name == "apsw")


def test_worker_loads_only_the_file_of_apsw() -> None:
    code = "import sys; from sqlr1_jax.sql import backends; backends.load('apsw', sys.argv[1]); import apsw\n"
    code += "print(sorted(m for m in sys.modules if m.startswith('apsw')), any('-packages' in p for p in sys.path))"
    root = Path(backends.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", code, backends.find("apsw")],
        env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "['apsw'] False"


def test_a_backend_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    executor = Executor(ExecuteConfig(backend="apsw"))
    with pytest.raises(ConfigError, match=r"pip install 'sqlr1_jax\[apsw\]'"), executor:
        pass


@EACH
@pytest.mark.parametrize(
    ("sql", "rows", "names"),
    [
        ("SELECT 1 AS a WHERE 0", [], ["a"]),
        ("SELECT 1 AS a, 'x' AS b; -- that is all ;", [(1, "x")], ["a", "b"]),
        ("-- first\nVALUES (1), (2)", [(1,), (2,)], ["column1"]),
        ("-- nothing", [], None),
    ],
)
def test_a_cursor_tells_rows_and_columns(name: str, sql: str, rows: list[tuple], names: list[str] | None) -> None:
    with closing(backends.connect(name, ":memory:")) as connection:
        cursor = connection.execute(sql)
        assert cursor.fetchmany(1) + cursor.fetchall() == rows
        assert (cursor.description and [column[0] for column in cursor.description]) == names


@EACH
@pytest.mark.parametrize("sql", ["CREATE TABLE t (a); SELECT 1", "CREATE TABLE t (a); -- x\nDROP TABLE t"])
def test_of_several_statements_none_runs(name: str, sql: str) -> None:
    with closing(backends.connect(name, ":memory:")) as connection:
        with pytest.raises((sqlite3.ProgrammingError, sqlite3.Warning), match="one statement at a time"):
            connection.execute(sql)
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1;;", None),
        ("SELECT 1; ;\n", None),
        ("SELECT ';;' ;;", None),
        ("SELECT 1; -- a\n;", None),
        (";;", []),
        ("-- a\n; ;", []),
        (";; SELECT 1", [(1,)]),
        ("SELECT ';;'", [(";;",)]),
        ("SELECT 1 -- ;;", [(1,)]),
        ("SELECT 1; /* ;; */ -- ;;", [(1,)]),
    ],
)
def test_an_empty_statement_behind_another_is_one_too_many_for_both(sql: str, rows: list[tuple] | None) -> None:
    for name in backends.NAMES:
        with closing(backends.connect(name, ":memory:")) as connection:
            if rows is not None:
                assert connection.execute(sql).fetchall() == rows
                continue
            with pytest.raises((sqlite3.ProgrammingError, sqlite3.Warning), match="one statement at a time"):
                connection.execute(sql)


def test_apsw_raises_the_same_errors_as_sqlite3() -> None:
    with closing(backends.connect("apsw", ":memory:")) as connection:
        for sql, kind in (("SELEC", sqlite3.OperationalError), ("SELECT ?", sqlite3.ProgrammingError)):
            with pytest.raises(kind):
                connection.execute(sql)
        with pytest.raises(sqlite3.OperationalError, match="Could not decode"):
            connection.execute("SELECT CAST(x'ff' AS TEXT)").fetchall()
        with pytest.raises(sqlite3.DataError):
            connection.execute("SELECT zeroblob(2000000000)").fetchall()
    with pytest.raises(MemoryError), backends.sqlite3_errors():
        raise apsw.NoMemError
