"""Fixtures of all tests: JAX on eight fake CPU devices, strict about shapes; data, tiny runs, a pool of SQL workers."""

from __future__ import annotations

import os

# Before anything imports JAX, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # off: commands do not write to the user's cache
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest

from sqlr1_jax import config
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train.context import RunContext
from testing import databases, tiny_models, tiny_runs

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, from $SQLR1_DATA or next to the repository; the test is skipped without it."""
    default = tiny_runs.REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("SQLR1_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set SQLR1_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of dogs and their owners, at <folder>/pets/pets.sqlite."""
    return databases.make_pets(tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded tokenizer trained on a few words: bytes, those words, Qwen2.5's special tokens, ChatML."""
    from transformers import AutoTokenizer

    from sqlr1_jax.synth import tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(["- dogs: code, color\nSELECT color FROM dogs\n"] * 20, ["dogs", "color"], folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    """A pool of one SQL worker."""
    with Executor(config.ExecuteConfig(workers=1)) as executor:
        yield executor


@pytest.fixture(scope="module")
def compiles_fast() -> Iterator[None]:
    """Disables most XLA optimizations, which halves the time of a module that compiles much; used in `pytestmark`."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, as the data stage writes it, and model/, a model of one layer for its tokenizer."""
    from sqlr1_jax.model import huggingface, tokenizer
    from sqlr1_jax.synth import generate

    folder = tmp_path_factory.mktemp("home")
    cfg = tiny_runs.tiny_config()
    generate.generate(cfg.data.synth, cfg.seed, folder / "data")
    count = tokenizer.count_tokens(folder / "data" / "tokenizer")
    model = dataclasses.replace(tiny_models.MODEL, num_layers=1, vocab_size=count + 3, num_tokens=count)
    params = tiny_models.random_params(model, scale=3)
    huggingface.save_model(folder / "model", params, model, folder / "data" / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went through every stage by the command line; tests only read it."""
    workdir = tiny_runs.folder_with_data(home, tmp_path_factory.mktemp("runs") / "finished")
    tiny_runs.run_python(home, ["-m", "sqlr1_jax.main", *tiny_runs.command_line(home, workdir)])
    return workdir


@pytest.fixture
def context(home: Path, tmp_path: Path) -> RunContext:
    """A run's context in this process, on one device, before its first stage."""
    from sqlr1_jax.train.context import create_context

    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "data").symlink_to(home / "data")
    run_context = create_context(tiny_runs.tiny_config(model__path=str(home / "model")), workdir)
    return dataclasses.replace(run_context, mesh=tiny_models.one_device())
