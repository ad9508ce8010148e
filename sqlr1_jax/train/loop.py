"""The loop around a stage's step: resume, metrics one step late, checkpoints, what is not finite, interruption."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.model import flops
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.interrupt import Interrupt, Interrupted
from sqlr1_jax.train.metrics import Metrics
from sqlr1_jax.train.state import TrainState, mean_metrics

log = logging.getLogger(__name__)
MAX_NOT_FINITE = 3  # in a row


class NotFiniteError(Sqlr1Error):
    """Loss or gradient was not finite several steps in a row; the message names the step and what it was fed."""


class StepResult(NamedTuple):
    """What one step hands to the loop."""

    state: TrainState
    sums: Mapping[str, Any]  # on the device: (sum, count) of each metric, read one step late
    values: dict[str, float]  # on the host already; flops, of all the step's useful work, becomes mfu
    items: Sequence[str]  # ids of what the step was fed


def run_steps(
    context: RunContext,
    stage: str,
    steps: int,
    state: TrainState,
    take: Callable[[TrainState, int], StepResult],
    evaluate: Callable[[TrainState], float] | None = None,
    rewind: Callable[[int], None] = lambda step: None,
    prepare: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """Runs `take` from where the stage's checkpoints end up to `steps`.

    Args:
      context: the run's workdir, settings and checkpoints.
      stage: its name in checkpoints and metrics.
      steps: the stage's length.
      state: a fresh state; its layout is what a checkpoint is loaded into.
      take: one step, by state and step number from 0.
      evaluate: scores the weights every cfg.evaluate.every steps and at the end; the best step is kept.
      rewind: told the step that the stage goes on from, to drop what lies past it.
      prepare: compiles what the steps run, where there are steps left; gives the state back as it was.

    Raises:
      Interrupted: after a signal, once the state is saved.
      NotFiniteError: three steps in a row were not finite.
    """
    # Whatever ends it, what was saved gets to disk.
    with contextlib.closing(context.checkpoints(stage)) as checkpoints:
        state, done = _resume(checkpoints, state)
        rewind(done)
        state = prepare(state) if done < steps else state
        every, due = context.cfg.evaluate.every, context.cfg.checkpoint.every
        metrics = Metrics(context.workdir, stage, collectives.is_primary())
        with metrics, Interrupt() as interrupt, _bar(stage, done, steps) as bar:
            metrics.cut(done)
            writer = _DeferredMetrics(metrics)
            for step in range(done, steps):
                taken = take(state, step)
                state, last = taken.state, step + 1 == steps
                writer.push(step + 1, taken)
                score, asked = None, bool(collectives.global_max(interrupt.asked))
                if evaluate and (last or (every and (step + 1) % every == 0)):
                    score = writer.timed("evaluate", evaluate, state)
                    writer.record("evaluate/ex", score)
                if last or asked or (due and (step + 1) % due == 0) or score is not None:
                    writer.flush()
                    writer.timed("checkpoint", _save, checkpoints, state, score)
                bar.update()
                if asked:
                    break
            if collectives.global_max(interrupt.asked):
                raise Interrupted(f"stopped after step {int(state.step)} of {stage}, saved. To go on: {_command()}")
        return state


def _command() -> str:
    return " ".join(sys.orig_argv)


def _bar(stage: str, done: int, steps: int) -> tqdm:
    return tqdm(initial=done, total=steps, desc=stage, unit="step", dynamic_ncols=True, disable=None)


def _resume(checkpoints: Any, state: TrainState) -> tuple[TrainState, int]:
    step = collectives.broadcast(checkpoints.latest())
    if step is None:
        _save(checkpoints, state, None)
        return state, 0
    saved = checkpoints.load(step, _trees(state))
    count, opt_state = saved["optimizer"]
    if step:
        log.info("resuming at step %d of %s", step, checkpoints.folder)
    return TrainState(count, saved["params"], opt_state), step


def _save(checkpoints: Any, state: TrainState, score: float | None) -> None:
    checkpoints.save(int(state.step), _trees(state), score)


def _trees(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "optimizer": (state.step, state.opt_state)}


class _DeferredMetrics:
    """Holds each step's sums until the next step is on its way, so that reading them does not wait for the device.

    A step's line is written before its checkpoint: a run killed between the two goes back further and writes the line
    again, where the other order would leave it out. So a checkpoint's seconds stand in the line of the step after it.
    """

    def __init__(self, metrics: Metrics):
        self._metrics, self._bad, self._since, self._away = metrics, 0, time.perf_counter(), 0.0
        self._held: tuple[int, StepResult] | None = None
        self._values: dict[str, float] = {}  # of the line to come
        self._newest: Any = None  # there once the device is done with the step just pushed

    def push(self, step: int, taken: StepResult) -> None:
        """Holds a step, and writes the one before it."""
        self.flush()
        self._held = step, taken
        self._values |= taken.values
        self._newest = taken.state.step

    def timed(self, name: str, action: Callable[..., Any], *arguments: Any) -> Any:
        """Runs an action between steps, the device idle, and records its seconds as time/<name>."""
        jax.block_until_ready(self._newest)
        begin = time.perf_counter()
        result = action(*arguments)
        seconds = time.perf_counter() - begin
        self.record(f"time/{name}", seconds)
        self._away += seconds
        return result

    def record(self, name: str, value: float) -> None:
        """A number for the line that is written next."""
        self._values[name] = value

    def flush(self) -> None:
        """Writes the step that is held, once the device is done with it."""
        if self._held is None:
            return
        (step, taken), self._held = self._held, None
        values, self._values = self._values | mean_metrics(taken.sums), {}
        now = time.perf_counter()
        seconds = max(now - self._since - self._away, 1e-9)
        self._since, self._away = now, 0.0
        values["time/step"] = seconds
        values["tokens_per_second"] = values["tokens"] / seconds
        values["tokens_per_second_per_chip"] = values["tokens_per_second"] / jax.device_count()
        spent, peak = values.pop("flops", 0.0), flops.peak_flops(jax.devices()[0])
        if spent and peak:
            values["mfu"] = spent / (seconds * peak * jax.device_count())
        self._bad = self._bad + 1 if values["not_finite"] else 0
        self._metrics.write(step, values)
        if self._bad >= MAX_NOT_FINITE:
            raise NotFiniteError(
                f"step {step} and the {MAX_NOT_FINITE - 1} before it were not finite and were not taken; "
                f"the last was fed {', '.join(taken.items[:8])}. Lower the learning rate or look at these records."
            )
