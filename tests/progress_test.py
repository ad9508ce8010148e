from __future__ import annotations

import logging
import time

import pytest

from sqlr1_jax.progress import Progress, print_line


def test_a_log_gets_lines_while_one_unit_takes_long(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("checking", 10, "example", seconds=0.01) as progress:
        deadline = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "checking: 0 of 10 examples in " in caplog.messages[0]
        progress.update(4)
        assert "4 of 10 examples" in progress.line() and "left" in progress.line()
    lines = len(caplog.messages)
    time.sleep(0.1)
    assert len(caplog.messages) == lines


def test_what_an_earlier_run_did_does_not_count_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with Progress("evaluating", 1000, "question", done=900) as progress:
        now[0] = 50.0
        assert progress.line() == "evaluating: 900 of 1000 questions in 50 s"
        progress.update(10)
        assert progress.line() == "evaluating: 910 of 1000 questions in 50 s, 0.2 questions/s, 8 min left"


def test_an_error_inside_ends_the_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        with pytest.raises(ZeroDivisionError), Progress("x", 1, "unit", seconds=0.01):
            1 / 0  # noqa: B018
        lines = len(caplog.messages)
        time.sleep(0.1)
        assert len(caplog.messages) == lines


def test_a_command_without_logging_prints_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("checking", 3, "example", seconds=0.01, report=print_line):
        time.sleep(0.2)
    assert "checking: 0 of 3 examples in " in capsys.readouterr().err
