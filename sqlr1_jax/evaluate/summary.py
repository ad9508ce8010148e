"""summary.json: what a run reached and what it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlr1_jax.config import Config
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.io import atomic_write_text, read_jsonl
from sqlr1_jax.sql.outcome import OutcomeKind


def write(workdir: Path, cfg: Config, stage: str, seconds: float) -> None:
    """Adds a stage's seconds and brings the figures up to date."""
    path = workdir / "summary.json"
    times = json.loads(path.read_text())["seconds"] if path.exists() else {}
    # A stage that was resumed adds up; one that found its work done adds next to nothing.
    times[stage] = round(times.get(stage, 0.0) + seconds, 3)
    times["total"] = round(sum(value for name, value in times.items() if name != "total"), 3)
    summary: dict[str, Any] = {"seconds": times}
    for name in ("sft", "final"):
        figures = workdir / "evaluation" / name / "figures.json"
        if figures.exists():
            summary[name] = json.loads(figures.read_text())
    summary |= summary.get("final", summary.get("sft", {})).get("heldout", {})
    if "sft" in summary and "final" in summary:
        gains = gain(workdir)
        summary |= {"gain": gains[0], "interval": list(gains[1:])}
    if (workdir / "export").exists():
        summary["export"] = str(workdir / "export")
    atomic_write_text(path, json.dumps(summary, indent=1))


def gain(workdir: Path, before: str = "sft", after: str = "final", **only: str) -> tuple[float, float, float]:
    """Paired gain in greedy accuracy on the held-out set with its 95 % interval; `only` keeps items by a field."""
    lines = [_items(workdir / "evaluation" / name / "greedy.jsonl", only) for name in (before, after)]
    flags = [{i: OutcomeKind(line["outcome"]).correct for i, line in one.items()} for one in lines]
    return accuracy.paired_gain(flags[0], flags[1], {i: line["db_id"] for i, line in lines[0].items()})


def _items(path: Path, only: dict[str, str]) -> dict[str, dict[str, Any]]:
    lines = [line for line in read_jsonl(path) if line["set"] == "heldout"]
    return {line["id"]: line for line in lines if all(line[name] == value for name, value in only.items())}
