"""Metrics of a run: metrics.jsonl, TensorBoard, and one line per step on the console."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlr1_jax.io import read_jsonl, write_jsonl

log = logging.getLogger(__name__)

# The metrics on the console, in this order; a step may lack some of them.
CONSOLE_METRICS = (
    "loss", "reward/mean", "outcome/match", "groups/mixed", "evaluate/ex", "kl", "entropy", "logprob_mismatch",
    "completion/mean_tokens", "grad_norm", "time/step", "tokens_per_second",
)  # fmt: skip


class Metrics:
    """Appends a stage's metrics to <workdir>/metrics.jsonl and tensorboard/; a context manager.

    With `enabled=False`, as on all processes but the primary one, it writes nothing.
    """

    def __init__(self, workdir: Path, stage: str, enabled: bool = True):
        self._path, self._tensorboard_dir = workdir / "metrics.jsonl", workdir / "tensorboard"
        self._stage, self._enabled = stage, enabled
        self._writer: Any = None  # of TensorBoard, opened on first use

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    def truncate(self, step: int) -> None:
        """Deletes this stage's lines after `step`, so that a resumed run writes no step twice.

        TensorBoard's files cannot be truncated; they are written again from the remaining lines.
        """
        if not self._enabled:
            return
        lines = [line for line in read_metrics(self._path) if line["stage"] != self._stage or line["step"] <= step]
        if self._path.exists():
            write_jsonl(self._path, lines)
        shutil.rmtree(self._tensorboard_dir, ignore_errors=True)
        for line in lines:
            self._write_tensorboard(line["stage"], line["step"], line)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the metrics of one step; a value that is not finite becomes null, since JSON cannot express it."""
        if not self._enabled:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in sorted(values.items())}
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": self._stage, "step": step, **finite}) + "\n")
        self._write_tensorboard(self._stage, step, finite)
        shown = [name for name in CONSOLE_METRICS if finite.get(name) is not None]
        columns = (f"{name.rpartition('/')[2]} {finite[name]:.4g}" for name in shown)
        log.info("%s", f"{self._stage} {step:5d}  " + "  ".join(columns))

    def _write_tensorboard(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            from tensorboard.summary import Writer  # a slow import, and only the primary process needs it

            self._writer = Writer(str(self._tensorboard_dir))
        for name, value in values.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{stage}/{name}", value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; empty if there is no file.

    Leaves out a last line that a killed run did not finish, and logs a warning.
    """
    return list(read_jsonl(path, on_bad_lines="warn")) if path.exists() else []
