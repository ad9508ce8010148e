"""A run's numbers: metrics.jsonl and TensorBoard, and one line a step on the console."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlr1_jax.io import atomic_write_text, read_jsonl

log = logging.getLogger(__name__)

# What the console's line shows of each step, in this order, where the step has it.
SHOWN = (
    "loss", "reward/mean", "outcome/match", "groups/mixed", "evaluate/ex", "kl", "entropy", "logprob_mismatch",
    "completion/mean_tokens", "grad_norm", "time/step", "tokens_per_second",
)  # fmt: skip


class Metrics:
    """Appends to <workdir>/metrics.jsonl and tensorboard/, unless it `writes` nothing; a context that closes both."""

    def __init__(self, workdir: Path, stage: str, writes: bool = True):
        self._path, self._folder, self._stage = workdir / "metrics.jsonl", workdir / "tensorboard", stage
        self._writes = writes
        self._writer: Any = None

    def cut(self, step: int) -> None:
        """Takes back what this stage wrote past `step`, so that a resumed run writes no step twice."""
        if not self._writes:
            return
        kept = [line for line in read_metrics(self._path) if line["stage"] != self._stage or line["step"] <= step]
        if self._path.exists():
            atomic_write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        shutil.rmtree(self._folder, ignore_errors=True)
        for line in kept:
            self._board(line["stage"], line["step"], line)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records one step. A value that is not finite is written as null: JSON has no name for it."""
        if not self._writes:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in sorted(values.items())}
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": self._stage, "step": step, **clean}) + "\n")
        self._board(self._stage, step, clean)
        log.info("%s", self._line(step, clean))

    def _board(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            from tensorboard.summary import Writer

            self._writer = Writer(str(self._folder))
        for name, value in values.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{stage}/{name}", value, step)

    def _line(self, step: int, values: Mapping[str, Any]) -> str:
        shown = (f"{name.rpartition('/')[2]} {values[name]:.4g}" for name in SHOWN if values.get(name) is not None)
        return f"{self._stage} {step:5d}  " + "  ".join(shown)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl; none where there is no file. A last line cut short by a kill is left out."""
    return list(read_jsonl(path, on_bad_lines="warn")) if path.exists() else []
