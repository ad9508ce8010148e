from __future__ import annotations

import json
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
    monkeypatch.setattr(learning, "commit", lambda: "abc1234")
    return commands


def test_a_run_is_made_once_and_a_different_command_in_its_folder_is_refused(
    ran: list[list[str]], tmp_path: Path
) -> None:
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


def test_the_report_says_when_and_with_which_commits_it_was_made(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {"before": 0.5, "after": 0.5, "gain": 0.0, "interval": [0.0, 0.0]}
    line = {
        "ex": 0.8, "ex_before": 0.6, "gain": 0.2, "interval": [0.1, 0.3], "seconds": 60.0, "steps": 110, "vote8": 0.9,
        "pass8": 0.9, "newnames": 0.7, "habit": part, "elsewhere": part, "vague": 0.8,
    }  # fmt: skip
    monkeypatch.setattr(learning, "arm_result", lambda start, folder, stage: line)
    monkeypatch.setattr(learning, "against", lambda *_: {"gain": 0.2, "low": 0.1, "high": 0.3})
    monkeypatch.setattr(learning, "ROOT", tmp_path)
    (tmp_path / "docs" / "reports").mkdir(parents=True)
    runs = tmp_path / "runs" / "seed3"
    learning.run_arm(tmp_path / "runs", 3, "grpo", [])
    (runs / "base" / "commit").write_text("def5678")
    (runs / "grpo" / "commit").unlink()
    monkeypatch.setattr("sys.argv", ["learning.py", "--seeds=3", f"--workdir={tmp_path / 'runs'}"])
    learning.main()
    result = json.loads(capsys.readouterr().out)
    assert result["commits"] == ["abc1234", "def5678", "unknown"]
    text = (tmp_path / "docs" / "reports" / f"{result['date']}-learning.md").read_text()
    for said in (result["date"], f"`{result['command']}`", "runs of commit abc1234, def5678, unknown"):
        assert said in text
    assert "| grpo | 3 | 110 | 1.0 | 60.0 | 80.0 | +20.0 [+10.0, +30.0] |" in text
    assert "- shuffled: +20.0 [+10.0, +30.0]" in text


def test_outside_of_a_git_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "ROOT", tmp_path)
    assert learning.commit() == "unknown"
