"""Reads a run's folder for its report. The run may be in progress: files that do not exist yet are skipped."""

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
BEFORE, AFTER = "sft", "final"  # folders in evaluation/: before GRPO, and of the run's last weights


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One folder of evaluation/."""

    figures: Mapping[str, Mapping[str, float]]  # figures.json: set -> ex_greedy, ex_vote8, pass8, well_formed, n
    report: Mapping[str, Mapping[str, Any]]  # greedy.json: set -> all, by_family, by_complexity, …, outcomes
    lines: Mapping[str, Mapping[str, Line]]  # greedy.jsonl: set -> id -> line, in the set's order

    def correct(self, name: str = "heldout") -> dict[str, bool]:
        """Whether each question of a set was answered correctly, by id."""
        return {i: OutcomeKind(line["outcome"]).correct for i, line in self.lines.get(name, {}).items()}


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The files of a run, as far as they exist."""

    workdir: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Mapping[str, Sequence[Line]]  # stage -> lines of metrics.jsonl, in step order
    evaluations: Mapping[str, Evaluation]  # BEFORE, AFTER
    rollouts: Sequence[tuple[int, Sequence[Line]]]  # (step, lines) of the first and the last step

    @property
    def before(self) -> Evaluation | None:
        """The evaluation of the cold start's weights."""
        return self.evaluations.get(BEFORE)

    @property
    def after(self) -> Evaluation | None:
        """The evaluation of the last weights; None if GRPO has not run and these are the cold start's weights too."""
        if BEFORE in self.evaluations and "grpo" not in self.metrics:
            return None
        return self.evaluations.get(AFTER)

    @property
    def latest(self) -> Evaluation | None:
        """The evaluation of the latest weights."""
        return self.after or self.before

    @property
    def embedded(self) -> bool:
        """Whether all data are from the embedded data set."""
        sources = [str(self.setting(f"data.{name}", "")) for name in ("sft", "train", "evaluate")]
        return all(source.startswith("synth:") for source in sources)

    def setting(self, path: str, default: Any = None) -> Any:
        """The setting at a dotted path of config.json, or `default`."""
        node: Any = self.config
        for name in path.split("."):
            if not isinstance(node, Mapping) or name not in node:
                return default
            node = node[name]
        return node

    def steps(self, stage: str, name: str) -> list[tuple[int, float | None]]:
        """(step, value) of each step that has the metric; the value is None if it was not finite."""
        return [(line["step"], line[name]) for line in self.metrics.get(stage, ()) if name in line]

    def sft_subset_accuracy(self) -> float | None:
        """The cold start's accuracy on the subset of questions that evaluate/ex measures during GRPO."""
        size = self.setting("evaluate.subset", 0)
        correct = list(self.before.correct().values()) if self.before else []
        if not correct or not size:
            return None
        indices = order.subset(len(correct), size, self.setting("seed", 0))
        return accuracy.fraction_correct(correct[i] for i in indices)


def read_run(workdir: Path) -> RunRecord:
    """Reads a run's folder.

    Raises:
      ConfigError: the folder has no config.json.
    """
    if not (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} is not a run's folder: it has no config.json. Check --workdir=.")
    stages: dict[str, list[Line]] = {}
    for line in metrics.read_metrics(workdir / "metrics.jsonl"):
        stages.setdefault(line["stage"], []).append(line)
    evaluations = {name: _read_evaluation(workdir / "evaluation" / name) for name in (BEFORE, AFTER)}
    rollouts = sorted((workdir / "rollouts").glob("step_*.jsonl"))
    first_and_last = dict.fromkeys([*rollouts[:1], *rollouts[-1:]])
    return RunRecord(
        workdir,
        _read_json(workdir / "config.json"),
        _read_json(workdir / "summary.json"),
        stages,
        {name: evaluation for name, evaluation in evaluations.items() if evaluation},
        [(int(file.stem.removeprefix("step_")), _read_lines(file)) for file in first_and_last],
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        log.warning("%s is not JSON and is left out of the report: %s", path, error)
        return {}


def _read_evaluation(folder: Path) -> Evaluation | None:
    """A complete evaluation, or None; figures.json is written last."""
    if not (folder / "figures.json").exists():
        return None
    lines: dict[str, dict[str, Line]] = {}
    for line in _read_lines(folder / "greedy.jsonl"):
        lines.setdefault(line["set"], {})[line["id"]] = line
    return Evaluation(_read_json(folder / "figures.json"), _read_json(folder / "greedy.json"), lines)


def _read_lines(path: Path) -> list[Line]:
    return list(read_jsonl(path, on_bad_lines="warn")) if path.exists() else []
