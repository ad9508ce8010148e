"""SQL that a model may make up and a sandbox must survive: by what it wants, with the outcomes that are right.

On the tables of conftest's `pets`. `fuzzed` writes more of it by a grammar.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {0})"
LONG = "replace(hex(zeroblob(450000)), '0', 'a')"  # 900,000 characters, just under the longest value
ANY = frozenset(("ok", "syntax_error", "runtime_error", "timeout", "too_large", "denied"))

_WRITES = """
INSERT INTO dogs VALUES (1, 'x', 1, 1)
INSERT OR REPLACE INTO dogs VALUES (10, 'x', 1, 1)
REPLACE INTO dogs VALUES (10, 'x', 1, 1)
INSERT INTO dogs SELECT * FROM dogs
INSERT INTO sqlite_master VALUES ('table', 'x', 'x', 1, 'x')
UPDATE dogs SET age = 0
UPDATE dogs SET age = 0 RETURNING color
UPDATE sqlite_master SET sql = ''
DELETE FROM dogs
DELETE FROM dogs RETURNING color
WITH x AS (SELECT 1) DELETE FROM dogs
WITH x AS (SELECT 1) INSERT INTO dogs SELECT 1, 2, 3, 4
WITH x AS (SELECT 1) UPDATE dogs SET age = 1
DROP TABLE dogs
DROP TABLE IF EXISTS nothing
DROP VIEW IF EXISTS nothing
CREATE TABLE x (a)
CREATE TABLE x AS SELECT * FROM dogs
CREATE TEMP TABLE dogs AS SELECT 1
CREATE TEMPORARY VIEW dogs AS SELECT 1
CREATE VIEW x AS SELECT 1
CREATE TRIGGER x AFTER INSERT ON dogs BEGIN SELECT 1; END
CREATE INDEX x ON dogs (age)
CREATE UNIQUE INDEX x ON dogs (code)
CREATE VIRTUAL TABLE x USING fts5(a)
CREATE VIRTUAL TABLE x USING csv(filename='/etc/passwd')
ALTER TABLE dogs RENAME TO cats
ALTER TABLE dogs ADD COLUMN x
ALTER TABLE dogs DROP COLUMN age
VACUUM
VACUUM INTO '/tmp/sqlr1_hostile_vacuum.sqlite'
VACUUM main INTO 'sqlr1_hostile_vacuum.sqlite'
ANALYZE
ANALYZE dogs
REINDEX
REINDEX dogs
ATTACH '/tmp/sqlr1_hostile_attached.sqlite' AS x
ATTACH DATABASE ':memory:' AS x
ATTACH 'file:/tmp/sqlr1_hostile_uri.sqlite?mode=rwc' AS x
DETACH main
BEGIN
BEGIN EXCLUSIVE
COMMIT
END
ROLLBACK
SAVEPOINT x
RELEASE x
"""
_STATE = """
PRAGMA table_info(dogs)
PRAGMA query_only = OFF
PRAGMA writable_schema = ON
PRAGMA case_sensitive_like = ON
PRAGMA hard_heap_limit = 1
PRAGMA soft_heap_limit = 1
PRAGMA temp_store_directory = '/tmp'
PRAGMA journal_mode = WAL
PRAGMA encoding = 'UTF-16'
PRAGMA threads = 8
PRAGMA cache_size = -9999999
PRAGMA mmap_size = 999999999999
PRAGMA reverse_unordered_selects = ON
PRAGMA integrity_check
EXPLAIN SELECT * FROM dogs
EXPLAIN QUERY PLAN SELECT * FROM dogs
SELECT * FROM pragma_table_info('dogs')
SELECT * FROM pragma_database_list
SELECT * FROM pragma_compile_options
SELECT * FROM sqlite_stmt
SELECT * FROM dbstat
SELECT * FROM sqlite_dbpage
SELECT sqlite_version()
SELECT sqlite_source_id()
SELECT sqlite_compileoption_get(0)
SELECT changes()
SELECT total_changes()
SELECT last_insert_rowid()
SELECT random()
SELECT random() % 2 FROM dogs
SELECT * FROM dogs ORDER BY random()
SELECT hex(randomblob(16))
SELECT randomblob(999999999)
SELECT load_extension('/tmp/evil.so')
SELECT load_extension('/tmp/evil.so', 'sqlite3_evil_init')
SELECT fts3_tokenizer('simple')
SELECT sqlite_log(1, 'x')
SELECT sqlite_offset(age) FROM dogs
"""
_UNKNOWN = """
SELECT readfile('/etc/passwd')
SELECT writefile('/tmp/sqlr1_hostile_written', 'x')
SELECT edit('x')
SELECT fileio('/etc/passwd')
SELECT system('touch /tmp/sqlr1_hostile_system')
SELECT * FROM fsdir('/')
SELECT * FROM csv('/etc/passwd')
SELECT * FROM generate_series(1, 9223372036854775807)
COPY dogs TO '/tmp/sqlr1_hostile_copied'
SELECT * INTO OUTFILE '/tmp/sqlr1_hostile_outfile' FROM dogs
.shell touch /tmp/sqlr1_hostile_shell
.output /tmp/sqlr1_hostile_output
LOAD DATA INFILE '/etc/passwd' INTO TABLE dogs
EXEC xp_cmdshell 'ls'
CALL sleep(100)
SELECT sleep(100)
SELECT pg_sleep(100)
SHOW TABLES
DESCRIBE dogs
USE other
GRANT ALL ON dogs TO root
SELECT
SELECT * FROM
SELECT * FROM dogs WHERE
SELECT 'open
SELECT "open
SELECT [open
SELECT `open
SELECT (1
SELECT 1)
SELECT ((((((((((1)
SELECT 1 /* open */ + /*
SELECT ?
SELECT :name
SELECT @name
SELECT nope FROM dogs
SELECT * FROM cats
SELECT dogs.nope FROM dogs
SELECT count(age, color) FROM dogs
SELECT age FROM dogs GROUP BY nope
SELECT age FROM dogs UNION SELECT code, age FROM dogs
SELECT 0x
SELECT x'0'
SELECT 1e
not sql at all
```sql SELECT 1```
<answer>SELECT 1</answer>
"""
_SEVERAL = """
SELECT 1; SELECT 2
SELECT 1; DROP TABLE dogs
SELECT 1;;SELECT 2;
SELECT 1; -- quiet \\n DELETE FROM dogs
SELECT 1 /* ; */ ; VACUUM
"""
_FINE = """
SELECT 1;
;;; SELECT 1
SELECT 1 -- DROP TABLE dogs
SELECT 1 /* DROP TABLE dogs
SELECT 'DROP TABLE dogs; --'
SELECT ';' || "color" FROM dogs
SELECT 9223372036854775807, -9223372036854775808
SELECT 9223372036854775808, 99999999999999999999999999
SELECT 9e999, -9e999, 9e999 - 9e999, 0.0 / 0.0, 1 / 0
SELECT 1e-400, 5e-324, 1.7976931348623157e308
SELECT CAST('nan' AS REAL), CAST('inf' AS REAL), CAST('1e999' AS REAL)
SELECT CAST(x'fffefdfc' AS TEXT), CAST(x'c3' AS TEXT), CAST(x'eda080' AS TEXT)
SELECT 'a' || char(0) || 'b', length('a' || char(0) || 'b'), x'00'
SELECT char(0xD800), char(0x10FFFF), char(-1), unicode('')
SELECT date('now'), time('now'), datetime('now', '+1 day'), julianday('now'), unixepoch('now')
SELECT CURRENT_TIMESTAMP, CURRENT_DATE, CURRENT_TIME
SELECT strftime('%s', 'now'), strftime('%J', 'now', 'localtime')
SELECT * FROM dogs WHERE color LIKE '%' ESCAPE '\\'
SELECT * FROM sqlite_master
SELECT printf('%d %s %f', 1, 'a', 2.5)
SELECT group_concat(color, char(0)) FROM dogs
SELECT json('[1, 2, {"a": null}]')
SELECT '𝒳' || 'ٱ' || '\u202e'
VALUES (1, 2), (3, 4)
"""
_FAILING = """
SELECT abs(-9223372036854775808)
SELECT sum(x) FROM (SELECT 9223372036854775807 AS x UNION ALL SELECT 1)
SELECT json('{')
SELECT json_extract('[1', '$[0]')
SELECT zeroblob(1000001)
SELECT hex(zeroblob(600000))
SELECT color LIKE '%' ESCAPE 'ab' FROM dogs
SELECT replace(hex(zeroblob(100000)), '00', '0000000000000000000000000000000000000000000000')
SELECT group_concat(hex(zeroblob(300000))) FROM dogs
"""
_BOMBS = (
    "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT count(*) FROM t",
    "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT * FROM t",
    "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a FROM t) SELECT max(a) FROM t",
    "WITH RECURSIVE t(a) AS (SELECT 'x' UNION ALL SELECT a || a FROM t) SELECT length(a) FROM t",
    "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t ORDER BY 1 DESC) SELECT count(*) FROM t",
    "WITH RECURSIVE f(a, b) AS (SELECT 1, 1 UNION SELECT b, a + b FROM f) SELECT count(*) FROM f",
    "SELECT count(*) FROM dogs a, dogs b, dogs c, dogs d, dogs e, dogs f, dogs g, dogs h, dogs i, dogs j, dogs k",
    "SELECT * FROM dogs a, dogs b, dogs c, dogs d, dogs e, dogs f, dogs g, dogs h, dogs i, dogs j",
    "SELECT count(*) FROM dogs a CROSS JOIN dogs b JOIN dogs c ON 1 JOIN dogs d JOIN dogs e JOIN dogs f JOIN dogs g "
    "JOIN dogs h JOIN dogs i JOIN dogs j JOIN dogs k JOIN dogs l JOIN dogs m",
    f"{ROWS.format(3000)} SELECT count(*) FROM n a, n b, n c",
    f"{ROWS.format(100_000)} SELECT sum(a.i * b.i) FROM n a, n b",
    f"{ROWS.format(3_000_000)} SELECT i FROM n ORDER BY i % 7, i DESC",
    f"{ROWS.format(3_000_000)} SELECT i, hex(zeroblob(500)) FROM n ORDER BY i DESC",
    f"{ROWS.format(300_000)} SELECT DISTINCT hex(zeroblob(400)) || i FROM n",
    f"{ROWS.format(300_000)} SELECT i, max(i) OVER (ORDER BY i ROWS BETWEEN 9999 PRECEDING AND 9 FOLLOWING) FROM n",
    f"{ROWS.format(100_000)} SELECT i, group_concat(i) OVER (ORDER BY i) FROM n",
    f"{ROWS.format(100_000)} SELECT group_concat(hex(zeroblob(100))) FROM n",
    f"{ROWS.format(100_000)} SELECT json_group_array(hex(zeroblob(100))) FROM n",
    f"{ROWS.format(100_000)} SELECT zeroblob(900000) FROM n",
    f"{ROWS.format(1000)} SELECT sum(length({LONG})) FROM n",
    f"SELECT instr({LONG}, replace(hex(zeroblob(220000)), '0', 'a') || 'b')",
    f"SELECT replace({LONG}, replace(hex(zeroblob(220000)), '0', 'a') || 'b', 'c')",
    f"SELECT {LONG} LIKE '%a%a%a%a%a%a%a%a%b'",
    f"SELECT {LONG} GLOB '*a*a*a*a*a*b'",
    f"SELECT length(trim({LONG}, {LONG}))",
    "SELECT length(printf('%.900000d', 7))",
    "SELECT printf('%,.*f', 900000, 1.5)",
    "SELECT printf('%9999999s', 'x')",
    "SELECT printf('%.9999999f', 1.0)",
    "SELECT length(hex(zeroblob(499999)))",
    "SELECT json_array(" + "json_array(" * 400 + "1" + ")" * 401,
    "SELECT json('" + "[" * 900 + "]" * 900 + "')",
    "SELECT " + "+".join(["1"] * 400),
    "SELECT " + "+".join(["1"] * 40_000),
    "SELECT " + "(" * 400 + "1" + ")" * 400,
    "SELECT " + "(" * 90_000 + "1" + ")" * 9_000,
    "SELECT " + "-" * 900 + "1",
    "SELECT " + "NOT " * 600 + "1",
    "SELECT " + "CASE WHEN 1 THEN " * 600 + "1" + " END" * 600,
    "SELECT 1 WHERE 1 IN (" + ", ".join(map(str, range(15_000))) + ")",
    "SELECT * FROM dogs WHERE age IN (SELECT age FROM dogs WHERE age IN " * 60 + "(1)" + ")" * 60,
    "SELECT " + ", ".join(f"age AS a{i}" for i in range(1990)) + " FROM dogs",
    "SELECT " + ", ".join(f"age AS a{i}" for i in range(2100)) + " FROM dogs",
    "SELECT 1" + " UNION ALL SELECT 1" * 99,
    "SELECT 1" + " UNION ALL SELECT 1" * 600,
    "SELECT count(*) FROM " + ", ".join(f"dogs d{i}" for i in range(63)),
    "SELECT count(*) FROM " + ", ".join(f"dogs d{i}" for i in range(70)),
    "SELECT " + "(SELECT " * 90 + "1" + ")" * 90,
    "SELECT " + "(SELECT max(age) FROM dogs WHERE age > " * 40 + "1" + ")" * 40,
    "SELECT " + "x" * 99_000,
    "SELECT '" + "x" * 99_900 + "'",
    "SELECT '" + "x" * 200_000 + "'",
    "SELECT /*" + "*" * 99_000 + "*/ 1",
    "-- " + "x" * 99_000 + "\nSELECT 1",
    "SELECT 1 -- \0 DROP TABLE dogs",
    "SELECT '\0'",
    "SELECT '\ud800'",
    "\ufeffSELECT 1",
    "SELECT\u00a01",
    "SELECT 1\u2028FROM dogs",
)


def _lines(text: str) -> list[str]:
    return [line.replace("\\n", "\n") for line in text.strip().split("\n")]


# (what it wants, statement, the outcomes that are right)
CORPUS: list[tuple[str, str, frozenset[str]]] = [
    *(("writes", sql, frozenset(("denied",))) for sql in _lines(_WRITES)),
    *(("state", sql, frozenset(("denied", "syntax_error"))) for sql in _lines(_STATE)),
    *(("unknown", sql, frozenset(("syntax_error", "denied"))) for sql in _lines(_UNKNOWN)),
    *(("several", sql, frozenset(("denied",))) for sql in _lines(_SEVERAL)),
    *(("fine", sql, frozenset(("ok",))) for sql in _lines(_FINE)),
    *(("failing", sql, frozenset(("runtime_error",))) for sql in _lines(_FAILING)),
    *(("bomb", sql, ANY) for sql in _BOMBS),
]


def outlives_its_steps(sql: str) -> bool:
    """Whether one step of it takes seconds, so that the wall clock decides."""
    return "zeroblob(220000)" in sql


_TABLES = ("dogs", "owners", "dogs JOIN owners ON keeper = tag", "dogs, owners", "dogs LEFT JOIN owners ON tag = age")
_STRANGE = ("sqlite_master", "pragma_table_info('dogs')", "nothing", "dbstat", "main.dogs AS d", "temp.dogs")
_COLUMNS = {"dogs": ("code", "color", "age", "keeper"), "owners": ("tag", "city", '"full name"')}
_VALUES = (
    "1", "-1", "0", "7", "NULL", "''", "'red'", "'%'", "9223372036854775807", "-9223372036854775808", "9e999", "1e-320",
    "x'ff00'", "1e5", "300000", "1000000000",
)  # fmt: skip
_OPERATORS = ("+", "-", "*", "/", "%", "||", "=", "<>", "<", ">=", "AND", "OR", "IS", "LIKE", "GLOB", "&", "<<", "->>")
_FUNCTIONS = {
    0: "random changes sqlite_version",
    1: """abs char hex length lower quote round sign soundex trim typeof unicode upper zeroblob randomblob date
        julianday json json_array total avg count group_concat sum max min sqrt ln load_extension readfile""",
    2: "coalesce concat glob ifnull instr like max min nullif printf round substr trim pow json_array json_extract",
    3: "replace substr iif coalesce printf json_object strftime",
}
_HEADS = ("SELECT", "SELECT DISTINCT", "WITH t AS (SELECT 1 AS x) SELECT", "EXPLAIN SELECT", "PRAGMA", "DELETE FROM")
_TAILS = ("", ";", "; DROP TABLE dogs", " -- x", " /* x", " LIMIT -1", " LIMIT 3 OFFSET 1", " GROUP BY 1 HAVING 1 < 2")


def fuzzed(seed: int, count: int) -> Iterator[str]:
    """Statements by a grammar, every fourth of them damaged: the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        sql = _statement(rng)
        yield _damaged(rng, sql) if rng.random() < 0.25 else sql


def _statement(rng: random.Random) -> str:
    tables = rng.choice(_TABLES)
    names = [name for table, names in _COLUMNS.items() if table in tables for name in names]
    source = tables if rng.random() < 0.95 else rng.choice(_STRANGE)
    source += "".join(f", json_each('[1,2,3,4,5,6]') AS j{i}" for i in range(rng.choice((0, 0, 0, 1, 2, 12))))
    shown = ", ".join(_expression(rng, names, 3) for _ in range(rng.randint(1, 4)))
    sql = f"{rng.choices(_HEADS, (20, 4, 4, 1, 1, 1))[0]} {shown} FROM {source}"
    if rng.random() < 0.5:
        sql += f" WHERE {_expression(rng, names, 3)}"
    if rng.random() < 0.2:
        sql += f" ORDER BY {_expression(rng, names, 2)}"
    if rng.random() < 0.15:
        sql += f" {rng.choice(('UNION', 'UNION ALL', 'EXCEPT', 'INTERSECT'))} {_statement(rng)}"
    return sql + rng.choices(_TAILS, (12, 2, 1, 1, 1, 1, 1, 1))[0]


def _expression(rng: random.Random, names: list[str], depth: int) -> str:
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return rng.choice(names if rng.random() < 0.6 else _VALUES)
    if kind < 0.55:
        return f" {rng.choice(_OPERATORS)} ".join(_expression(rng, names, depth - 1) for _ in range(rng.randint(2, 3)))
    if kind < 0.85:
        count = rng.choices((0, 1, 2, 3), (1, 12, 10, 8))[0]
        arguments = ", ".join(_expression(rng, names, depth - 1) for _ in range(count))
        return f"{rng.choice(_FUNCTIONS[count].split())}({arguments})" + " OVER ()" * (rng.random() < 0.05)
    if kind < 0.92:
        return f"CASE WHEN {_expression(rng, names, depth - 1)} THEN {_expression(rng, names, depth - 1)} END"
    return f"(SELECT {_expression(rng, names, depth - 1)} FROM {rng.choice(_TABLES[:2])})"


def _damaged(rng: random.Random, sql: str) -> str:
    place, other = sorted(rng.randrange(len(sql) + 1) for _ in range(2))
    strange = rng.choice("'\"`(;\0%\ud800é")
    cuts = (sql[:place] + sql[other:], sql[:other] + sql[place:], sql[:place], sql[:place] + strange + sql[place:])
    return rng.choice(cuts)
