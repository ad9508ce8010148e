from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.sql import executor as executor_module
from sqlr1_jax.sql.executor import Executor, ExecutorError
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.sql.process import WorkerError
from testing import hostile_sql
from testing.damage import few_or_many
from testing.damaged_databases import QUERIES, damaged_databases
from testing.databases import make_malformed

CFG = ExecuteConfig(workers=2, max_steps=2_000_000, wall_seconds=20.0, max_rows=2000)
COUNT_FOR_EVER = "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT count(*) FROM t"
BOMB = "SELECT instr(replace(hex(zeroblob(450000)), '0', 'a'), replace(hex(zeroblob(220000)), '0', 'a') || 'b')"
GOLD = "SELECT color FROM dogs WHERE age > 4"


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(CFG) as executor:
        yield executor


def what(outcome: Outcome) -> tuple:
    """All of an outcome that a run may promise: not how long it took."""
    return dataclasses.astuple(dataclasses.replace(outcome, milliseconds=0.0))


EVERY_KIND = [
    ("SELECT color FROM dogs WHERE age >= 5", GOLD, "match"),
    ("SELECT color FROM dogs WHERE age > 99", "SELECT code FROM dogs WHERE age > 98", "match_empty"),
    ("SELECT DISTINCT age FROM dogs", GOLD, "mismatch"),
    ("SELECT FROM dogs", GOLD, "syntax_error"),
    ("SELECT abs(-9223372036854775807 - 1)", GOLD, "runtime_error"),
    (COUNT_FOR_EVER, GOLD, "timeout"),
    ("SELECT 1 FROM dogs, dogs, dogs, dogs, dogs, dogs", GOLD, "too_large"),
    ("DROP TABLE dogs", GOLD, "denied"),
    (GOLD, "SELECT nope FROM dogs", "gold_error"),
]


def test_every_kind_of_outcome(executor: Executor, pets: Path) -> None:
    futures = [executor.submit(pets, sql, gold) for sql, gold, _ in EVERY_KIND]
    kinds = [future.result().kind for future in futures]
    assert kinds == [kind for _, _, kind in EVERY_KIND]
    assert set(OutcomeKind) - set(kinds) == {OutcomeKind.NO_SQL, OutcomeKind.BAD_FORMAT, OutcomeKind.OK}


def test_an_outcome_tells_all(executor: Executor, pets: Path) -> None:
    outcome = executor.submit(pets, "SELECT age, color FROM dogs WHERE age = 5", "SELECT age FROM dogs").result()
    assert outcome.kind == "mismatch"
    assert outcome.rows == ((5, "red"), (5, "black"))
    assert outcome.columns == ("age", "color")
    assert outcome.gold_rows == ((3,), (5,), (5,), (8,))
    assert (outcome.row_count, outcome.score, outcome.message) == (2, 0.0, "")
    assert len(outcome.result_hash) == 32
    assert outcome.milliseconds > 0
    ran = executor.run(pets, "SELECT color, age FROM dogs WHERE age = 5").result()
    assert (ran.kind, ran.rows, ran.gold_rows) == ("ok", (("red", 5), ("black", 5)), ())


def test_gold_decides_whether_order_counts(executor: Executor, pets: Path) -> None:
    descending = "SELECT color FROM dogs ORDER BY age DESC, code"
    ascending = "SELECT color FROM dogs ORDER BY age, code"
    assert executor.submit(pets, descending, ascending).result().kind == "mismatch"
    assert executor.submit(pets, descending, f"SELECT * FROM ({ascending})").result().kind == "match"


def test_rules_are_chosen_by_name(executor: Executor, pets: Path) -> None:
    sql, gold = "SELECT DISTINCT age, color FROM dogs", "SELECT color, age FROM dogs"
    scores = {rule: executor.submit(pets, sql, gold, rule).result().score for rule in ("spider", "bird", "strict")}
    assert scores == {"spider": 1.0, "bird": 0.0, "strict": 0.0}
    half = executor.submit(pets, "SELECT 1, 3", "SELECT 1, 2", "soft_f1").result()
    assert (half.kind, half.score) == ("mismatch", 0.5)
    with pytest.raises(ValueError, match="spidre"):
        executor.submit(pets, sql, gold, "spidre")


@pytest.mark.parametrize("gold", ["SELECT nope FROM dogs", "", COUNT_FOR_EVER, "DROP TABLE dogs", "SELECT random()"])
def test_defect_01_a_failing_gold_is_never_a_match(executor: Executor, pets: Path, gold: str) -> None:
    for sql in (GOLD, gold, "SELECT nope"):
        outcome = executor.submit(pets, sql, gold).result()
        assert outcome.kind == "gold_error"
        assert outcome.score == 0.0
        assert outcome.message.startswith("the gold query failed (")


def test_defect_04_the_limit_is_one_and_blames_the_right_query(pets: Path) -> None:
    """Steps decide: a runaway prediction is a timeout, a runaway gold a gold_error; no thread is left."""
    threads = threading.active_count()
    with Executor(CFG) as executor:
        start = time.perf_counter()
        runaways = [f"{COUNT_FOR_EVER} WHERE {i}" for i in range(1, 7)]
        outcomes = [executor.submit(pets, sql, GOLD) for sql in runaways]
        golds = [executor.submit(pets, GOLD, sql) for sql in runaways]
        assert {outcome.result().kind for outcome in outcomes} == {"timeout"}
        assert {outcome.result().steps for outcome in outcomes} == {CFG.max_steps}
        assert {outcome.result().kind for outcome in golds} == {"gold_error"}
        assert time.perf_counter() - start < 10.0
        stats = executor.stats()
        assert (stats["sql/timeouts"], stats["sql/wall_kills"]) == (6, 0)
    assert threading.active_count() == threads


def test_defect_04_what_counts_no_steps_is_killed_and_counted(pets: Path) -> None:
    cfg = dataclasses.replace(CFG, wall_seconds=1.0, workers=1)
    with Executor(cfg) as executor:
        assert executor.submit(pets, GOLD, GOLD).result().kind == "match"
        start = time.perf_counter()
        futures = [executor.submit(pets, sql, GOLD) for sql in (f"{GOLD} ", BOMB, f"{GOLD}  ", "SELECT 1")]
        assert [future.result().kind for future in futures] == ["match", "timeout", "match", "mismatch"]
        assert 1.0 < time.perf_counter() - start < 5.0  # the backstop and a worker's start
        slow_golds = [executor.submit(pets, f"SELECT {i}", BOMB) for i in range(20)]
        assert {future.result().kind for future in slow_golds} == {"gold_error"}
        assert executor.stats()["sql/wall_kills"] == 2  # one for the prediction, one for the gold


def test_wall_kill_loses_no_other_answer(pets: Path) -> None:
    """A worker has two batches when it is killed, within either."""
    with Executor(dataclasses.replace(CFG, wall_seconds=1.0, workers=1)) as executor:
        futures = [executor.run(pets, f"{BOMB}, {i}" if i in (3, 30) else f"SELECT {i}") for i in range(60)]
        outcomes = [future.result() for future in futures]
        assert [i for i, outcome in enumerate(outcomes) if outcome.kind != "ok"] == [3, 30]
        assert [outcome.rows for outcome in outcomes if outcome.kind == "ok"] == [
            ((i,),) for i in range(60) if i not in (3, 30)
        ]
        assert executor.stats()["sql/wall_kills"] == 2


CRASHING = """
import os, signal
from sqlr1_jax.sql import sandbox, worker
query = sandbox.Sandbox.query
def fragile(self, database, sql, *more):
    if "CRASH" in sql:
        os.kill(os.getpid(), signal.SIGKILL)
    return query(self, database, sql, *more)
sandbox.Sandbox.query = fragile
worker.main()
"""


@pytest.mark.parametrize("bad", [0, 3, 12, 39])
def test_only_the_query_that_crashes_the_worker_is_blamed(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """A crash loses the answers that the worker has not sent, and the record of which query was running."""
    (tmp_path / "worker.py").write_text(CRASHING)
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} -S -P {tmp_path}/worker.py\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sqlr1_jax.sql.process.sys.executable", str(tmp_path / "python"))
    with Executor(dataclasses.replace(CFG, workers=1)) as executor:
        futures = [executor.run(pets, f"SELECT {i}{' -- CRASH' if i == bad else ''}") for i in range(40)]
        outcomes = [future.result() for future in futures]
        assert [i for i, outcome in enumerate(outcomes) if outcome.kind != "ok"] == [bad]
        assert outcomes[bad].kind == "runtime_error" and "it crashed the worker process twice" in outcomes[bad].message
        golds = [executor.submit(pets, f"SELECT {i}, 2", "SELECT 'CRASH'") for i in range(12)]
        assert {future.result().kind for future in golds} == {"gold_error"}


def test_defect_09_scores_come_from_other_processes_and_nothing_stops_them(pets: Path, tmp_path: Path) -> None:
    """A missing, an empty and a broken database are outcomes; all others are answered, by both workers."""
    (tmp_path / "empty.sqlite").touch()
    (tmp_path / "broken.sqlite").write_bytes(os.urandom(5000))
    bad = [tmp_path / name for name in ("missing.sqlite", "empty.sqlite", "broken.sqlite")]
    copies = [tmp_path / f"{i}.sqlite" for i in range(16)]
    for copy in copies:
        shutil.copy(pets, copy)
    with Executor(CFG) as executor:
        futures = {path: executor.submit(path, GOLD, GOLD) for path in (*bad, *copies)}
        for path in bad:
            outcome = futures[path].result()
            assert outcome.kind == "gold_error"
            assert str(path) in outcome.message
        assert {futures[path].result().kind for path in copies} == {"match"}
        assert {worker.pid for worker in executor.workers}.isdisjoint({os.getpid()})
        assert all(worker.jobs_sent for worker in executor.workers)
        assert executor.run(bad[0], "SELECT 1").result().kind == "runtime_error"


def test_the_same_question_is_asked_once(pets: Path) -> None:
    with Executor(CFG) as executor:
        first = [executor.submit(pets, GOLD, GOLD) for _ in range(8)]
        assert len(set(map(id, first))) == 1
        assert executor.stats()["sql/cache_hits"] == 7
        other = [executor.submit(pets, GOLD, f"{GOLD} "), executor.submit(pets, GOLD, GOLD, "bird")]
        assert [future.result().kind for future in (first[0], *other)] == ["match"] * 3
        assert sum(worker.jobs_sent for worker in executor.workers) == 3
        stats = executor.stats()
        assert stats["sql/cache_hits"] == 0
        assert 0 < stats["sql/p50_ms"] <= stats["sql/p99_ms"] < 1000


def test_answers_do_not_depend_on_order_worker_or_history(pets: Path, tmp_path: Path) -> None:
    copies = [tmp_path / f"{i}.sqlite" for i in range(5)]
    for copy in copies:
        shutil.copy(pets, copy)
    questions = [(path, sql, gold) for path in copies for sql, gold, _ in EVERY_KIND]
    answers = []
    for seed, workers in ((0, 1), (1, 2), (2, 3)):
        shuffled = list(questions)
        random.Random(seed).shuffle(shuffled)
        with Executor(dataclasses.replace(CFG, workers=workers)) as executor:
            futures = {question: executor.submit(*question) for question in shuffled}
            answers.append([what(futures[question].result()) for question in questions])
    assert answers[0] == answers[1] == answers[2]


def test_a_worker_that_dies_is_replaced_and_its_jobs_are_answered(pets: Path) -> None:
    with Executor(dataclasses.replace(CFG, workers=1)) as executor:
        for i in range(3):
            executor.run(pets, f"SELECT {i}").result()
            executor.workers[0].terminate()
            futures = [executor.run(pets, f"SELECT {i}, {j}") for j in range(40)]
            assert {future.result().kind for future in futures} == {"ok"}
        assert executor.stats()["sql/crashes"] == 3


def test_a_worker_is_recycled(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "RECYCLE_AFTER", 5)
    with Executor(dataclasses.replace(CFG, workers=1)) as executor:
        pids = set()
        for i in range(12):
            assert executor.submit(pets, f"SELECT {i}", "SELECT 3").result().kind == ("match" if i == 3 else "mismatch")
            pids.add(executor.workers[0].pid)
        assert len(pids) == 3
        assert executor.stats()["sql/crashes"] == 0


def test_out_of_memory_is_an_outcome_and_the_worker_is_replaced(pets: Path) -> None:
    cfg = dataclasses.replace(CFG, workers=1, heap_bytes=8 * 2**20, max_steps=10**9)
    bomb = "SELECT DISTINCT hex(zeroblob(50000)) || a.code || b.code || c.code || d.code "
    bomb += "FROM dogs a, dogs b, dogs c, dogs d"
    with Executor(cfg) as executor:
        outcome = executor.submit(pets, f"SELECT count(*) FROM ({bomb})", GOLD).result()
        assert (outcome.kind, outcome.message) == ("runtime_error", f"out of memory: SQLite may take {8 * 2**20} bytes")
        first = executor.workers[0].pid
        assert executor.submit(pets, GOLD, GOLD).result().kind == "match"
        assert executor.workers[0].pid != first


def test_an_idle_worker_takes_over_from_a_stuck_one(pets: Path) -> None:
    """All on one database, so all of one worker's; it is stuck, yet the others are answered."""
    with Executor(dataclasses.replace(CFG, wall_seconds=30.0)) as executor:
        executor.run(pets, "SELECT 1").result()
        stuck = executor.run(pets, BOMB)
        time.sleep(0.1)
        quick = [executor.run(pets, f"SELECT {i}, 1").result(timeout=10.0) for i in range(5)]
        assert [outcome.kind for outcome in quick] == ["ok"] * 5
        assert not stuck.done()


def test_submitting_waits_where_too_many_wait(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "MAX_WAITING", 8)
    most = []
    with Executor(dataclasses.replace(CFG, workers=1)) as executor:
        futures = [executor.run(pets, COUNT_FOR_EVER)]
        for i in range(100):
            futures.append(executor.run(pets, f"SELECT {i}"))
            most.append(executor.waiting)
        kinds = [future.result().kind for future in futures]
    assert kinds == ["timeout"] + ["ok"] * 100
    assert max(most) == 8


def test_blocked_submit_raises_when_the_executor_closes(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "MAX_WAITING", 1)
    messages: list[str] = []

    def submit() -> None:
        try:
            for i in range(100):
                executor.run(pets, f"{BOMB} -- {i}")  # type: ignore[attr-defined]
        except ExecutorError as error:
            messages.append(str(error))

    with Executor(dataclasses.replace(CFG, workers=1)) as executor:
        thread = threading.Thread(target=submit)
        thread.start()
        while not executor.waiting:
            time.sleep(0.01)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert len(messages) == 1 and "executor is closed" in messages[0]


def test_closing_does_not_wait_for_running_queries(pets: Path) -> None:
    start = time.perf_counter()
    with Executor(CFG) as executor:
        executor.run(pets, "SELECT 1").result()
        futures = [executor.run(pets, f"{BOMB} + {i}") for i in range(100)]
        time.sleep(0.1)
        workers = [worker.pid for worker in executor.workers]
    assert time.perf_counter() - start < 5.0
    for future in futures:
        with pytest.raises((CancelledError, ExecutorError)):
            future.result(timeout=1.0)
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(ExecutorError, match="closed"):
        executor.run(pets, "SELECT 1")


def test_closed_executor_leaves_no_thread_and_no_descriptor(pets: Path) -> None:
    def threads_and_descriptors() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    before = threads_and_descriptors()
    for _ in range(3):
        with Executor(CFG) as executor:
            assert executor.submit(pets, GOLD, GOLD).result().kind == "match"
            executor.workers[0].terminate()
    assert threads_and_descriptors() == before


def test_workers_that_cannot_start_are_an_error_for_all_waiting_callers(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Executor(CFG) as executor:
        for _ in range(2):
            with pytest.raises((WorkerError, ExecutorError, CancelledError), match=r"does not start|closed"):
                executor.run(pets, "SELECT 1").result(timeout=5.0)


def test_executor_works_without_jax(pets: Path, tmp_path: Path) -> None:
    """The parent and the workers need only the standard library."""
    for name in ("jax", "jaxlib", "flax", "numpy", "ml_collections", "sqlglot"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not for SQL')\n")
    code = """
import sys, types
from sqlr1_jax.sql.executor import Executor
import dataclasses
Cfg = dataclasses.make_dataclass("Cfg", eval(sys.argv[2]), frozen=True)
with Executor(Cfg(*eval(sys.argv[3]))) as executor:
    print(executor.submit(sys.argv[1], "SELECT 4", "SELECT count(*) FROM dogs ORDER BY 1").result().kind)
"""
    settings = dataclasses.asdict(CFG)
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[2])))
    command = [sys.executable, "-c", code, str(pets), repr(list(settings)), repr(list(settings.values()))]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout == "match\n"


def test_outcomes_do_not_depend_on_the_load_of_the_machine(pets: Path) -> None:
    corpus = [sql for _, sql, _ in hostile_sql.CORPUS if not hostile_sql.outlives_its_steps(sql)]
    corpus = list(dict.fromkeys([*corpus, *hostile_sql.fuzzed(7, 400)]))
    gold = "SELECT age FROM dogs"

    def scored() -> tuple[list[tuple], float]:
        with Executor(CFG) as executor:
            futures = [executor.submit(pets, sql, gold, "bird") for sql in [gold, *corpus]]
            return [what(future.result()) for future in futures], executor.stats()["sql/wall_kills"]

    idle, kills = scored()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        assert scored() == (idle, kills) and kills == 0
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert len(corpus) >= 500
    assert {one[0] for one in idle} >= {"match", "mismatch"} | hostile_sql.ANY - {"ok"}


def test_a_match_is_repeated_and_timed(executor: Executor, pets: Path) -> None:
    slow = f"{GOLD} AND (SELECT count(*) FROM dogs, dogs AS b, dogs AS c, dogs AS d, dogs AS e) > 0"
    outcome = executor.submit(pets, GOLD, slow, "bird", repeats=3).result()
    assert outcome.kind == "match"
    assert len(outcome.times) == 3
    assert all(gold > took > 0 for gold, took in outcome.times)
    assert executor.submit(pets, "SELECT 1", GOLD, "bird", repeats=3).result().times == ()
    assert executor.submit(pets, GOLD, GOLD, "bird").result().times == ()


def test_an_official_rule_judges_as_the_official_code(executor: Executor, pets: Path) -> None:
    in_window = "SELECT code, rank() OVER (ORDER BY code) FROM dogs"
    pairs = [
        (in_window, f"SELECT * FROM ({in_window}) ORDER BY 1 DESC", "match", "mismatch"),  # the letters decide
        ("SELECT 1, 1.5", "SELECT 1.0, 1.5", "match", "mismatch"),
        ("SELECT 1 WHERE 0", "-- nothing", "syntax_error", "match_empty"),
    ]
    for gold, sql, ours, theirs in pairs:
        assert executor.submit(pets, sql, gold, "spider").result().kind == ours
        assert executor.submit(pets, sql, gold, "official_spider").result().kind == theirs
    assert executor.submit(pets, "DELETE FROM dogs", "SELECT 1 WHERE 0", "official_bird").result().kind == "denied"


@pytest.mark.parametrize("text", ["CREATE TABLE street (id INTEGER", b"CREATE TABLE street (\xff\xfe"])
def test_a_malformed_entry_of_the_schema_costs_the_queries_on_it_alone(
    executor: Executor, tmp_path: Path, text: str | bytes
) -> None:
    path = make_malformed(tmp_path / "parts.sqlite", text)
    gold = "SELECT name FROM city ORDER BY id"
    assert executor.submit(path, "SELECT id FROM city", gold).result().kind == "mismatch"
    assert executor.submit(path, gold, "SELECT name FROM city ORDER BY city.id").result().kind == "match"
    assert "no such table: street" in executor.run(path, "SELECT * FROM street").result().message
    official = executor.submit(path, gold, gold, "official_bird").result()  # the official code can read no table
    assert official.kind == "gold_error" and "malformed database schema" in official.message
    assert executor.stats()["sql/crashes"] == 0


@few_or_many
def test_damaged_databases_cost_no_worker_and_no_other_answer(tmp_path: Path, pets: Path, count: int) -> None:
    with Executor(dataclasses.replace(CFG, workers=1, wall_seconds=2.0)) as executor:
        for damage, path in damaged_databases(tmp_path, count):
            sound = executor.submit(pets, GOLD, f"{GOLD} AND {path.stem} = {path.stem}")
            futures = [executor.run(path, sql) for sql in QUERIES]
            futures += [executor.submit(path, sql, sql, "official_bird") for sql in QUERIES]
            kinds = {future.result(timeout=60).kind for future in futures}
            assert kinds <= hostile_sql.ANY | {"match", "match_empty", "gold_error"}, damage
            assert sound.result(timeout=60).kind == "match"
            stats = executor.stats()
            # Only count(*) of a tree whose pages refer to one another is a single step that does not end.
            assert stats["sql/wall_kills"] <= 2 * damage.startswith("page loop"), (damage, path)
            assert stats["sql/crashes"] == 0, (damage, path)
        status = Path(f"/proc/{executor.workers[0].pid}/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) * 1024 < CFG.heap_bytes
