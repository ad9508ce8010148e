from __future__ import annotations

from pathlib import Path
from typing import Any

import learning
import pytest


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        Path(command[4].removeprefix("--workdir=")).mkdir(parents=True, exist_ok=True)
        commands.append(command)

    monkeypatch.setattr(learning.subprocess, "run", run)
    return commands


def test_a_run_is_made_once_and_another_is_not_taken_for_it(ran: list[list[str]], tmp_path: Path) -> None:
    for _ in range(2):
        learning.run_once(tmp_path / "run", 3, "('data',)", ["--config.grpo.steps=1"])
    (command,) = ran
    assert command[1:] == [
        "-m", "sqlr1_jax.main", "--config=configs/grpo.py", f"--workdir={tmp_path / 'run'}", "--config.seed=3",
        "--config.stages=('data',)", "--config.grpo.steps=1",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match=r"steps=1`, not of .*steps=2`"):
        learning.run_once(tmp_path / "run", 3, "('data',)", ["--config.grpo.steps=2"])


def test_the_first_three_arms_share_a_cold_start_and_the_last_has_a_sound_one(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "arm_result", lambda start, folder, stage: (start.name, folder.name, stage))
    lines = [learning.run_arm(tmp_path, 0, arm, []) for arm in learning.ARMS]
    assert lines == [
        ("base", "grpo", "grpo"), ("base", "more_sft", "sft"), ("base", "shuffled", "grpo"),
        ("base_sound", "sound_teacher", "grpo"),
    ]  # fmt: skip
    assert len(ran) == 4 + 2
    errors = [any("teacher_errors=0.0" in word for word in command) for command in ran]
    assert errors == [False] * 4 + [True] * 2
