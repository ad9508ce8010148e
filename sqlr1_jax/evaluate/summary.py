"""summary.json: a run's figures, the gain from GRPO, and the seconds of each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.io import read_json, read_jsonl, write_json
from sqlr1_jax.sql.outcome import OutcomeKind


def write(workdir: Path, stage: str, seconds: float) -> None:
    """Adds `seconds` to a stage's time and writes summary.json with the evaluations that exist."""
    path = workdir / "summary.json"
    times = read_json(path)["seconds"] if path.exists() else {}
    # Seconds are added because a resumed stage runs more than once. A stage whose work is already done adds few.
    times[stage] = round(times.get(stage, 0.0) + seconds, 3)
    times["total"] = round(sum(value for name, value in times.items() if name != "total"), 3)
    summary: dict[str, Any] = {"seconds": times}
    for name in ("sft", "final"):
        figures = workdir / "evaluation" / name / "figures.json"
        if figures.exists():
            summary[name] = read_json(figures)
    summary |= summary.get("final", summary.get("sft", {})).get("heldout", {})
    if "sft" in summary and "final" in summary:
        mean, low, high = gain(workdir)
        summary |= {"gain": mean, "interval": [low, high]}
    if (workdir / "export").exists():
        summary["export"] = str(workdir / "export")
    write_json(path, summary)


def gain(workdir: Path, before: str = "sft", after: str = "final", **labels: str) -> tuple[float, float, float]:
    """The paired gain in greedy accuracy on the held-out set, and its 95 % interval.

    Args:
      workdir: the run's folder.
      before: subfolder of evaluation/ with the earlier weights' evaluation.
      after: subfolder of evaluation/ with the later weights' evaluation.
      labels: keeps only the items whose field has this value, for example habit="extra_column".

    Raises:
      ValueError: the evaluations have different items.
    """
    items, wanted = [], {"set": "heldout"} | labels
    for name in (before, after):
        lines = read_jsonl(workdir / "evaluation" / name / "greedy.jsonl")
        items.append({line["id"]: line for line in lines if all(line[key] == wanted[key] for key in wanted)})
    correct = [{i: OutcomeKind(line["outcome"]).correct for i, line in lines.items()} for lines in items]
    return accuracy.paired_gain(correct[0], correct[1], {i: line["db_id"] for i, line in items[0].items()})
