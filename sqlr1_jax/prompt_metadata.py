"""sqlr1.json in an exported folder: the prompt settings that the model was trained with, and its checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sqlr1_jax.config import Config, DataConfig, SamplingConfig, check
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.io import read_json

FILE_NAME = "sqlr1.json"
_PROMPT_SETTINGS = ("prompt", "form", "schema", "instructions", "max_prompt_tokens")  # of DataConfig
_OF_OLDER_EXPORTS = {"prompt": "ours"}  # settings that sqlr1.json may lack, with the value that the export had
# Prompt settings of a model that this package did not export. Instruction-tuned models answer best with a bare block of
# SQL, and on CREATE TABLE statements with values: Qwen2.5-Coder-0.5B-Instruct is right on 58 % of 36 questions of
# Spider's train split with `fixed`, on 47 % with `compact`.
EXTERNAL_MODEL = DataConfig(form="direct", schema="fixed", instructions="full", prompt="ours")


def metadata(config: Config, weights: str) -> dict[str, Any]:
    """The file's content: prompt settings, the longest answer in tokens, and what is exported.

    `weights` is a stage and its step.
    """
    settings = {name: getattr(config.data, name) for name in _PROMPT_SETTINGS}
    export = {"weights": weights, "files": config.export.form, "dtype": config.export.dtype}
    return settings | {"max_tokens": config.grpo.sampling.max_tokens} | export


def write(folder: Path, config: Config, weights: str) -> None:
    """Writes sqlr1.json into an exported folder."""
    (folder / FILE_NAME).write_text(json.dumps(metadata(config, weights), indent=1))


def matches(folder: Path, config: Config, weights: str) -> bool:
    """Whether the folder already holds an export of the same weights under the same settings."""
    path = folder / FILE_NAME
    return path.exists() and read_json(path) == metadata(config, weights)


def read(*folders: Path) -> tuple[DataConfig, int]:
    """The data settings that a model's prompts are made with, and the longest answer in tokens.

    They are in the first of `folders` (the adapter's, the model's) that holds sqlr1.json. If none does, the model was
    not exported by this package: its settings are `EXTERNAL_MODEL`.

    Raises:
      ConfigError: sqlr1.json is broken.
    """
    path = next((folder / FILE_NAME for folder in folders if (folder / FILE_NAME).exists()), None)
    if path is None:
        return EXTERNAL_MODEL, SamplingConfig().max_tokens
    try:
        found = _OF_OLDER_EXPORTS | json.loads(path.read_text())
        settings = {name: found[name] for name in _PROMPT_SETTINGS}
        data = dataclasses.replace(DataConfig(), **settings)
        check(Config(data=data))
        return data, int(found["max_tokens"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error!r}): export the model again.") from None
