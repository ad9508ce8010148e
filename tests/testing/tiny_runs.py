"""Whole runs, very small: settings, command lines, and processes to run them in."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from sqlr1_jax import config, presets

REPOSITORY = Path(__file__).parents[2]

# Enough for every branch. Random weights answer nothing right, so all groups are kept and entropy moves the weights.
SETTINGS: dict[str, Any] = {
    "data.synth.sft_databases": 6,
    "data.synth.sft_questions": 4,
    "data.synth.grpo_databases": 3,
    "data.synth.grpo_questions": 4,
    "data.synth.heldout_databases": 3,
    "data.synth.heldout_questions": 2,
    "data.synth.newnames_databases": 2,
    "data.synth.newnames_questions": 2,
    "data.synth.workers": 1,
    "sft.steps": 4,
    "sft.databases": 2,
    "sft.questions": 4,
    "sft.rows.per_microbatch": 2,
    "grpo.steps": 4,
    "grpo.prompts": 2,
    "grpo.samples": 3,
    "grpo.sampling.max_tokens": 8,
    "grpo.entropy": 0.5,
    "grpo.kl": 0.1,
    "grpo.advantage.keep": "all",
    "grpo.rows.per_microbatch": 2,
    "evaluate.every": 2,
    "evaluate.subset": 3,
    "evaluate.votes": 2,
    "evaluate.max_concurrent_prompts": 4,
    "checkpoint.every": 2,
    "execute.workers": 1,
    "export.step": "last",
}


def tiny_config(**changed: Any) -> config.Config:
    """A smaller smoke config. `changed` sets settings, with __ for a dot: grpo__steps=3 sets grpo.steps."""
    tree = presets.get("smoke")
    values = SETTINGS | {name.replace("__", "."): value for name, value in changed.items()}
    for path, value in values.items():
        *groups, last = path.split(".")
        node = tree
        for group in groups:
            node = node[group]
        node[last] = value
    return config.freeze(tree)


def command_line(home: Path, workdir: Path, **changed: Any) -> list[str]:
    """Flags of `main` for the same settings, a run in `workdir` and the model in <home>/model."""
    values = SETTINGS | {"model.path": str(home / "model")}
    values |= {name.replace("__", "."): value for name, value in changed.items()}
    lines = [f"--config.{name}={value}" for name, value in values.items()]
    return ["--config=configs/grpo.py:smoke", f"--workdir={workdir}", *lines]


def environment(home: Path) -> dict[str, str]:
    """The environment of a process on one device that shares a compilation cache with the next one."""
    return os.environ | {
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run_python(home: Path, command: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs python with these arguments.

    Raises:
      AssertionError: it fails and `check` is true; the message has the end of its output.
    """
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment(home), capture_output=True, text=True, timeout=550,
        check=False,
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def start_hosts(
    home: Path, command: Sequence[str], hosts: int = 2, stderr: int = subprocess.STDOUT
) -> list[subprocess.Popen[str]]:
    """Starts python with these arguments on several hosts of one run; their output is piped."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = environment(home) | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(hosts)}
    return [
        subprocess.Popen(
            [sys.executable, *command], cwd=REPOSITORY, env=shared | {"JAX_PROCESS_ID": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=stderr,
        )
        for rank in range(hosts)
    ]  # fmt: skip


def run_on_hosts(home: Path, command: Sequence[str], hosts: int = 2) -> list[str]:
    """Runs python with these arguments on several hosts of one run; returns the last line that each printed.

    Raises:
      AssertionError: a host fails; the message has the end of its output.
    """
    processes = start_hosts(home, command, hosts)
    with ThreadPoolExecutor(hosts) as threads:  # a full pipe would stop the one that is not read
        waiting = [threads.submit(process.communicate, timeout=550) for process in processes]
        for done in as_completed(waiting):
            text = done.result()[0]
            if processes[waiting.index(done)].returncode:
                for process in processes:
                    process.kill()  # those that wait for it
                raise AssertionError(text[-4000:])
    return [done.result()[0].strip().rpartition("\n")[2] for done in waiting]


def folder_with_data(home: Path, workdir: Path) -> Path:
    """Makes a run's folder with a copy of the data in <home>/data; returns it."""
    shutil.copytree(home / "data", workdir / "data")
    return workdir
