"""What a run's folder holds, read for its page. A run may be at any point: what is not there yet is simply absent."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.data import order
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.io import read_jsonl
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.train import metrics

log = logging.getLogger(__name__)

Line = dict[str, Any]
BEFORE, AFTER = "sft", "final"  # folders of evaluation/


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One of evaluation/'s folders."""

    figures: Mapping[str, Mapping[str, float]]  # set -> ex_greedy, ex_vote8, pass8, well_formed, n
    report: Mapping[str, Mapping[str, Any]]  # greedy: set -> all, by_family, by_complexity, …, outcomes
    lines: Mapping[str, Mapping[str, Line]]  # greedy: set -> id -> line, in the set's order

    def right(self, name: str = "heldout") -> dict[str, bool]:
        """Whether each item of a set was answered right."""
        return {i: OutcomeKind(line["outcome"]).correct for i, line in self.lines.get(name, {}).items()}


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run, as far as it has come."""

    workdir: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Mapping[str, Sequence[Line]]  # stage -> its steps' lines, in order
    evaluations: Mapping[str, Evaluation]  # BEFORE, AFTER
    rollouts: Sequence[tuple[int, Sequence[Line]]]  # the first step's and the last one's

    @property
    def before(self) -> Evaluation | None:
        return self.evaluations.get(BEFORE)

    @property
    def after(self) -> Evaluation | None:
        """The last evaluation; none where it is of the very weights that the first one was of."""
        if BEFORE in self.evaluations and "grpo" not in self.metrics:
            return None
        return self.evaluations.get(AFTER)

    @property
    def latest(self) -> Evaluation | None:
        return self.after or self.before

    @property
    def embedded(self) -> bool:
        """Whether all the run's data are the embedded ones."""
        sources = [str(self.setting(f"data.{name}", "")) for name in ("sft", "train", "evaluate")]
        return all(source.startswith("synth:") for source in sources)

    def setting(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path of config.json."""
        node: Any = self.config
        for name in path.split("."):
            if not isinstance(node, Mapping) or name not in node:
                return default
            node = node[name]
        return node

    def steps(self, stage: str, name: str) -> list[tuple[int, float | None]]:
        """(step, value) of each line of a stage that has the metric; None where it was not finite."""
        return [(line["step"], line[name]) for line in self.metrics.get(stage, ()) if name in line]

    def watched(self) -> float | None:
        """The cold start's accuracy on the very questions that GRPO's steps are watched by."""
        size = self.setting("evaluate.subset", 0)
        right = list(self.before.right().values()) if self.before else []
        if not right or not size:
            return None
        return accuracy.fraction_correct(right[i] for i in order.subset(len(right), size, self.setting("seed", 0)))


def read_run(workdir: Path) -> RunRecord:
    """Reads a run's folder.

    Raises:
      ConfigError: it is no run's folder.
    """
    if not (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} holds no run: it has no config.json. --workdir= names a run's folder.")
    evaluations = {name: _evaluation(workdir / "evaluation" / name) for name in (BEFORE, AFTER)}
    return RunRecord(
        workdir,
        _json(workdir / "config.json"),
        _json(workdir / "summary.json"),
        _metrics(workdir / "metrics.jsonl"),
        {name: found for name, found in evaluations.items() if found},
        _rollouts(workdir / "rollouts"),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        log.warning("%s: left out of the page, it is not JSON: %s", path, error)
        return {}


def _metrics(path: Path) -> dict[str, list[Line]]:
    stages: dict[str, list[Line]] = {}
    for line in metrics.read_metrics(path):
        stages.setdefault(line["stage"], []).append(line)
    return stages


def _evaluation(folder: Path) -> Evaluation | None:
    """An evaluation that is whole; figures.json is the last file it writes."""
    if not (folder / "figures.json").exists():
        return None
    lines: dict[str, dict[str, Line]] = {}
    for line in _lines(folder / "greedy.jsonl"):
        lines.setdefault(line["set"], {})[line["id"]] = line
    return Evaluation(_json(folder / "figures.json"), _json(folder / "greedy.json"), lines)


def _rollouts(folder: Path) -> list[tuple[int, list[Line]]]:
    files = sorted(folder.glob("step_*.jsonl"))
    ends = dict.fromkeys([*files[:1], *files[-1:]])
    return [(int(file.stem.removeprefix("step_")), _lines(file)) for file in ends]


def _lines(path: Path) -> list[Line]:
    return list(read_jsonl(path, on_bad_lines="warn")) if path.exists() else []
