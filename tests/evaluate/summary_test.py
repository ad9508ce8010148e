from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.evaluate import accuracy, summary

FIGURES = {"ex_greedy": 0.5, "ex_vote8": 0.6, "pass8": 0.7, "well_formed": 0.9, "n": 4}


def _write_evaluation(workdir: Path, name: str, outcomes: dict[str, str], **figures: float) -> None:
    """Writes an evaluation as evaluate/run.py does, from {id: outcome}; an id's first letter is its database."""
    folder = workdir / "evaluation" / name
    folder.mkdir(parents=True)
    lines = [
        {
            "id": item,
            "set": "heldout",
            "db_id": item[0],
            "outcome": outcome,
            "habit": "extra_column" if "h" in item else "",
        }
        for item, outcome in outcomes.items()
    ]
    lines.append({"id": "z9", "set": "newnames", "db_id": "z", "outcome": "match", "habit": ""})
    (folder / "greedy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    both = {"heldout": FIGURES | figures, "newnames": FIGURES | {"ex_greedy": 0.1}}
    (folder / "figures.json").write_text(json.dumps(both))


def _read(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def _write(workdir: Path, stage: str, seconds: float) -> dict[str, Any]:
    summary.write(workdir, stage, seconds)
    return _read(workdir)


BEFORE = {"a1": "mismatch", "a2h": "mismatch", "b1": "match", "b2h": "syntax_error"}
AFTER = {"a1": "match", "a2h": "match_empty", "b1": "match", "b2h": "timeout"}


def test_the_summary_grows_with_each_stage(tmp_path: Path) -> None:
    assert _write(tmp_path, "data", 1.5) == {"seconds": {"data": 1.5, "total": 1.5}}
    _write_evaluation(tmp_path, "sft", BEFORE, ex_greedy=0.25)
    after_sft = _write(tmp_path, "sft", 10.0)
    assert after_sft["ex_greedy"] == 0.25
    assert "interval" not in after_sft
    _write_evaluation(tmp_path, "final", AFTER, ex_greedy=0.75)
    _write(tmp_path, "grpo", 20.0)
    (tmp_path / "export").mkdir()
    complete = _write(tmp_path, "export", 0.5)
    assert complete["seconds"] == {"data": 1.5, "sft": 10.0, "grpo": 20.0, "export": 0.5, "total": 32.0}
    assert complete["sft"]["heldout"]["ex_greedy"] == 0.25
    assert complete["final"]["newnames"]["ex_greedy"] == 0.1
    assert {name: complete[name] for name in FIGURES} == FIGURES | {"ex_greedy": 0.75}
    assert complete["export"] == str(tmp_path / "export")
    gain, low, high = accuracy.paired_gain(
        {i: o.startswith("match") for i, o in BEFORE.items()},
        {i: o.startswith("match") for i, o in AFTER.items()},
        {i: i[0] for i in BEFORE},
    )
    assert (complete["gain"], complete["interval"]) == (0.5, [low, high])
    assert gain == 0.5


def test_seconds_of_a_resumed_stage_add_up(tmp_path: Path) -> None:
    _write(tmp_path, "grpo", 5.0)
    assert _write(tmp_path, "grpo", 2.0)["seconds"] == {"grpo": 7.0, "total": 7.0}


def test_a_label_restricts_the_gain_to_its_items(tmp_path: Path) -> None:
    _write_evaluation(tmp_path, "sft", BEFORE)
    _write_evaluation(tmp_path, "final", AFTER)
    assert summary.gain(tmp_path)[0] == 0.5
    assert summary.gain(tmp_path, habit="extra_column")[0] == 0.5
    assert summary.gain(tmp_path, habit="")[0] == 0.5
    assert summary.gain(tmp_path, before="final", after="sft")[0] == -0.5
    assert summary.gain(tmp_path, before="final")[0] == 0


def test_evaluations_with_different_items_have_no_gain(tmp_path: Path) -> None:
    _write_evaluation(tmp_path, "sft", BEFORE)
    _write_evaluation(tmp_path, "final", {item: outcome for item, outcome in AFTER.items() if item != "b1"})
    with pytest.raises(ValueError, match="differ in 1 items"):
        summary.gain(tmp_path)
