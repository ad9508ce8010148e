"""Refuses to resume a stage on other questions than those it began with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from sqlr1_jax import io
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.record_index import IndexedExamples
from sqlr1_jax.errors import ConfigError

FILE_NAME = "training_data.json"  # in the workdir: the digest of the questions by stage


def check_unchanged(workdir: Path, stage: str, source: str, examples: Sequence[Example]) -> None:
    """Compares the questions with those that the stage's steps so far were made of; before the first, records them.

    The data order depends on the number of questions, so a resumed run would ask some twice and others never.

    Raises:
      ConfigError: they differ.
    """
    path, digest = workdir / FILE_NAME, content_digest(examples)
    known = io.read_json_object(path) if path.exists() else {}
    if known.get(stage) == digest:
        return
    steps = max((int(p.name) for p in (workdir / "checkpoints" / stage).glob("*") if p.name.isdecimal()), default=0)
    if stage in known and steps:
        raise ConfigError(
            f"the questions of {source}, or what config.data.exclude leaves out, changed since step {steps} of {stage} "
            f"in {workdir}. Restore them to resume, or train in another --workdir, from an export that "
            "--config.model.path= names."
        )
    io.write_json(path, known | {stage: digest})


def content_digest(examples: Sequence[Example]) -> str:
    """A digest of the examples in their order, wherever their files are.

    For an indexed source it is one of where its records are: another text of the same length does not change it.
    """
    if isinstance(examples, IndexedExamples):
        return examples.digest()
    digest = hashlib.blake2b(digest_size=16)
    for one in examples:
        fields = [one.id, one.db_id, one.question, one.sql, one.knowledge, one.reasoning]
        digest.update(json.dumps(fields).encode())
    return digest.hexdigest()
