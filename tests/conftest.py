"""What all tests share: JAX on eight fake CPU devices, strict about shapes, and the data to develop against."""

from __future__ import annotations

import os

# Before anything imports JAX, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

_PETS = """
CREATE TABLE owners (tag INTEGER PRIMARY KEY, city TEXT /* where they live */, "full name" TEXT);
CREATE TABLE dogs (code INTEGER PRIMARY KEY, color TEXT, age INTEGER, -- in years
    keeper INTEGER REFERENCES owners (tag));
INSERT INTO owners VALUES (1, 'rome', 'Ada Byron'), (2, 'oslo', 'Max Born'), (3, 'rome', 'Lise Meitner');
INSERT INTO dogs VALUES (10, 'red', 3, 1), (11, 'red', 5, 2), (12, 'black', 5, 3), (13, 'white', 8, 3);
"""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, from $SQLR1_DATA or beside the repository; the test is skipped without it."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SQLR1_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set SQLR1_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of dogs and their owners, at <folder>/pets/pets.sqlite."""
    path = tmp_path_factory.mktemp("databases") / "pets" / "pets.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(_PETS)
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded tokenizer, trained on next to nothing: bytes, a few words, Qwen2.5's special tokens, ChatML."""
    from transformers import AutoTokenizer

    from sqlr1_jax.data.synth import tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(["- dogs: code, color\nSELECT color FROM dogs\n"] * 20, ["dogs", "color"], folder)
    return AutoTokenizer.from_pretrained(folder)


from runs import context, finished, home  # noqa: E402, F401, fixtures of whole runs
