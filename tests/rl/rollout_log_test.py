from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sqlr1_jax.config import RewardConfig
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.data.example import Example
from sqlr1_jax.rl import rollout_log
from sqlr1_jax.rl.reward import PAPER_PARTS
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind


def _write(workdir: Path, step: int, rounds: int = 1) -> None:
    examples = [Example(str(p), "pets", Path(), f"question {p}?", f"SELECT {p}") for p in range(2)]
    answers = [[Answer("", "", f"SELECT {p}{g}") for g in range(3)] for p in range(2)]
    outcomes = [
        [
            Outcome(OutcomeKind.MATCH, rows=((p, "a"),), gold_rows=((p, None),) if g == 1 else ()),
            Outcome(OutcomeKind.MISMATCH, rows=((b"\x00".hex(), 1.5),), gold_rows=((p, None),)),
            Outcome(OutcomeKind.SYNTAX_ERROR, message="near"),
        ][g]
        for p in range(2)
        for g in range(3)
    ]
    grouped = [outcomes[:3], outcomes[3:]]
    rewards = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    texts = [[f"text {p}{g}" for g in range(3)] for p in range(2)]
    execution: Any = SimpleNamespace(texts=texts, answers=answers)
    logged: Any = SimpleNamespace(rewards_PGR=rewards)
    round_: Any = SimpleNamespace(examples=examples, execution=execution, outcomes=grouped, rewards=logged)
    advantages = np.concatenate([rewards.sum(-1) + 1000 * r for r in range(rounds)])
    rollout_log.write(workdir, step, [round_] * rounds, advantages, RewardConfig())


def test_a_line_has_one_prompt_and_all_its_samples(tmp_path: Path) -> None:
    _write(tmp_path, 12)
    lines = [json.loads(line) for line in (tmp_path / "rollouts" / "step_000012.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == ["question 0?", "question 1?"]
    assert [line["gold_rows"] for line in lines] == [[[0, None]], [[1, None]]]
    sample = lines[1]["samples"][2]
    assert (sample["text"], sample["sql"], sample["outcome"], sample["message"]) == (
        "text 12",
        "SELECT 12",
        "syntax_error",
        "near",
    )
    assert sample["reward"] == dict(zip(PAPER_PARTS, [20.0, 21.0, 22.0, 23.0], strict=True))
    assert sample["advantage"] == 86.0
    assert lines[1]["samples"][0]["rows"] == [[1, "a"]]


def test_rounds_of_a_step_follow_one_another(tmp_path: Path) -> None:
    _write(tmp_path, 1, rounds=2)
    lines = [json.loads(line) for line in rollout_log.path(tmp_path, 1).open()]
    assert [line["id"] for line in lines] == ["0", "1", "0", "1"]
    assert [line["samples"][2]["advantage"] for line in lines] == [38, 86, 1038, 1086]


def test_truncate_removes_the_files_of_later_steps(tmp_path: Path) -> None:
    rollout_log.truncate(tmp_path, 0)
    for step in (1, 2, 3, 1_000_000):
        _write(tmp_path, step)
    rollout_log.truncate(tmp_path, 2)
    assert [path.name for path in sorted((tmp_path / "rollouts").iterdir())] == [
        "step_000001.jsonl",
        "step_000002.jsonl",
    ]
