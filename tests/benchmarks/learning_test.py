from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import learning
import pytest


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that run_once starts; they are recorded and not run."""
    recorded: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        Path(command[4].removeprefix("--workdir=")).mkdir(parents=True, exist_ok=True)
        recorded.append(command)

    monkeypatch.setattr(learning.subprocess, "run", run)
    monkeypatch.setattr(learning, "read_commit", lambda: "abc1234")
    return recorded


def test_same_command_runs_once_and_another_command_in_its_folder_is_an_error(
    commands: list[list[str]], tmp_path: Path
) -> None:
    for _ in range(2):
        learning.run_once(tmp_path / "run", 3, "('data',)", ["--config.grpo.steps=1"])
    (command,) = commands
    assert command[1:] == [
        "-m", "sqlr1_jax.main", "--config=configs/grpo.py", f"--workdir={tmp_path / 'run'}", "--config.seed=3",
        "--config.stages=('data',)", "--config.grpo.steps=1",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match=r"steps=1`, not of .*steps=2`"):
        learning.run_once(tmp_path / "run", 3, "('data',)", ["--config.grpo.steps=2"])


def test_first_three_arms_share_a_cold_start_and_sound_teacher_has_its_own(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "arm_result", lambda start, folder, stage: (start.name, folder.name, stage))
    lines = [learning.run_arm(tmp_path, 0, arm, []) for arm in learning.ARMS]
    assert lines == [
        ("base", "grpo", "grpo"), ("base", "more_sft", "sft"), ("base", "shuffled", "grpo"),
        ("base_sound", "sound_teacher", "grpo"),
    ]  # fmt: skip
    assert len(commands) == 4 + 2
    without_errors = [any("teacher_errors=0.0" in word for word in command) for command in commands]
    assert without_errors == [False] * 4 + [True] * 2


def test_report_has_its_date_its_command_and_the_commits_of_its_runs(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subset = {"before": 0.5, "after": 0.5, "gain": 0.0, "interval": [0.0, 0.0]}
    line = {
        "ex": 0.8, "ex_before": 0.6, "gain": 0.2, "interval": [0.1, 0.3], "seconds": 60.0, "steps": 110, "vote8": 0.9,
        "pass8": 0.9, "newnames": 0.7, "habit": subset, "elsewhere": subset, "vague": 0.8,
    }  # fmt: skip
    monkeypatch.setattr(learning, "arm_result", lambda start, folder, stage: line)
    monkeypatch.setattr(learning, "gain_over", lambda *_: {"gain": 0.2, "low": 0.1, "high": 0.3})
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
    for expected in (result["date"], f"`{result['command']}`", "runs of commit abc1234, def5678, unknown"):
        assert expected in text
    assert "| grpo | 3 | 110 | 1.0 | 60.0 | 80.0 | +20.0 [+10.0, +30.0] |" in text
    assert "- shuffled: +20.0 [+10.0, +30.0]" in text


def test_commit_is_unknown_outside_a_git_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "ROOT", tmp_path)
    assert learning.read_commit() == "unknown"
