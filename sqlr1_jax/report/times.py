"""Where a run's time went."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from sqlr1_jax.report.run_record import Line, RunRecord

STAGES = {"data": "Data", "sft": "Cold start", "grpo": "GRPO", "evaluate": "Evaluation", "export": "Export"}
REST = "device and other"  # what no part was measured for: the host waiting for the device, mostly
PARTS = {
    "rollout": "one", "pack": "two", "reward_wait": "three", "update": "four", "evaluate": "five", "checkpoint": "six",
    REST: "none",
}  # fmt: skip
_OUTSIDE = ("evaluate", "checkpoint")  # of time/step


@dataclasses.dataclass(frozen=True)
class Share:
    name: str
    tone: str
    seconds: float
    fraction: float


def by_stage(record: RunRecord) -> list[Share]:
    """Seconds of each stage, as summary.json has them."""
    seconds = record.summary.get("seconds", {})
    tones = ("six", "two", "one", "five", "three")
    named = {STAGES[name]: seconds[name] for name in STAGES if name in seconds}
    return _shares(named, dict(zip(STAGES.values(), tones, strict=True)))


def by_part(record: RunRecord, stage: str) -> list[Share]:
    """Seconds of a stage's steps by what they were spent on, evaluations and checkpoints between steps included."""
    lines = record.metrics.get(stage, ())
    named = {name: _sum(lines, name) for name in PARTS if name != REST}
    inside = sum(value for name, value in named.items() if name not in _OUTSIDE)
    named[REST] = max(0.0, _sum(lines, "step") - inside)
    return _shares(named, PARTS)


def words(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _sum(lines: Sequence[Line], name: str) -> float:
    return sum(line.get(f"time/{name}") or 0.0 for line in lines)


def _shares(named: Mapping[str, float], tones: Mapping[str, str]) -> list[Share]:
    total = sum(named.values())
    if not total:
        return []
    return [Share(name.replace("_", " "), tones[name], s, s / total) for name, s in named.items() if s / total > 1e-3]
