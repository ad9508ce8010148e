"""The key of an evaluation's results: digests of the weights, of the questions with their data, and of settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax

from sqlr1_jax.distributed.checksums import checksums
from sqlr1_jax.evaluate.heldout import HeldoutSet, Question, prompt_settings
from sqlr1_jax.sql.database import content_hash
from sqlr1_jax.train.context import RunContext


def content_key(context: RunContext, params: Any, sets: Sequence[HeldoutSet]) -> dict[str, str]:
    """Digests of what decides the results. Equal keys mean equal results, whatever the files are called."""
    config = context.config
    settings = [
        dataclasses.replace(config.evaluate, every=0, subset=0),  # only training reads these two
        dataclasses.replace(config.execute, workers=0, gold_cache_dir=""),  # these two change no result
        config.rollout,
        config.grpo.sampling,
        prompt_settings(context),
        [config.seed, config.model.dtype, config.model.activation_dtype, jax.default_backend()],
    ]
    return key_of(params, [question for heldout in sets for question in heldout.questions], settings)


def key_of(params: Any, questions: Sequence[Question], settings: Sequence[Any]) -> dict[str, str]:
    """Digests of weights, of questions with their prompts and databases, and of settings, each by its str()."""
    asked = [
        [set_name, e.id, e.db_id, e.question, e.sql, p.ids.tolist(), p.opening, p.over_budget]
        for set_name, e, p, _ in questions
    ]
    databases = sorted({question.example.database for question in questions})
    return {
        "weights": weights_digest(params),
        "questions": _digest(asked),
        "databases": _digest([content_hash(str(database)) for database in databases]),
        "settings": _digest([str(setting) for setting in settings]),
    }


def weights_digest(params: Any) -> str:
    """A digest of all parameters, computed where they are: two sums of a hash of each number and its position."""
    leaves = jax.tree.leaves_with_path(params)
    sums = jax.device_get([checksums(leaf) for _, leaf in leaves])
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return _digest(
        [[name, leaf.shape, total.tolist()] for name, (_, leaf), total in zip(names, leaves, sums, strict=True)]
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
