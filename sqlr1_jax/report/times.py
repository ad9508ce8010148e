"""Where a run's time went, by stage and by section of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sqlr1_jax.report.run_record import RunRecord

STAGES = {"data": "Data", "sft": "Cold start", "grpo": "GRPO", "evaluate": "Evaluation", "export": "Export"}
STAGE_TONES = {"Data": "six", "Cold start": "two", "GRPO": "one", "Evaluation": "five", "Export": "three"}
OTHER = "device and other"  # not measured by section: mostly the host waiting for the device
# Sections of a step (time/<name> in metrics.jsonl) and their CSS classes.
STEP_SECTIONS = {
    "rollout": "one", "pack": "two", "reward_wait": "three", "update": "four", "evaluate": "five", "checkpoint": "six",
    OTHER: "none",
}  # fmt: skip
_OUTSIDE_STEP = ("evaluate", "checkpoint")  # not included in time/step


@dataclasses.dataclass(frozen=True)
class Share:
    """A part of the time."""

    name: str
    tone: str  # CSS class of its color
    seconds: float
    fraction: float


def by_stage(record: RunRecord) -> list[Share]:
    """Seconds of each stage, from summary.json."""
    seconds = record.summary.get("seconds", {})
    return _shares({STAGES[name]: seconds[name] for name in STAGES if name in seconds}, STAGE_TONES)


def by_section(record: RunRecord, stage: str) -> list[Share]:
    """Seconds of a stage's steps by section, with the evaluations and checkpoints between steps."""
    lines = record.metrics.get(stage, ())
    sections = [*(name for name in STEP_SECTIONS if name != OTHER), "step"]
    seconds = {name: sum(line.get(f"time/{name}") or 0.0 for line in lines) for name in sections}
    whole_steps = seconds.pop("step")
    within_step = sum(value for name, value in seconds.items() if name not in _OUTSIDE_STEP)
    seconds[OTHER] = max(0.0, whole_steps - within_step)
    return _shares(seconds, STEP_SECTIONS)


def format_duration(seconds: float) -> str:
    """A duration as text: 0.5 s, 42 s, 1 min 1 s, 2 h 1 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _shares(seconds: Mapping[str, float], tones: Mapping[str, str]) -> list[Share]:
    """Shares of the total, without those below 0.1 %."""
    total = sum(seconds.values())
    if not total:
        return []
    return [Share(name.replace("_", " "), tones[name], s, s / total) for name, s in seconds.items() if s / total > 1e-3]
