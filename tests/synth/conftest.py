"""A small data set, generated once for all tests of synth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.config import SynthConfig
from sqlr1_jax.synth.generate import SPLITS, generate

SMALL = SynthConfig(sft_databases=60, grpo_databases=20, heldout_databases=24, newnames_databases=12, workers=1)


@pytest.fixture(scope="session")
def small_config() -> SynthConfig:
    return SMALL


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "data"
    generate(SMALL, 7, folder)
    return folder


@pytest.fixture(scope="session")
def records(data_folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: json.loads((data_folder / f"{split}.json").read_text()) for split in SPLITS}
