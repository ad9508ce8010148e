"""Tests launch/slurm.sbatch with fake Slurm commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


def _run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the batch script as job 42 on a node of 4 GPUs; scontrol writes its arguments into folder/requeued."""
    for name, text in (
        ("srun", '#!/bin/sh\necho "devices $JAX_LOCAL_DEVICE_IDS, $1"; shift; exec "$@"\n'),
        ("scontrol", f'#!/bin/sh\necho "$*" >> "{folder}/requeued"\n'),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "42", "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(SCRIPT), *command], env=dict(os.environ) | slurm | environment, capture_output=True, text=True
    )


def test_one_process_of_a_node_has_all_of_its_gpus(tmp_path: Path) -> None:
    done = _run(tmp_path, "echo", "hello  there")
    assert (done.returncode, done.stdout) == (0, "devices 0,1,2,3, --kill-on-bad-exit=1\nhello  there\n")
    assert "#SBATCH --ntasks-per-node=1\n" in SCRIPT.read_text()


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (78, False), (75, True), (1, True)])
def test_the_job_is_requeued_unless_it_is_done_or_something_has_to_be_mended(
    tmp_path: Path, status: int, requeued: bool
) -> None:
    done = _run(tmp_path, "bash", "-c", f"exit {status}", RESTARTS="3", SLURM_RESTART_COUNT="2")
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 42\n"


def test_a_job_that_was_requeued_often_enough_stays_ended(tmp_path: Path) -> None:
    assert _run(tmp_path, "false", RESTARTS="3", SLURM_RESTART_COUNT="3").returncode == 1
    assert not (tmp_path / "requeued").exists()


def test_a_dry_run_prints_the_command_and_runs_nothing(tmp_path: Path) -> None:
    done = _run(tmp_path, "touch", str(tmp_path / "ran"), DRY_RUN="1")
    assert done.returncode == 0 and not (tmp_path / "ran").exists()
    assert done.stdout.startswith(f"JAX_LOCAL_DEVICE_IDS=0,1,2,3 srun --kill-on-bad-exit=1 touch {tmp_path}/ran\n")


def test_a_missing_command_is_an_error(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: no command")
