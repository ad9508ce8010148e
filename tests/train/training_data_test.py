from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sqlr1_jax.data.example import Example
from sqlr1_jax.data.record_index import Index, IndexedExamples
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.train.training_data import FILE_NAME, check_unchanged, content_digest

EXAMPLES = [Example(str(i), "pets", Path("pets.sqlite"), f"question {i}", f"SELECT {i}") for i in range(3)]


def make_checkpoint(workdir: Path, step: int) -> None:
    (workdir / "checkpoints" / "grpo" / str(step)).mkdir(parents=True)


def test_a_stage_with_steps_is_not_resumed_on_other_questions(tmp_path: Path) -> None:
    check_unchanged(tmp_path, "grpo", "jsonl:q.jsonl", EXAMPLES)
    make_checkpoint(tmp_path, 4)
    check_unchanged(tmp_path, "grpo", "jsonl:moved/q.jsonl", EXAMPLES)
    for other in (EXAMPLES[:2], EXAMPLES[::-1], [dataclasses.replace(EXAMPLES[0], sql="SELECT 7"), *EXAMPLES[1:]]):
        with pytest.raises(ConfigError, match=r"the questions of jsonl:q.jsonl.* changed since step 4 of grpo"):
            check_unchanged(tmp_path, "grpo", "jsonl:q.jsonl", other)


def test_before_the_first_step_and_without_checkpoints_any_questions_are_taken(tmp_path: Path) -> None:
    check_unchanged(tmp_path, "grpo", "jsonl:q.jsonl", EXAMPLES)
    make_checkpoint(tmp_path, 0)
    check_unchanged(tmp_path, "grpo", "jsonl:q.jsonl", EXAMPLES[:1])
    assert json.loads((tmp_path / FILE_NAME).read_text()) == {"grpo": content_digest(EXAMPLES[:1])}


def test_stages_have_questions_of_their_own(tmp_path: Path) -> None:
    check_unchanged(tmp_path, "grpo", "jsonl:q.jsonl", EXAMPLES)
    make_checkpoint(tmp_path, 4)
    check_unchanged(tmp_path, "sft", "jsonl:q.jsonl", EXAMPLES[:1])
    check_unchanged(tmp_path, "grpo", "jsonl:q.jsonl", EXAMPLES)


def test_the_digest_is_of_content_not_of_paths() -> None:
    moved = [dataclasses.replace(example, database=Path("moved.sqlite"), source="jsonl:x") for example in EXAMPLES]
    assert content_digest(moved) == content_digest(EXAMPLES)


def test_the_digest_of_an_indexed_source_is_of_the_places_of_its_records() -> None:
    def examples(rows: list[list[int]], db_id: str = "pets") -> IndexedExamples:
        return IndexedExamples(Index(np.asarray(rows), [(db_id, "pets.sqlite")], []), lambda *_: EXAMPLES[0])

    same = content_digest(examples([[0, 9, 0, 0], [9, 9, 1, 0]]))
    assert content_digest(examples([[0, 9, 0, 0], [9, 9, 1, 0]])) == same
    assert content_digest(examples([[0, 9, 0, 0], [9, 8, 1, 0]])) != same
    assert content_digest(examples([[0, 9, 0, 0], [9, 9, 1, 0]], "zoo")) != same
