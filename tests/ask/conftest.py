from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax import config, prompt_metadata
from sqlr1_jax.model import huggingface, tokenizer
from testing import tiny_models


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a model with random weights, whose answers have 16 tokens."""
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    count = tokenizer.count_tokens(folder / "tokenizer")
    shape = dataclasses.replace(tiny_models.MODEL, num_layers=1, vocab_size=count, num_tokens=count)
    huggingface.save_model(folder, tiny_models.random_params(shape), shape, folder / "tokenizer")
    settings = config.GrpoConfig(sampling=config.SamplingConfig(max_tokens=16))
    prompt_metadata.write(folder, config.Config(grpo=settings), "grpo, step 1")
    return folder
