from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import pytest

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.sql.process import WallTimeout, WorkerDied, WorkerError, WorkerProcess

SETTINGS = dataclasses.asdict(ExecuteConfig())


def test_process_starts_quickly_and_answers(pets: Path) -> None:
    start = time.perf_counter()
    worker = WorkerProcess(SETTINGS)
    assert time.perf_counter() - start < 1.0  # does not wait for the process
    worker.send([{"database": str(pets), "sql": "SELECT 1", "gold_sql": None}])
    assert worker.answer(10.0)["kind"] == "ok"
    assert time.perf_counter() - start < 10.0
    assert worker.jobs_sent == 1
    worker.kill()
    worker.kill()


def test_silence_is_noticed_in_time() -> None:
    worker = WorkerProcess(SETTINGS)
    worker.send([])
    with pytest.raises(WallTimeout, match=r"0\.05 s"):
        worker.answer(0.05)
    worker.kill()


def test_end_of_the_process_is_detected_and_reported(pets: Path) -> None:
    worker = WorkerProcess(SETTINGS)
    worker.send([{"database": str(pets), "sql": "SELECT 1", "gold_sql": None}])
    worker.answer(10.0)
    worker.terminate()
    with pytest.raises(WorkerDied, match="exit status -9"):
        worker.answer(10.0)
    worker.kill()


def test_worker_that_never_serves_has_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    worker = WorkerProcess(SETTINGS)
    worker.send([])
    with pytest.raises(WorkerError, match="does not start"):
        worker.answer(10.0)
    worker.kill()


def test_jobs_and_answers_larger_than_the_pipe_buffers_do_not_deadlock(pets: Path) -> None:
    """Six megabytes of jobs are sent before an answer is read, and the answers are as large."""
    cells = ", ".join(f"printf('%0200d', {i})" for i in range(40))
    rows = "(SELECT 1 FROM dogs a, dogs b LIMIT 20)"
    jobs = [{"database": str(pets), "sql": f"SELECT {i}, {cells} FROM {rows} -- {'x' * 90_000}", "gold_sql": None}
            for i in range(64)]  # fmt: skip
    worker = WorkerProcess(SETTINGS)
    for first in range(0, 64, 8):
        worker.send(jobs[first : first + 8])
    answers = [worker.answer(10.0) for _ in jobs]
    assert [answer["rows"][-1][0] for answer in answers] == list(range(64))
    assert {len(answer["rows"]) for answer in answers} == {16}  # of four dogs
    assert worker.jobs_sent == 64
    worker.kill()


def test_sending_to_one_that_hangs_does_not_wait(pets: Path) -> None:
    settings = SETTINGS | {"max_steps": 10**12}
    runaway = "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT count(*) FROM t"
    worker = WorkerProcess(settings)
    worker.send([{"database": str(pets), "sql": runaway, "gold_sql": None}])
    worker.send([{"database": str(pets), "sql": f"SELECT 1 -- {'x' * 90_000}", "gold_sql": None}] * 8)
    with pytest.raises(WallTimeout):
        worker.answer(0.5)
    worker.kill()
