"""sqlr1.json, the note in an exported folder: how the model was trained to be asked, and which weights these are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sqlr1_jax import config
from sqlr1_jax.errors import ConfigError

NAME = "sqlr1.json"
_ASKED = ("form", "schema", "instructions", "max_prompt_tokens")  # of config.Data
# How a model is asked that was not exported here: it never saw our answer form, so it is told.
STRANGER = config.Data(form="reasoning", schema="retrieved", instructions="full")


def note(cfg: config.Config, weights: str) -> dict[str, Any]:
    """What the note says: the settings that a question is put with, and `weights`, a stage and its step."""
    asked = {name: getattr(cfg.data, name) for name in _ASKED}
    return asked | {"max_tokens": cfg.grpo.sampling.max_tokens, "weights": weights, "dtype": cfg.export.dtype}


def write(folder: Path, cfg: config.Config, weights: str) -> None:
    """Writes the note into an export."""
    (folder / NAME).write_text(json.dumps(note(cfg, weights), indent=1))


def matches(folder: Path, cfg: config.Config, weights: str) -> bool:
    """Whether the folder holds an export of these very weights already."""
    path = folder / NAME
    return path.exists() and json.loads(path.read_text()) == note(cfg, weights)


def read(folder: Path) -> tuple[config.Data, int]:
    """How to ask the model in a folder: the data settings, and the most tokens of an answer.

    A folder without a note is a model that was not trained here: `STRANGER`.

    Raises:
      ConfigError: the note is broken.
    """
    path = folder / NAME
    if not path.exists():
        return STRANGER, config.Sampling().max_tokens
    try:
        said = json.loads(path.read_text())
        return dataclasses.replace(config.Data(), **{name: said[name] for name in _ASKED}), int(said["max_tokens"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error!r}): export the model again.") from None
