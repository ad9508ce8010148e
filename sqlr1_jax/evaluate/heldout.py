"""The held-out questions of a run, and the prompts that ask them."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sqlr1_jax import prompt_metadata
from sqlr1_jax.config import DataConfig
from sqlr1_jax.data import templates
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt, PromptRenderer
from sqlr1_jax.model import huggingface, peft_folder
from sqlr1_jax.train.context import RunContext, trains

log = logging.getLogger(__name__)


class Question(NamedTuple):
    """A question to answer."""

    set_name: str
    example: Example
    prompt: Prompt
    number: int  # among the questions of its set; its random numbers depend on it


@dataclasses.dataclass(frozen=True)
class HeldoutSet:
    """Questions that no stage trains on, with their prompts. A prompt over the token budget counts as wrong."""

    name: str
    examples: list[Example]
    prompts: list[Prompt]

    @property
    def questions(self) -> list[Question]:
        """Its questions, in order."""
        pairs = enumerate(zip(self.examples, self.prompts, strict=True))
        return [Question(self.name, example, prompt, i) for i, (example, prompt) in pairs]


def load_heldout_sets(context: RunContext) -> list[HeldoutSet]:
    """The run's held-out sets: "heldout" and "newnames" of the embedded data, only "heldout" of another source."""
    source, settings = context.config.data.evaluate, context.config.evaluate
    names = ["heldout", "newnames"] if source.startswith("synth:") else ["heldout"]
    settings_of_prompts = prompt_settings(context)
    log.info(
        "evaluation asks with prompt %s, form %s, schema %s, at most %d tokens",
        settings_of_prompts.prompt, settings_of_prompts.form, settings_of_prompts.schema,
        settings_of_prompts.max_prompt_tokens,
    )  # fmt: skip
    renderer = PromptRenderer(context.tokenizer, settings_of_prompts)
    sets = []
    for name in names:
        examples = context.examples(source, name)
        examples = choose_databases(examples, settings.databases, settings.limit, context.config.seed)
        if examples:
            sets.append(HeldoutSet(name, examples, renderer.render_many(examples)))
    return sets


def prompt_settings(context: RunContext) -> DataConfig:
    """How evaluation asks: as the run trains, or, if it only evaluates a model, as that model was trained.

    A setting of config.evaluate that is not empty replaces it.
    """
    config = context.config
    data = config.data
    if config.model.path and not trains(config, context.workdir):
        adapter = [peft_folder.resolve_folder(config.model.adapter)] if config.model.adapter else []
        data, _ = prompt_metadata.read(*adapter, huggingface.resolve_folder(config.model.path))
    names = ("form", "prompt", "schema", "instructions", "max_prompt_tokens")
    replaced = {name: value for name in names if (value := getattr(config.evaluate, name))}
    data = dataclasses.replace(data, **replaced)
    if data.prompt in templates.REASONING and not config.evaluate.form:
        data = dataclasses.replace(data, form="reasoning")
    return data


def choose_databases(examples: Sequence[Example], databases: int, limit: int, seed: int) -> list[Example]:
    """The questions that `choose_positions` takes."""
    return [examples[i] for i in choose_positions(examples, databases, limit, seed)]


def choose_positions(examples: Sequence[Example], databases: int, limit: int, seed: int) -> list[int]:
    """Positions of the questions on some databases, ascending; a function of its arguments.

    Args:
      examples: the questions.
      databases: the number of databases to take, each whole; 0: all.
      limit: the most questions to take. They are drawn in turns from all databases, so that each gives about as many;
        0: all.
      seed: of the draw.
    """
    positions_of: dict[str, list[int]] = collections.defaultdict(list)
    for position, example in enumerate(examples):
        positions_of[example.db_id].append(position)
    random = np.random.default_rng([seed, len(positions_of)])
    chosen = [sorted(positions_of)[i] for i in random.permutation(len(positions_of))[: databases or None]]
    shuffled = [random.permutation(positions_of[db_id]).tolist() for db_id in chosen]
    rounds = max(map(len, shuffled), default=0)
    in_turns = [positions[i] for i in range(rounds) for positions in shuffled if i < len(positions)]
    return sorted(in_turns[: limit or None])
