from __future__ import annotations

import json
from pathlib import Path

import pytest
import step

LINES = [
    {"stage": "grpo", "step": i + 1, "tokens": 10.0, "time/step": 2.0, "time/rollout": 1.0, "time/pack": 0.1,
     "time/reward_wait": 0.1, "time/update": seconds, "time/execute": 0.5,
     "groups/trained": 3.0 + i, "groups/rounds": 1.0 + i}
    for i, seconds in enumerate([99.0, 0.5, 0.7])
]  # fmt: skip


def test_fractions_of_the_phases_sum_to_one() -> None:
    shares = step.fractions(LINES[1:])
    assert shares == pytest.approx(
        {"rollout": 0.5, "pack": 0.05, "reward_wait": 0.05, "update": 0.3, "rest": 0.1, "execute": 0.25}
    )


def test_first_steps_and_other_stages_are_left_out(tmp_path: Path) -> None:
    lines = [{"stage": "sft", "step": 1}, *LINES]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert step.read_steps(tmp_path, 1) == LINES[1:]
    with pytest.raises(SystemExit, match="3 steps of GRPO, and the first 3 are left out"):
        step.read_steps(tmp_path, 3)
    result = step.build_result("smoke", step.read_steps(tmp_path, 1))
    assert result["ours"] == {"seconds": [2.0, 2.0], "tokens": 20} and result["steps_per_minute"] == 30
    assert (result["useful_groups_per_minute"], result["rounds_per_step"]) == (60 * (4 + 5) / 4, 2.5)
