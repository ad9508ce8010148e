from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.sql.database import content_hash
from sqlr1_jax.sql.process import WallTimeout, WorkerProcess
from sqlr1_jax.sql.worker import FrameReader, JobRunner, encode_frame

SETTINGS = dataclasses.asdict(ExecuteConfig(max_steps=1_000_000))
BOMB = "SELECT instr(replace(hex(zeroblob(450000)), '0', 'a'), replace(hex(zeroblob(220000)), '0', 'a') || 'b')"


def job(database: Path, sql: str, gold: str | None = None, **others: Any) -> dict[str, Any]:
    plain = {"gold_result": None, "rule": "spider", "ordered": False, "repeats": 0}
    return {"database": str(database), "sql": sql, "gold_sql": gold} | plain | others


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    worker = WorkerProcess(SETTINGS)
    yield worker
    worker.kill()


def ask(worker: WorkerProcess, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    worker.send(list(jobs))
    return [worker.answer(20.0) for _ in jobs]


def test_defect_03_no_prediction_changes_the_database(worker: WorkerProcess, pets: Path) -> None:
    before = content_hash(pets)
    gold = "SELECT count(*) FROM dogs"
    writes = ["DROP TABLE dogs", "DELETE FROM dogs", "UPDATE dogs SET age = 1", "CREATE TABLE t AS SELECT 1"]
    writes += ["WITH x AS (SELECT 1) DELETE FROM dogs", "DELETE FROM dogs RETURNING 4", "VACUUM"]
    writes += ["CREATE TEMP TABLE dogs AS SELECT * FROM main.dogs WHERE 0", "VACUUM INTO '/tmp/never.sqlite'"]
    answers = ask(worker, *[job(pets, sql, gold) for sql in writes])
    assert [answer["kind"] for answer in answers] == ["denied"] * len(writes)
    assert ask(worker, job(pets, "SELECT 4", gold))[0]["kind"] == "match"
    assert content_hash(pets) == before
    assert [path.name for path in pets.parent.iterdir()] == ["pets.sqlite"]


def test_defect_07_of_several_statements_none_is_run(worker: WorkerProcess, pets: Path) -> None:
    gold = "SELECT count(*) FROM dogs"
    both = [f"{gold}; SELECT 5", f"{gold}; DROP TABLE dogs", f"SELECT 5; {gold}", f"; EXPLAIN {gold}"]
    assert [answer["kind"] for answer in ask(worker, *[job(pets, sql, gold) for sql in both])] == ["denied"] * 4
    assert ask(worker, job(pets, f"{gold}; -- the end", gold))[0]["kind"] == "match"


def test_defect_07_equal_empty_results_are_an_outcome_of_their_own(worker: WorkerProcess, pets: Path) -> None:
    empty, full = "SELECT code FROM dogs WHERE age > 99", "SELECT code FROM dogs"
    answers = ask(worker, job(pets, empty, empty), job(pets, full, empty), job(pets, empty, full), job(pets, "", empty))
    assert [answer["kind"] for answer in answers] == ["match_empty", "mismatch", "mismatch", "syntax_error"]


def test_defect_13_a_pragma_changes_nothing_for_later_queries(worker: WorkerProcess, pets: Path) -> None:
    good = job(pets, "SELECT group_concat(hex(zeroblob(50000))) FROM dogs")
    (before,) = ask(worker, good)
    pragmas = ["PRAGMA hard_heap_limit = 100000", "PRAGMA soft_heap_limit = 1", "PRAGMA max_page_count = 1"]
    pragmas += ["SELECT * FROM pragma_hard_heap_limit(100000)", "/* */ PRAGMA query_only = 0"]
    assert {answer["kind"] for answer in ask(worker, *[job(pets, sql) for sql in pragmas])} == {"denied"}
    (after,) = ask(worker, good)
    assert (after["kind"], after["result_hash"]) == ("ok", before["result_hash"])


def test_answers_are_in_order_and_have_the_outcome(worker: WorkerProcess, pets: Path) -> None:
    gold = "SELECT color, age FROM dogs WHERE age = 5"
    answers = ask(worker, job(pets, "SELECT age, color FROM dogs WHERE age IN (5)", gold), job(pets, "SELECT 1 AS one"))
    assert answers[0]["kind"] == "match"
    assert answers[0]["rows"] == [[5, "red"], [5, "black"]]
    assert answers[0]["gold_rows"] == [["red", 5], ["black", 5]]
    assert answers[0]["columns"] == ["age", "color"]
    assert (answers[1]["kind"], answers[1]["rows"], answers[1]["columns"]) == ("ok", [[1]], ["one"])


def test_what_is_shown_is_short_and_json(worker: WorkerProcess, pets: Path) -> None:
    (long,) = ask(worker, job(pets, "SELECT a.code FROM dogs a, dogs b, dogs c"))
    assert (len(long["rows"]), long["row_count"]) == (20, 64)
    (odd,) = ask(worker, job(pets, "SELECT hex(zeroblob(5000)), x'00ff', 9e999, CAST(x'ff41' AS TEXT), NULL, 1.5"))
    text, *others = odd["rows"][0]
    assert (len(text), text[-1]) == (201, "…")
    assert others == ["x'00ff'", "inf", "?A", None, 1.5]


def test_steps_follow_gold_when_asked_to(pets: Path) -> None:
    def counting(n: int) -> str:
        return (
            f"WITH RECURSIVE t(a) AS (VALUES (1) UNION ALL SELECT a + 1 FROM t WHERE a < {n}) SELECT max(a) > 0 FROM t"
        )

    settings = SETTINGS | {"gold_factor": 3.0, "min_steps": 10_000, "heap_bytes": 0}
    runner = JobRunner(settings, lambda phase: None)
    kinds = [runner.run(job(pets, counting(n), counting(5000)))["kind"] for n in (5000, 10_000, 50_000)]
    assert kinds == ["match", "match", "timeout"]
    assert runner.run(job(pets, counting(300), "SELECT 1"))["kind"] == "match"  # min_steps
    assert runner.run(job(pets, counting(5000), "SELECT 1"))["kind"] == "timeout"


def test_worker_announces_an_unknown_gold_query(pets: Path) -> None:
    phases: list[str] = []
    runner = JobRunner(SETTINGS | {"heap_bytes": 0}, phases.append)
    for gold in ("SELECT 1", "SELECT 1", "SELECT 2", None):
        runner.run(job(pets, "SELECT 1", gold))
    assert phases == ["gold", "prediction"] * 2


def test_killed_gold_and_killed_prediction_have_different_outcomes(pets: Path) -> None:
    for sql, gold, phase in ((BOMB, "SELECT 1", "prediction"), ("SELECT 1", BOMB, "gold")):
        worker = WorkerProcess(SETTINGS)
        worker.send([job(pets, "SELECT 2", "SELECT 2"), job(pets, sql, gold), job(pets, "SELECT 3")])
        assert worker.answer(20.0)["kind"] == "match"
        with pytest.raises(WallTimeout) as caught:
            worker.answer(1.0)
        assert caught.value.phase == phase
        worker.kill()


def test_operating_system_limits_are_set(worker: WorkerProcess, pets: Path) -> None:
    ask(worker, job(pets, "SELECT 1"))
    for limit, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 256)):
        assert resource.prlimit(worker.pid, limit)[0] == value
    assert resource.prlimit(worker.pid, resource.RLIMIT_AS)[0] < 2 * 2**30


def test_worker_inherits_neither_environment_nor_descriptors(
    worker: WorkerProcess, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    fresh = WorkerProcess(SETTINGS)
    ask(fresh, job(pets, "SELECT 1"))
    proc = Path(f"/proc/{fresh.pid}")
    if not proc.exists():
        pytest.skip("no /proc on this system")
    assert b"hunter2" not in (proc / "environ").read_bytes()
    assert os.readlink(proc / "cwd") == "/"
    open_files = {os.readlink(fd) for fd in (proc / "fd").iterdir()}
    expected = {str(pets), "/dev/null"}
    assert {name for name in open_files if not name.startswith("pipe:")} - {os.readlink("/proc/self/fd/2")} == expected
    fresh.kill()


def test_worker_imports_only_the_standard_library_and_this_package() -> None:
    code = "import sys, sqlr1_jax.sql.worker; print(*sys.modules)"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-S", "-P", "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True)
    names = {name.partition(".")[0] for name in done.stdout.split()} - {"sqlr1_jax", "__main__", "__mp_main__"}
    assert names <= set(sys.stdlib_module_names)
    assert "sqlr1_jax.config" not in done.stdout.split()


def test_worker_ends_with_its_parent(pets: Path) -> None:
    """A parent killed by SIGKILL leaves no worker behind, not even one inside a query."""
    code = f"""
import json, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from sqlr1_jax.sql.process import WorkerProcess
worker = WorkerProcess(json.loads(sys.argv[1]) | {{"wall_seconds": 0.1}})
worker.send([{{"database": {str(pets)!r}, "sql": sys.argv[2], "gold_sql": None, "rule": "", "ordered": False}}])
print(worker.pid, flush=True)
time.sleep(60)
"""
    for sql in ("SELECT 1", BOMB):
        with subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(SETTINGS), sql], stdout=subprocess.PIPE
        ) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            time.sleep(0.2)
            parent.kill()
        deadline = time.monotonic() + 10.0
        while Path(f"/proc/{pid}").exists() and _is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interrupt_is_for_the_parent(worker: WorkerProcess, pets: Path) -> None:
    ask(worker, job(pets, "SELECT 1"))
    os.kill(worker.pid, signal.SIGINT)
    assert ask(worker, job(pets, "SELECT 1"))[0]["kind"] == "ok"


MESSAGES = st.recursive(
    st.none() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(MESSAGES.filter(lambda message: message is not None), max_size=4), st.integers(1, 7))
def test_frames_read_back_as_written_however_they_arrive(messages: list[Any], size: int) -> None:
    data = b"".join(map(encode_frame, messages))
    reader, got = FrameReader(), []
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while (message := reader.next()) is not None:
            got.append(message)
    assert got == messages
