from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.sql import backends, sandbox
from sqlr1_jax.sql.result import Result
from sqlr1_jax.sql.sandbox import Limits, Sandbox, Session
from testing.databases import make_broken_parts

LIMITS = Limits(max_steps=1_000_000, max_rows=1000, max_bytes=100_000, heap_bytes=0)  # 0: none, tests share a process
COUNT_FOR_EVER = "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT count(*) FROM t"


@pytest.fixture(params=backends.NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def box(backend: str) -> Iterator[Sandbox]:
    with closing(Sandbox(LIMITS, backend)) as box:
        yield box


@pytest.fixture
def query(box: Sandbox, pets: Path) -> Any:
    def run(sql: str, max_steps: int = LIMITS.max_steps) -> Result:
        return box.query(str(pets), sql, max_steps)

    return run


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT color FROM dogs WHERE age > 4 ORDER BY code", [("red",), ("black",), ("white",)]),
        ("  -- a comment\n/* another */ select 1;  -- and one more", [(1,)]),
        ("VALUES (1, 'a'), (2, 'b')", [(1, "a"), (2, "b")]),
        ("WITH RECURSIVE t(a) AS (VALUES (1) UNION ALL SELECT a + 1 FROM t WHERE a < 3) SELECT sum(a) FROM t", [(6,)]),
        ("SELECT color, rank() OVER (ORDER BY age DESC) FROM dogs LIMIT 1", [("white", 1)]),
        ("SELECT value FROM json_each('[1, 2]')", [(1,), (2,)]),
        ("SELECT json_extract('{\"a\": 5}', '$.a') + '{\"a\": 6}' ->> 'a'", [(11,)]),
        ("SELECT date('now'), CURRENT_TIMESTAMP", [("2025-01-01", "2025-01-01 00:00:00")]),
        ("SELECT 'a' || char(0) || 'b', 9e999, 9e999 - 9e999, x'00ff'", [("a\0b", float("inf"), None, b"\0\xff")]),
        ("SELECT replace('aXa', 'X', 'b'), sqrt(4), group_concat(tag) FROM owners", [("aba", 2.0, "1,2,3")]),
    ],
)
def test_what_reads_is_answered(query: Any, sql: str, rows: list[tuple]) -> None:
    result = query(sql)
    assert (result.kind, result.rows, result.message) == ("ok", rows, "")


@pytest.mark.parametrize(
    ("backend", "sql", "kind", "rows"),
    [
        ("sqlite3", "SELECT CAST(x'ff41' AS TEXT)", "ok", [("\udcffA",)]),
        ("apsw", "SELECT CAST(x'ff41' AS TEXT)", "runtime_error", []),  # it cannot read such text
        ("sqlite3", "SELECT * FROM sqlite_stmt", "denied", []),
        ("apsw", "SELECT * FROM sqlite_stmt", "syntax_error", []),  # its SQLite has no such table
    ],
    indirect=["backend"],
)
def test_where_backends_differ(query: Any, sql: str, kind: str, rows: list[tuple]) -> None:
    result = query(sql)
    assert (result.kind, result.rows) == (kind, rows)


@pytest.mark.parametrize(
    ("sql", "kind", "message"),
    [
        ("", "syntax_error", "there is no statement"),
        ("  -- nothing", "syntax_error", "there is no statement"),
        (";", "syntax_error", "there is no statement"),
        ("SELEC 1", "syntax_error", 'near "SELEC": syntax error'),
        ("SELECT 'open", "syntax_error", "unrecognized token"),
        ("SELECT nope FROM dogs", "syntax_error", "no such column: nope"),
        ("SELECT * FROM cats", "syntax_error", "no such table: cats"),
        ("SELECT readfile('/etc/passwd')", "syntax_error", "no such function"),
        ("SELECT ?", "syntax_error", "bindings"),
        ("SELECT 1\0", "syntax_error", "null character"),
        ("SELECT '\ud800'", "syntax_error", "surrogates not allowed"),
        ("SELECT 1" + ", 1" * 40_000, "syntax_error", "too "),
        ("SELECT 9223372036854775807 + abs(-9223372036854775807 - 1)", "runtime_error", "integer overflow"),
        ("SELECT json_extract('{', '$.a')", "runtime_error", "malformed JSON"),
        ("SELECT hex(zeroblob(600000))", "runtime_error", "too big"),
        (COUNT_FOR_EVER, "timeout", "stopped after 1000000 steps"),
        ("SELECT 1 FROM dogs, dogs, dogs, dogs, dogs", "too_large", "more than 1000 rows"),
        ("SELECT zeroblob(60000) FROM dogs", "too_large", "more than 100000 bytes"),
        (f"SELECT NULL{', NULL' * 50} FROM dogs, dogs, dogs, dogs", "too_large", "more than 100000 bytes"),
        ("SELECT ''" + ", ''" * 50 + " FROM dogs, dogs, dogs, dogs", "too_large", "more than 100000 bytes"),
        ("SELECT random()", "denied", "the function random is not allowed"),
        ("SELECT hex(randomblob(4))", "denied", "randomblob"),
        ("SELECT load_extension('x')", "denied", "load_extension"),
        ("SELECT sqlite_version()", "denied", "sqlite_version"),
        ("SELECT last_insert_rowid()", "denied", "last_insert_rowid"),
        ("SELECT * FROM pragma_table_info('dogs')", "denied", "only reading"),
        ("SELECT * FROM dbstat", "denied", "only reading"),
        ("WITH x AS (SELECT 1) DELETE FROM dogs", "denied", "only reading is allowed here, not action 9 on dogs"),
        ("SELECT 1; SELECT 2", "denied", "only one statement"),
        ("EXPLAIN SELECT 1", "denied", "EXPLAIN is not allowed"),
        ("/* x */ -- y\n pragma table_info(dogs)", "denied", "PRAGMA is not allowed"),
    ],
)
def test_failing_and_denied_statements_have_typed_outcomes(query: Any, sql: str, kind: str, message: str) -> None:
    result = query(sql)
    assert result.kind == kind
    assert message in result.message
    assert result.rows == []


@pytest.mark.parametrize("word", sorted(sandbox.STATEMENTS_DENIED))
def test_denied_statements_are_denied_by_their_first_word(query: Any, word: str) -> None:
    assert query(f"  {word.title()} anything").kind == "denied"


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM dogs",
        "INSERT INTO dogs VALUES (1, 'x', 1, 1)",
        "UPDATE dogs SET age = 0",
        "DROP TABLE dogs",
        "CREATE TEMP TABLE x AS SELECT 1",
        "CREATE VIEW x AS SELECT 1",
        "ALTER TABLE dogs RENAME TO cats",
        "ATTACH ':memory:' AS other",
        "PRAGMA hard_heap_limit = 1",
        "PRAGMA case_sensitive_like = 1",
        "VACUUM INTO '/tmp/never.sqlite'",
        "BEGIN",
        "SAVEPOINT x",
        "ANALYZE",
    ],
)
def test_authorizer_denies_everything_but_reading(backend: str, pets: Path, sql: str) -> None:
    """Without the check of the first word, which runs before the authorizer."""
    session = Session(str(pets), clocked=False, backend=backend)
    with closing(session.connection), pytest.raises(sqlite3.DatabaseError):
        session.execute(sql, 1_000_000, LIMITS)
    assert "only reading is allowed" in session.denied
    assert not Path("/tmp/never.sqlite").exists()


@pytest.mark.parametrize("table", sorted(sandbox.HIDDEN_TABLES))
def test_internal_tables_are_hidden(backend: str, pets: Path, table: str) -> None:
    session = Session(str(pets), clocked=False, backend=backend)
    with closing(session.connection):
        assert session.authorize(sqlite3.SQLITE_READ, table, "x", "main", None) == sqlite3.SQLITE_DENY
        assert session.authorize(sqlite3.SQLITE_READ, "dogs", "age", "main", None) == sqlite3.SQLITE_OK


@pytest.mark.parametrize(("quick", "temp_store"), [(False, 2), (True, 1)])
def test_connection_is_read_only_and_has_its_temp_store(backend: str, pets: Path, quick: bool, temp_store: int) -> None:
    """The layers below the authorizer, which is removed here."""
    session = Session(str(pets), clocked=False, backend=backend, quick=quick)
    with closing(session.connection) as connection:
        connection.set_authorizer(None)
        assert connection.execute("PRAGMA query_only").fetchone() == (1,)
        assert connection.execute("PRAGMA temp_store").fetchone() == (temp_store,)
        for sql in ("DELETE FROM dogs", "CREATE TABLE x (a)", "ATTACH ':memory:' AS other"):
            with pytest.raises(sqlite3.OperationalError):
                connection.execute(sql)


@pytest.mark.parametrize("limit", sorted(sandbox.LIMITS))
def test_each_limit_of_sqlite_is_set(backend: str, pets: Path, limit: int) -> None:
    session = Session(str(pets), clocked=False, backend=backend)
    with closing(session.connection) as connection:
        assert connection.getlimit(limit) <= sandbox.LIMITS[limit]


def test_step_counts_are_deterministic(query: Any) -> None:
    sql = f"{COUNT_FOR_EVER.replace('FROM t)', 'FROM t WHERE a < 5000)')}"
    runs = [query(sql) for _ in range(3)]
    assert [run.rows for run in runs] == [[(5000,)]] * 3
    assert len({run.steps for run in runs}) == 1
    assert runs[0].steps % 1000 == 0
    assert 20_000 < runs[0].steps < 200_000
    assert query(sql, runs[0].steps).kind == "ok"
    assert query(sql, runs[0].steps - 1000).kind == "timeout"
    assert query("SELECT json_extract('{', '$.a')").kind == "runtime_error"  # what stopped the one before is forgotten
    assert query(sql).steps == runs[0].steps
    assert query(sql, 10**30).steps == runs[0].steps
    assert query(sql, 0).kind == query(sql, 999).kind == "timeout"


def test_text_that_is_read_once_more_is_counted_once(pets: Path) -> None:
    counted = f"SELECT {{}} FROM ({COUNT_FOR_EVER.replace('FROM t)', 'FROM t WHERE a < 5000)')})"
    bad, good = (counted.format(cell) for cell in ("CAST(x'ff41' AS TEXT)", "CAST(x'4141' AS TEXT)"))
    box = Sandbox(LIMITS)
    with closing(box):
        again, once = (box.query(str(pets), sql, 10**9) for sql in (bad, good))
    assert again.rows == [("\udcffA",)]
    assert again.steps == once.steps > 0


NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)"
PAD = "hex(zeroblob(100))"
SPILLS = {
    "a sort": f"{NUMBERS} SELECT max(pad), sum(i) FROM (SELECT i, {PAD} || i AS pad FROM n ORDER BY -i LIMIT 20000)",
    "a set": f"{NUMBERS} SELECT count(*) FROM (SELECT DISTINCT i, {PAD} FROM n)",
    "a sort by the clock": f"{NUMBERS} SELECT max(p) FROM "
    f"(SELECT {PAD} || i AS p FROM n ORDER BY date('now'), -i LIMIT 20000)",
}


@pytest.mark.parametrize("sql", SPILLS.values(), ids=list(SPILLS))
def test_query_that_needs_a_temporary_file_runs_in_memory(backend: str, pets: Path, sql: str) -> None:
    with closing(Sandbox(LIMITS, backend)) as box:
        result = box.query(str(pets), sql, 50_000_000)
        assert result.kind == "ok"
        assert {used.quick for used in box.sessions} == {True, False}
        session = Session(str(pets), clocked="date" in sql, backend=backend)
        with closing(session.connection):
            rows, columns = session.execute(sql, 50_000_000, LIMITS)
        assert (result.rows, result.columns, result.steps) == (rows, columns, session.steps)


def test_a_small_sort_needs_no_second_connection(box: Sandbox, pets: Path) -> None:
    assert box.query(str(pets), "SELECT color FROM dogs ORDER BY age, code", 10**6).rows[0] == ("red",)
    assert [session.quick for session in box.sessions] == [True]


def test_no_file_can_be_opened_while_a_statement_runs(
    box: Sandbox, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def execute(self: Session, sql: str, max_steps: int, limits: Limits) -> tuple[list, tuple]:
        with pytest.raises(OSError, match="Too many open files"):
            pets.read_bytes()
        tried.append(sql)
        return [], ()

    monkeypatch.setattr(Session, "execute", execute)
    box.query(str(pets), "SELECT 1", 1000)
    assert tried == ["SELECT 1"]
    assert pets.read_bytes().startswith(b"SQLite")


def test_failed_query_does_not_affect_the_next(query: Any) -> None:
    good = "SELECT count(*) FROM dogs WHERE color LIKE 'RED'"
    for bad in (COUNT_FOR_EVER, "SELECT random()", "SELECT CAST(x'ff' AS TEXT)", "PRAGMA case_sensitive_like = 1"):
        query(bad)
        assert query(good).rows == [(2,)]


def test_views_may_call_date_functions_with_a_fixed_now(tmp_path: Path, box: Sandbox) -> None:
    path = tmp_path / "views.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIEW today AS SELECT date('now') AS day, strftime('%Y', '1999-05-05') AS year")
    assert box.query(str(path), "SELECT day, year FROM today", 100_000).rows == [("2025-01-01", "1999")]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables of SQLite's own modules, and one that shows SQLite's state."""
    path = tmp_path_factory.mktemp("library") / "library.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """CREATE TABLE author (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO author VALUES (1, 'Ann');
            CREATE VIRTUAL TABLE book USING fts5(title, body);
            INSERT INTO book VALUES ('red car', 'fast'), ('blue boat', 'slow'), ('car car car', 'a car');
            CREATE VIRTUAL TABLE page USING fts4(title, body); INSERT INTO page SELECT * FROM book;
            CREATE VIRTUAL TABLE old USING fts3(title); INSERT INTO old SELECT title FROM book;
            CREATE VIRTUAL TABLE box USING rtree(id, x0, x1); INSERT INTO box VALUES (1, 0, 1), (2, 5, 6);
            CREATE VIRTUAL TABLE grid USING rtree_i32(id, x0, x1, +label); INSERT INTO grid VALUES (1, 0, 1, 'a');
            CREATE VIRTUAL TABLE words USING fts5vocab(book, 'row'); CREATE VIRTUAL TABLE "USING x" USING fts5(a);
            CREATE VIRTUAL TABLE names USING fts5(name, content='author', content_rowid='id');
            INSERT INTO names (names) VALUES ('rebuild'); CREATE VIRTUAL TABLE state USING dbstat(main);
            CREATE VIEW cars AS SELECT title FROM book WHERE book MATCH 'car'"""
        )
    return path


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT count(*) FROM book", [(3,)]),
        ("SELECT title FROM book WHERE book MATCH 'car' ORDER BY rank", [("car car car",), ("red car",)]),
        ("SELECT title FROM book('car') ORDER BY bm25(book, 1.0, 0.5)", [("car car car",), ("red car",)]),
        ("SELECT highlight(book, 0, '<', '>'), snippet(book, 0, '[', ']', '…', 1) FROM book('red')",
         [("<red> car", "[red]…")]),
        ("SELECT title FROM cars", [("red car",), ("car car car",)]),
        ("SELECT name FROM names WHERE names MATCH 'ann'", [("Ann",)]),
        ("SELECT a.name, b.title FROM author a JOIN book b ON b.rowid = a.id", [("Ann", "red car")]),
        ("SELECT doc, cnt FROM words WHERE term = 'car'", [(2, 5)]),
        ('SELECT count(*) FROM "USING x"', [(0,)]),
        ("SELECT count(*) FROM page", [(3,)]),
        ("SELECT snippet(page), offsets(page) FROM page WHERE page MATCH 'red'", [("<b>red</b> car", "0 0 0 3")]),
        ("SELECT title FROM old WHERE old MATCH 'boat'", [("blue boat",)]),
        ("SELECT count(*) FROM box", [(2,)]),
        ("SELECT id FROM box WHERE x1 < 2", [(1,)]),
        ("SELECT label FROM grid WHERE x0 >= 0", [("a",)]),
    ],
)  # fmt: skip
def test_sqlites_own_modules_can_be_read(box: Sandbox, library: Path, sql: str, rows: list[tuple]) -> None:
    first, second = (box.query(str(library), sql, 10**6) for _ in range(2))
    assert (first.kind, first.rows, first.message) == ("ok", rows, "")
    assert second.steps == first.steps
    assert box.sessions == []  # a module keeps state


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO book (book) VALUES ('optimize')",
        "WITH x AS (SELECT 1) INSERT INTO book (book) VALUES ('delete-all')",
        "WITH x AS (SELECT 1) DELETE FROM book",
        "WITH x AS (SELECT 1) DELETE FROM box",
        "WITH x AS (SELECT 1) UPDATE page SET title = ''",
        "SELECT optimize(page) FROM page",
        "SELECT fts3_tokenizer('simple')",
        "SELECT * FROM state",
        "SELECT * FROM pragma_data_version",
        "SELECT * FROM pragma_data_version, book",
        "PRAGMA data_version",
        "PRAGMA main.data_version",
    ],
)
def test_modules_do_no_more_than_read(box: Sandbox, library: Path, sql: str) -> None:
    before = library.read_bytes()
    result = box.query(str(library), sql, 10**6)
    assert (result.kind, result.rows) == ("denied", [])
    assert library.read_bytes() == before


def test_a_table_of_an_extension_leaves_the_rest_readable(box: Sandbox, tmp_path: Path) -> None:
    path = str(make_broken_parts(tmp_path / "parts.sqlite"))
    assert box.query(path, "SELECT name FROM city", 10**6).rows == [("Rome",)]
    assert box.query(path, "SELECT id FROM street", 10**6).rows == [(1,)]
    assert box.query(path, "SELECT * FROM SpatialIndex", 10**6).kind in ("syntax_error", "denied")


def test_a_missing_database_is_an_outcome(box: Sandbox, tmp_path: Path) -> None:
    result = box.query(str(tmp_path / "gone.sqlite"), "SELECT 1", 1000)
    assert result.kind == "runtime_error"
    assert "gone.sqlite does not exist" in result.message


def test_few_connections_stay_open(tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SESSIONS", 3)
    for i in range(6):
        with closing(sqlite3.connect(tmp_path / f"{i}.sqlite")) as connection:
            connection.executescript(f"CREATE TABLE t (a); INSERT INTO t VALUES ({i})")
    assert [box.query(str(tmp_path / f"{i % 6}.sqlite"), "SELECT a FROM t", 10**6).rows for i in range(8)] == [
        [(i % 6,)] for i in range(8)
    ]
    assert len(box.sessions) == 3


def test_the_heap_limit_holds_and_the_next_query_runs(backend: str, pets: Path) -> None:
    """In a process of its own, which the limit is for."""
    code = """
import json, sys
from sqlr1_jax.sql.sandbox import Limits, Sandbox
box = Sandbox(Limits(10**9, 10**6, 10**9, 8 * 2**20), sys.argv[2])
bomb = "SELECT count(*) FROM (SELECT DISTINCT hex(zeroblob(50000)) || a.code || b.code || c.code || d.code "
bomb += "FROM dogs a, dogs b, dogs c, dogs d)"
for sql in (bomb, "SELECT count(*) FROM dogs"):
    result = box.query(sys.argv[1], sql, 10**9)
    print(json.dumps([result.kind, result.rows, result.message, box.exhausted]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(pets), backend], capture_output=True, text=True, check=True)
    bomb, after = map(json.loads, done.stdout.splitlines())
    assert bomb == ["runtime_error", [], f"out of memory: SQLite may take {8 * 2**20} bytes", True]
    assert after[:2] == ["ok", [[4]]]


def test_names_that_are_not_utf8_are_errors_of_the_queries_that_show_them(box: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """CREATE TABLE good (a); INSERT INTO good VALUES (7);
            CREATE TABLE bad (b, c_d); INSERT INTO bad VALUES (8, 9);
            CREATE VIRTUAL TABLE book USING fts5(title); INSERT INTO book VALUES ('red car');
            PRAGMA writable_schema = ON"""
        )
        connection.execute(
            "UPDATE sqlite_master SET sql = CAST(? AS TEXT) WHERE name = 'bad'", (b"CREATE TABLE bad (b, c\xffd)",)
        )
        connection.commit()
    assert box.query(str(path), "SELECT a FROM good", 10**6).rows == [(7,)]
    assert box.query(str(path), "SELECT b FROM bad", 10**6).rows == [(8,)]
    assert box.query(str(path), "SELECT title FROM book WHERE book MATCH 'red'", 10**6).rows == [("red car",)]
    result = box.query(str(path), "SELECT * FROM bad", 10**6)
    assert result.kind == "runtime_error"
    assert "UTF-8" in result.message
