from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "restart.sh"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


def _restart(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60)


def _command(folder: Path, *statuses: int) -> tuple[str, ...]:
    """A command that exits with the next of these statuses each time; the last one stays."""
    (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    take = 'cd "$0"; echo >> calls; status=$(head -1 statuses); [ $(wc -l < statuses) -eq 1 ] || sed -i 1d statuses'
    return "bash", "-c", f"{take}; exit $status", str(folder)


def _calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


@pytest.mark.parametrize(
    ("statuses", "calls"),
    [((0,), 1), ((2,), 1), ((78,), 1), ((75, 0), 2), ((1, 134, 137, 78), 4), ((75,), 4)],
)
def test_a_command_runs_again_unless_it_is_done_or_something_has_to_be_mended(
    tmp_path: Path, statuses: tuple[int, ...], calls: int
) -> None:
    done = _restart("--restarts=3", "--seconds=0", "--", *_command(tmp_path, *statuses))
    assert (done.returncode, _calls(tmp_path)) == (statuses[-1], calls), done.stderr
    assert done.stderr.count("restart.sh: the command ended with status") == calls - 1


@contextlib.contextmanager
def _started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The script in progress, in a session of its own that is killed at the end."""
    process = subprocess.Popen(
        ["bash", str(SCRIPT), *arguments], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # Where a shell started the tests in the background, SIGINT is ignored, and a shell cannot trap it then.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_ends_the_restarts(tmp_path: Path, number: signal.Signals) -> None:
    save = "trap 'sleep 0.3; echo saved >> calls; exit 75' INT TERM; echo >> calls; while :; do sleep 0.05; done"
    with _started(tmp_path, "--seconds=0", "--", "bash", "-c", save) as process:
        while not (tmp_path / "calls").exists():
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=30) == 75
    assert (tmp_path / "calls").read_text() == "\nsaved\n"


def test_a_signal_between_two_runs_ends_the_restarts(tmp_path: Path) -> None:
    with _started(tmp_path, "--seconds=60", "--", *_command(tmp_path, 75)) as process:
        assert process.stderr and "restart 1 of 10 in 60 s" in process.stderr.readline()
        process.terminate()
        assert process.wait(timeout=30) == 75
    assert _calls(tmp_path) == 1


def test_a_dry_run_prints_the_command_and_runs_nothing(tmp_path: Path) -> None:
    done = _restart("--dry-run", "--", "touch", str(tmp_path / "a file"))
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    assert done.stdout.startswith("touch ") and "a\\ file" in done.stdout and "at most 10 times" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no command"),
        (("--restarts=many", "--", "true"), "--restarts=many takes a number"),
        (("--again", "--", "true"), "--again is not an option"),
    ],
)
def test_wrong_arguments_are_errors_that_name_them(arguments: tuple[str, ...], message: str) -> None:
    done = _restart(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
