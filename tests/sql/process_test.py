from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import pytest

from sqlr1_jax.config import Execute
from sqlr1_jax.sql.process import Died, WallClock, WorkerError, WorkerProcess

SETTINGS = dataclasses.asdict(Execute())


def test_it_starts_fast_and_answers(pets: Path) -> None:
    start = time.perf_counter()
    worker = WorkerProcess(SETTINGS)
    assert time.perf_counter() - start < 1.0  # does not wait for the process
    worker.send([{"database": str(pets), "sql": "SELECT 1", "gold": None}])
    assert worker.answer(10.0)["kind"] == "ok"
    assert time.perf_counter() - start < 10.0
    assert worker.jobs == 1
    worker.kill()
    worker.kill()


def test_silence_is_noticed_in_time() -> None:
    worker = WorkerProcess(SETTINGS)
    worker.send([])
    with pytest.raises(WallClock, match=r"0\.05 s"):
        worker.answer(0.05)
    worker.kill()


def test_an_end_is_noticed_and_told(pets: Path) -> None:
    worker = WorkerProcess(SETTINGS)
    worker.send([{"database": str(pets), "sql": "SELECT 1", "gold": None}])
    worker.answer(10.0)
    worker.terminate()
    with pytest.raises(Died, match="exit status -9"):
        worker.answer(10.0)
    worker.kill()


def test_a_worker_that_never_serves_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    worker = WorkerProcess(SETTINGS)
    worker.send([])
    with pytest.raises(WorkerError, match="does not start"):
        worker.answer(10.0)
    worker.kill()
