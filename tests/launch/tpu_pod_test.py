"""Tests launch/tpu_pod.sh with a fake gcloud that records its arguments and runs the workers' commands locally."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_pod.sh"
SLICE = ("--name=pod", "--type=v5litepod-16", "--zone=us-west4-a")
GCLOUD = """#!/usr/bin/env python3
import json, os, shutil, subprocess, sys
with open(os.environ["GCLOUD_LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
verb, rest = sys.argv[4], sys.argv[5:]
if verb == "describe":
    print(os.environ.get("DESCRIBED", ""))
    sys.exit(not os.environ.get("DESCRIBED"))
if verb == "scp":
    shutil.copy(rest[0], os.path.join(os.environ["WORKER"], rest[1].partition(":")[2]))
if verb == "ssh":
    command = next(word for word in rest if word.startswith("--command=")).removeprefix("--command=")
    worker = os.environ["WORKER"]
    sys.exit(subprocess.run(["bash", "-c", command], cwd=worker, env=os.environ | {"HOME": worker}).returncode)
"""

pytestmark = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("git")), reason="needs bash and git")


class Cloud(NamedTuple):
    """A repository with the script, a worker's home folder, and the log of the fake gcloud."""

    repository: Path
    worker: Path
    gcloud_log: Path
    environment: dict[str, str]

    def launch(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.bash(str(self.repository / "launch" / "tpu_pod.sh"), *arguments, **environment)

    def bash(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *arguments], env=self.environment | environment, capture_output=True, text=True, timeout=300
        )

    def gcloud_calls(self) -> list[list[str]]:
        """Arguments of each gcloud call since this method was last called, without `compute tpus tpu-vm`."""
        lines = self.gcloud_log.read_text().splitlines() if self.gcloud_log.exists() else []
        self.gcloud_log.unlink(missing_ok=True)
        return [json.loads(line)[3:] for line in lines]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    repository, worker, programs = tmp_path / "repo sitory", tmp_path / "worker", tmp_path / "bin"
    for folder in (repository / "launch", worker / "venv", worker / ".local" / "bin", programs):
        folder.mkdir(parents=True)
    shutil.copy(SCRIPT, repository / "launch")
    _write_executable(programs / "gcloud", GCLOUD)
    _write_executable(worker / ".local" / "bin" / "uv", "#!/bin/sh\necho uv in $VIRTUAL_ENV: $*\n")
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "the script"]):
        subprocess.run([*git, *arguments], check=True)
    paths = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "GCLOUD_LOG": str(tmp_path / "gcloud.log"),
        "WORKER": str(worker),
    }
    environment = dict(os.environ) | paths | {"TMPDIR": str(tmp_path)}
    return Cloud(repository, worker, tmp_path / "gcloud.log", environment)


def _write_executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_commands_of_a_dry_run_can_be_pasted_into_a_shell(cloud: Cloud) -> None:
    command = ("bash", "-c", "echo \"it's\" '$HOME' > output; exit 0")
    dry = cloud.launch(*SLICE, "--project=my-project", "--dry-run", "--delete", "--spot", "--", *command)
    assert dry.returncode == 0, dry.stderr
    assert cloud.gcloud_calls() == [], "a dry run does not call gcloud"

    real = cloud.launch(*SLICE, "--project=my-project", "--delete", "--spot", "--", *command)
    assert real.returncode == 0, real.stderr
    describe, *calls = cloud.gcloud_calls()
    assert [call[0] for call in calls] == ["create", "scp", "ssh", "ssh", "delete"]
    assert describe[0] == "describe"

    pasted = cloud.bash("-c", dry.stdout)
    assert pasted.returncode == 0, pasted.stderr
    assert cloud.gcloud_calls() == calls
    assert (cloud.worker / "sqlr1_jax" / "output").read_text() == "it's $HOME\n"


def test_slice_is_created_with_the_given_options(cloud: Cloud) -> None:
    cloud.launch(*SLICE, "--project=my-project", "--spot", "--", "true")
    create = next(call for call in cloud.gcloud_calls() if call[0] == "create")
    assert create == [
        "create", "pod", "--zone=us-west4-a", "--project=my-project", "--accelerator-type=v5litepod-16",
        "--version=v2-alpha-tpuv5-lite", "--spot",
    ]  # fmt: skip


def test_existing_slice_is_used(cloud: Cloud) -> None:
    done = cloud.launch(*SLICE, "--", "true", DESCRIBED="READY\tv5litepod-16")
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in cloud.gcloud_calls()] == ["describe", "scp", "ssh", "ssh"]


def test_preempted_slice_is_deleted_and_created_again(cloud: Cloud) -> None:
    cloud.launch(*SLICE, "--", "true", DESCRIBED="PREEMPTED\tv5litepod-16")
    assert [call[0] for call in cloud.gcloud_calls()][:3] == ["describe", "delete", "create"]


@pytest.mark.parametrize(
    ("described", "message"),
    [("READY\tv5litepod-8", "slice pod is a v5litepod-8"), ("CREATING\tv5litepod-16", "slice pod is CREATING")],
)
def test_slice_of_another_type_or_state_is_an_error(cloud: Cloud, described: str, message: str) -> None:
    done = cloud.launch(*SLICE, "--", "true", DESCRIBED=described)
    assert done.returncode == 2
    assert message in done.stderr
    assert [call[0] for call in cloud.gcloud_calls()] == ["describe"]


def test_only_tracked_files_are_copied_to_workers(cloud: Cloud) -> None:
    (cloud.repository / "runs").mkdir()
    (cloud.repository / "runs" / "secret").write_text("not tracked")
    done = cloud.launch(*SLICE, "--", "true", DESCRIBED="READY\tv5litepod-16")
    assert f"uv in {cloud.worker}/venv: pip install --quiet -e ./sqlr1_jax[tpu]" in done.stdout
    assert (cloud.worker / "sqlr1_jax" / "launch" / "tpu_pod.sh").read_text() == SCRIPT.read_text()
    assert not (cloud.worker / "sqlr1_jax" / "runs").exists()


def test_log_is_streamed_and_exit_status_is_returned(cloud: Cloud) -> None:
    command = ("bash", "-c", "echo first; sleep 0.2; echo last; exit 7")
    done = cloud.launch(*SLICE, "--delete", "--", *command, DESCRIBED="READY\tv5litepod-16")
    assert done.returncode == 7
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()][-2:] == ["first", "last"]
    assert "delete" not in [call[0] for call in cloud.gcloud_calls()], (
        "the slice of a failed run is kept for inspection"
    )


@pytest.mark.parametrize(("statuses", "runs"), [("75 1 0", 3), ("78 0", 1), ("75 78 0", 2), ("75 75 75 0", 3)])
def test_a_command_runs_again_unless_something_has_to_be_mended(cloud: Cloud, statuses: str, runs: int) -> None:
    (cloud.worker / "statuses").write_text(statuses.replace(" ", "\n") + "\n")
    command = ("bash", "-c", 'echo >> ../runs; status=$(head -1 ../statuses); sed -i 1d ../statuses; exit "$status"')
    done = cloud.launch(*SLICE, "--restarts=2", "--", *command, DESCRIBED="READY\tv5litepod-16", RESTART_SECONDS="0")
    assert len((cloud.worker / "runs").read_text().splitlines()) == runs, done.stderr
    assert done.returncode == int(statuses.split()[runs - 1])
    assert done.stderr.count("the command ended with status") == runs - 1


def test_run_in_progress_is_followed(cloud: Cloud) -> None:
    (cloud.worker / "sqlr1_jax").mkdir()
    (cloud.worker / "run.log").write_text("step 12\n")
    # Its shell exits, so that the process does not become a zombie, which `kill -0` would report as alive.
    cloud.bash("-c", f"cd {cloud.worker}; (sleep 1; echo 0 > run.status) > /dev/null 2>&1 & echo $! > run.pid")
    done = cloud.launch(*SLICE, "--", "touch", "again", DESCRIBED="READY\tv5litepod-16")
    assert done.returncode == 0, done.stderr
    assert "step 12" in done.stdout
    assert not list((cloud.worker / "sqlr1_jax").iterdir()), "the run's files were replaced, or a second run started"


def test_bucket_is_mounted_on_every_worker(cloud: Cloud) -> None:
    done = cloud.launch(*SLICE, "--bucket=gs://my-bucket/some runs/a", "--dry-run", "--", "true")
    mount = "gcsfuse --implicit-dirs --rename-dir-limit=200000 '\\''--only-dir=some runs/a'\\'' my-bucket /runs"
    assert f"mountpoint -q /runs || {mount}'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SLICE[1:], "--", "true"), "--name is missing"),
        ((*SLICE[:1], *SLICE[2:], "--", "true"), "--type is missing"),
        ((*SLICE[:2], "--", "true"), "--zone is missing"),
        (SLICE, "no command"),
        ((*SLICE, "--bucket=my-bucket", "--", "true"), "takes gs://NAME"),
        ((*SLICE, "--zones=here", "--", "true"), "--zones=here is not an option"),
        ((*SLICE, "--restarts=x", "--", "true"), "--restarts=x takes a number"),
        (("--name", "pod"), "as in --name=VALUE"),
        (("--name=pod", "--type=h100-8", "--zone=z", "--dry-run", "--", "true"), "--type=h100-8 is unknown"),
    ],
)
def test_wrong_arguments_are_errors_that_name_them(cloud: Cloud, arguments: tuple[str, ...], message: str) -> None:
    done = cloud.launch(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert cloud.gcloud_calls() == []
