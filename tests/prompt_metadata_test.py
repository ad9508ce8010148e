from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sqlr1_jax import config, prompt_metadata
from sqlr1_jax.errors import ConfigError

CFG = dataclasses.replace(
    config.Config(),
    data=config.DataConfig(prompt="omnisql", form="direct", schema="fixed", instructions="full", max_prompt_tokens=777),
    grpo=config.GrpoConfig(sampling=config.SamplingConfig(max_tokens=99)),
)


def test_how_to_ask_survives_the_file(tmp_path: Path) -> None:
    prompt_metadata.write(tmp_path, CFG, "grpo, step 3")
    data, max_tokens = prompt_metadata.read(tmp_path)
    assert (data.form, data.schema, data.instructions, data.max_prompt_tokens) == ("direct", "fixed", "full", 777)
    assert (data.prompt, max_tokens) == ("omnisql", 99)


def test_an_export_without_a_prompt_name_has_our_prompt(tmp_path: Path) -> None:
    prompt_metadata.write(tmp_path, CFG, "grpo, step 3")
    path = tmp_path / prompt_metadata.FILE_NAME
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "prompt"})
    )
    data, _ = prompt_metadata.read(tmp_path)
    assert (data.prompt, data.schema) == ("ours", "fixed")


def test_export_matches_only_its_own_weights_and_dtype(tmp_path: Path) -> None:
    assert not prompt_metadata.matches(tmp_path, CFG, "grpo, step 3")
    prompt_metadata.write(tmp_path, CFG, "grpo, step 3")
    assert prompt_metadata.matches(tmp_path, CFG, "grpo, step 3")
    assert not prompt_metadata.matches(tmp_path, CFG, "grpo, step 4")
    assert not prompt_metadata.matches(
        tmp_path, dataclasses.replace(CFG, export=config.ExportConfig(dtype="bfloat16")), "grpo, step 3"
    )


def test_an_external_model_is_asked_for_a_bare_block(tmp_path: Path) -> None:
    data, _ = prompt_metadata.read(tmp_path)
    assert (data.prompt, data.form, data.schema, data.instructions) == ("ours", "direct", "fixed", "full")


UNKNOWN_SCHEMA = (
    '{"form": "direct", "schema": "none", "instructions": "brief", "max_prompt_tokens": 512, "max_tokens": 64}'
)


@pytest.mark.parametrize("text", ["{", "[]", '{"form": "direct"}', UNKNOWN_SCHEMA])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / prompt_metadata.FILE_NAME).write_text(text)
    with pytest.raises(ConfigError, match=r"sqlr1\.json cannot be read .* export the model again"):
        prompt_metadata.read(tmp_path)
