"""Whole runs, very small: their data, a model of one layer, and one run from end to end in a process of its own."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from sqlr1_jax import config, presets

ROOT = Path(__file__).parents[1]

# Enough for every branch. Random weights answer nothing right, so all groups are kept and entropy moves the weights.
SETTINGS: dict[str, Any] = {
    "data.synth.cold_start_databases": 6,
    "data.synth.cold_start_questions": 4,
    "data.synth.grpo_databases": 3,
    "data.synth.grpo_questions": 4,
    "data.synth.heldout_databases": 3,
    "data.synth.heldout_questions": 2,
    "data.synth.newnames_databases": 2,
    "data.synth.newnames_questions": 2,
    "data.synth.workers": 1,
    "cold_start.steps": 4,
    "cold_start.databases": 2,
    "cold_start.questions": 4,
    "cold_start.rows.per_microbatch": 2,
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
    "evaluate.prompts": 4,
    "checkpoint.every": 2,
    "execute.workers": 1,
}


def settings(**changed: Any) -> config.Config:
    """The smoke config made smaller still; `changed` has grpo__steps=3 for grpo.steps."""
    tree = presets.of("smoke")
    values = SETTINGS | {name.replace("__", "."): value for name, value in changed.items()}
    for path, value in values.items():
        *groups, last = path.split(".")
        node = tree
        for group in groups:
            node = node[group]
        node[last] = value
    return config.freeze(tree)


def flags(home: Path, workdir: Path, **changed: Any) -> list[str]:
    """The same as a command line."""
    values = SETTINGS | {"model.path": str(home / "model")}
    values |= {name.replace("__", "."): value for name, value in changed.items()}
    lines = [f"--config.{name}={value}" for name, value in values.items()]
    return ["--config=configs/grpo.py:smoke", f"--workdir={workdir}", *lines]


def environment(home: Path) -> dict[str, str]:
    """Of a process of ours on one device, which keeps what XLA compiled for the next one."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def execute(home: Path, command: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours in a process of its own."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=550,
        check=False,
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def on_hosts(home: Path, command: Sequence[str], hosts: int = 2) -> list[str]:
    """Runs a command as several processes that are hosts of one run; what each printed last.

    Raises AssertionError where one fails, with what it said.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = environment(home) | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(hosts)}
    processes = [
        subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=shared | {"JAX_PROCESS_ID": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(hosts)
    ]  # fmt: skip
    with ThreadPoolExecutor(hosts) as threads:  # a full pipe would stop the one that is not read
        waiting = [threads.submit(process.communicate, timeout=550) for process in processes]
        for done in as_completed(waiting):
            text = done.result()[0]
            if processes[waiting.index(done)].returncode:
                for process in processes:
                    process.kill()  # those that wait for it
                raise AssertionError(text[-4000:])
    return [done.result()[0].strip().rpartition("\n")[2] for done in waiting]


def begin(home: Path, workdir: Path) -> Path:
    """A run's folder whose data is made already."""
    shutil.copytree(home / "data", workdir / "data")
    return workdir


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, as the data stage makes it, and model/: one layer under that tokenizer."""
    from sqlr1_jax.data.synth import generate
    from sqlr1_jax.model import huggingface, tokenizer

    folder = tmp_path_factory.mktemp("home")
    cfg = settings()
    generate.generate(cfg.data.synth, cfg.seed, folder / "data")
    count = tokenizer.count_tokens(folder / "data" / "tokenizer")
    model = dataclasses.replace(small.MODEL, num_layers=1, vocab_size=count + 3, num_tokens=count)
    huggingface.save(folder / "model", small.params(model, scale=3), model, folder / "data" / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went through every stage by the command line; tests only read it."""
    workdir = begin(home, tmp_path_factory.mktemp("runs") / "finished")
    execute(home, ["-m", "sqlr1_jax.main", *flags(home, workdir)])
    return workdir


@pytest.fixture
def context(home: Path, tmp_path: Path) -> Any:
    """A run's context in this process, on one device, before its first stage."""
    from sqlr1_jax.train.context import create_context

    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "data").symlink_to(home / "data")
    made = create_context(settings(model__path=str(home / "model")), workdir)
    return dataclasses.replace(made, mesh=small.one_device())


def completions(context: Any, texts: Sequence[Sequence[str]], length: int = 256) -> Any:
    """What a sampler would hand over had it said these texts, each ended by the stop token; "…" at the end: cut off."""
    from sqlr1_jax.rollout.engine import none_yet

    P, G = len(texts), len(texts[0])
    made = none_yet(P, G, length)
    for p, g in np.ndindex(P, G):
        text = texts[p][g]
        stopped = not text.endswith("…")
        ids = context.tokenizer(text.removesuffix("…"), add_special_tokens=False)["input_ids"]
        ids = [*ids, context.tokenizer.eos_token_id] if stopped else ids
        made.tokens_PGT[p, g, : len(ids)] = ids
        made.logprobs_PGT[p, g, : len(ids)] = -1 - np.arange(len(ids)) % 3
        made.length_PG[p, g], made.stopped_PG[p, g] = len(ids), stopped
    return made


class Scripted:
    """Stands where a sampler does and says what `say(prompt's text, sample)` tells it; remembers what it was asked."""

    prompt_tokens = 96

    def __init__(self, context: Any, say: Callable[[str, int], str]):
        self._context, self._say = context, say
        self.asked: list[tuple[int, int, float, int]] = []  # first prompt, prompts, temperature, step
        self.slots: list[int] = []

    def weights(self, params: Any) -> Any:
        return params

    def compile(self, weights: Any, asked: Any) -> None:
        """Nothing to do for one who only speaks."""

    def rollout(self, weights: Any, asked: Any) -> Any:
        del weights
        self.asked.append((asked.first, len(asked.prompts), asked.settings.temperature, asked.step))
        self.slots.append(asked.slots)
        decoded = [self._context.tokenizer.decode(ids) for ids in asked.prompts]
        texts = [[self._say(text, g) for g in range(asked.samples)] for text in decoded]
        made = completions(self._context, texts, asked.settings.max_tokens)
        if asked.finished:
            asked.finished(made.ended())
        return made
