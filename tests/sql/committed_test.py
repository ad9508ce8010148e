from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.data import example_rows, retrieval, schema
from sqlr1_jax.sql import committed
from sqlr1_jax.sql.database import DatabaseError, content_hash, open_readonly, readable_file
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.result_cache import ResultCache

KILLED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN")
connection.execute("UPDATE sale SET amount = amount - 5")
os._exit(9)
"""


@pytest.fixture(params=["wal", "journal"])
def logged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database whose committed sum of `amount` is 20,000, which its main file alone does not have."""
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE sale (id INTEGER PRIMARY KEY, amount INTEGER, city TEXT)")
        amount = 10 if request.param == "journal" else 7
        connection.executemany("INSERT INTO sale VALUES (?, ?, ?)", [(i, amount, "x" * 500) for i in range(2000)])
    if request.param == "journal":
        subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    else:
        _commit_to_log(path, "UPDATE sale SET amount = 10, city = 'rome'; CREATE VIEW v AS SELECT 1 AS one")
    assert Path(f"{path}-{request.param}").exists()
    return path


def _commit_to_log(path: Path, sql: str) -> None:
    """Leaves what SQL commits in the log, as an application that is running does."""
    code = "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    code += "c.execute('PRAGMA journal_mode=WAL'); c.executescript(sys.argv[2]); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(path), sql], check=False)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _sum(path: Path) -> int:
    with closing(open_readonly(path)) as connection:
        return int(connection.execute("SELECT sum(amount) FROM sale").fetchone()[0])


def test_committed_data_are_read_and_the_files_stay_as_they_are(logged: Path) -> None:
    before = _contents(logged.parent)
    assert _sum(logged) == 20_000
    with Executor(ExecuteConfig(workers=1)) as executor:
        assert executor.run(logged, "SELECT sum(amount) FROM sale").result().rows == ((20_000,),)
        assert executor.submit(logged, "SELECT 20000", "SELECT sum(amount) FROM sale").result().kind == "match"
        assert (
            executor.submit(logged, "SELECT 20000", "SELECT sum(amount) FROM sale", "official_bird").result().kind
            == "match"
        )
    assert _contents(logged.parent) == before


def test_schema_rows_and_values_come_from_the_committed_data(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE sale (city TEXT); INSERT INTO sale VALUES ('oslo')")
    _commit_to_log(path, "UPDATE sale SET city = 'rome'; CREATE TABLE refund (id INTEGER)")
    read = schema.read_schema(path)
    assert [table.name for table in read.tables] == ["sale", "refund"]
    assert read.tables[0].columns[0].values == ("rome",)
    assert retrieval.Index(path, read).search("all in Rome or Oslo") == {("sale", "city"): ["rome"]}
    assert "rome" in example_rows.render(path)


def test_the_key_of_results_follows_the_log(tmp_path: Path, pets: Path) -> None:
    path = tmp_path / "pets.sqlite"
    shutil.copy(pets, path)
    cache = ResultCache(str(tmp_path / "golds"), ExecuteConfig())
    keys = {(content_hash(path), cache.path(str(path)).name)}
    for age in (1, 2):
        _commit_to_log(path, f"UPDATE dogs SET age = {age}")
        keys.add((content_hash(path), cache.path(str(path)).name))
    assert len({key for key, _ in keys}) == len({name for _, name in keys}) == 3
    other = tmp_path / "copy.sqlite"
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{other}{suffix}")
    assert content_hash(other) == content_hash(path)


def test_a_file_is_copied_once_and_again_when_its_log_changes(logged: Path) -> None:
    first = readable_file(logged)
    assert first != str(logged)
    assert readable_file(logged) == first
    assert not os.access(first, os.W_OK) or os.geteuid() == 0
    _commit_to_log(logged, "UPDATE sale SET amount = 3")
    assert _sum(logged) == 6_000
    assert readable_file(logged) != first


def test_a_link_is_followed_to_the_log(logged: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "shop.sqlite").symlink_to(logged)
    assert _sum(tmp_path / "links" / "shop.sqlite") == 20_000


@pytest.mark.parametrize("log", [("-wal", b""), ("-wal", b"\0" * 32), ("-journal", b""), ("-journal", b"\0" * 512)])
def test_a_log_without_content_is_none(tmp_path: Path, pets: Path, log: tuple[str, bytes]) -> None:
    path = tmp_path / "pets.sqlite"
    shutil.copy(pets, path)
    Path(f"{path}{log[0]}").write_bytes(log[1])
    assert readable_file(path) == str(path)
    assert content_hash(path) == content_hash(pets)


def test_a_log_that_cannot_be_applied_is_an_error_that_names_it(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "MAX_COPY_BYTES", 1000)
    message = r"shop\.sqlite-(wal|journal) must be applied .*GiB\): stop .*, run `sqlite3 .*shop\.sqlite '"
    with pytest.raises(DatabaseError, match=message):
        open_readonly(logged)
    with Executor(ExecuteConfig(workers=1)) as executor:
        outcome = executor.run(logged, "SELECT 1").result()
        gold = executor.submit(logged, "SELECT 1", "SELECT 1").result()
    assert outcome.kind == "runtime_error"
    assert gold.kind == "gold_error"
    assert "shop.sqlite-" in outcome.message
    assert "a copy cannot be made" in gold.message


def test_copies_are_deleted_when_the_process_ends_or_by_the_next(logged: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    code = "import os, sys\nfrom sqlr1_jax.sql.database import readable_file\n"
    code += "print(readable_file(sys.argv[1]), flush=True)"

    def copy(end: str) -> Path:
        environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
        command = [sys.executable, "-c", f"{code}\n{end}", str(logged)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return Path(done.stdout.strip())

    assert copy("").parents[1] == tmp_path / "tmp"
    assert list((tmp_path / "tmp").iterdir()) == []
    killed = copy("os._exit(9)")
    assert killed.exists()
    copy("")
    assert not killed.exists()
    assert tempfile.gettempdir() != str(tmp_path / "tmp")


def test_a_malformed_entry_of_the_schema_does_not_stop_a_log(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE sale (amount); INSERT INTO sale VALUES (7)")
    damage = "PRAGMA writable_schema = ON; INSERT INTO sqlite_master VALUES ('table', 'lost', 'lost', 2, 'CREATE')"
    _commit_to_log(path, f"UPDATE sale SET amount = 8; {damage}")
    assert Path(f"{path}-wal").stat().st_size > 0
    assert _sum(path) == 8
