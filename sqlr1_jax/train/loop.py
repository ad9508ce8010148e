"""The training loop of a stage: resume, deferred metrics, evaluation, checkpoints, non-finite steps, interruption."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from sqlr1_jax.config import CheckpointConfig
from sqlr1_jax.distributed import collectives, watchdog
from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.model import flops
from sqlr1_jax.progress import LOG_SECONDS, Progress
from sqlr1_jax.train.checkpoint import CheckpointDamagedError, Checkpoints
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.interrupt import Interrupt, Interrupted, StepAbandoned, log_while_waiting
from sqlr1_jax.train.metrics import Metrics
from sqlr1_jax.train.state import TrainState, mean_metrics

log = logging.getLogger(__name__)
SAVE, STOP = 1, 2  # what is to be done after a step, besides what its number says
MAX_NOT_FINITE = 3  # the run stops after this many consecutive steps with a non-finite loss or gradient


class NotFiniteError(Sqlr1Error):
    """Loss or gradient was not finite for several consecutive steps; the message names the last step and its batch."""


class StepResult(NamedTuple):
    """What one step returns to the loop."""

    state: TrainState
    sums: Mapping[str, Any]  # metrics on the device, as (sum, count); fetched one step late
    values: dict[str, float]  # host metrics; the loop turns `flops` (useful operations of the step) into `mfu`
    items: Sequence[str]  # ids of the batch's items


def run_steps(
    context: RunContext,
    stage: str,
    steps: int,
    state: TrainState,
    step_fn: Callable[[TrainState, int], StepResult],
    evaluate_fn: Callable[[TrainState], float] | None = None,
    on_resume: Callable[[int], None] = lambda step: None,
    compile_fn: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """Trains a stage from its latest checkpoint, or from `state` if it has none, to its last step.

    Args:
      context: the run's workdir, settings and checkpoints.
      stage: the stage's name in checkpoints and metrics.
      steps: the stage's length.
      state: a fresh state; a checkpoint is restored into its shapes, dtypes and shardings.
      step_fn: runs one step, given the state and the number of completed steps. It may raise interrupt.StepAbandoned
        before it uses up the state.
      evaluate_fn: returns the accuracy of the state's weights. It is called every config.evaluate.every steps and after
        the last step; the checkpoint with the highest accuracy is kept.
      on_resume: called once before the first step with the number of completed steps, to delete records of later
        steps that a killed run left.
      compile_fn: compiles what a step runs and returns an equal state; called unless all steps are completed.

    Returns:
      The state after the last step.

    Raises:
      Interrupted: a signal stopped the run; its state is saved.
      NotFiniteError: MAX_NOT_FINITE consecutive steps were not finite.
    """
    config = context.config
    with contextlib.closing(context.checkpoints(stage)) as checkpoints:  # closing waits until the last save is on disk
        state, completed = _resume(checkpoints, state)
        on_resume(completed)
        with log_while_waiting(f"the compilation of {stage}", LOG_SECONDS):
            state = compile_fn(state) if completed < steps else state
        metrics = Metrics(context.workdir, stage, collectives.is_primary())
        with metrics, Interrupt() as interrupt, Progress(stage, steps, "step", completed) as progress:
            metrics.truncate(completed)
            deferred, saved, saved_at = DeferredMetrics(metrics), completed, time.monotonic()
            for step in range(completed + 1, steps + 1):
                done, accuracy = step - 1, None
                try:
                    with watchdog.activity(f"step {step} of {stage}"):
                        result = step_fn(state, step - 1)
                    state, done = result.state, step
                    deferred.push(step, result)
                    if evaluate_fn and (step == steps or _is_due(step, config.evaluate.every)):
                        accuracy = deferred.timed("evaluate", evaluate_fn, state)
                        deferred.record("evaluate/ex", accuracy)
                except StepAbandoned:
                    pass  # `state` is that of step number `done`
                urgency = _urgency(interrupt, config.checkpoint, time.monotonic() - saved_at)
                is_due = step == steps or urgency or _is_due(step, config.checkpoint.every) or accuracy is not None
                if is_due and saved < done:
                    deferred.flush()
                    deferred.timed("checkpoint", _save, checkpoints, state, accuracy)
                    saved, saved_at = done, time.monotonic()
                progress.update(done - step + 1)
                if urgency == STOP:
                    break
            if collectives.global_max(interrupt.requested):
                command = " ".join(sys.orig_argv)
                raise Interrupted(f"stopped after step {int(state.step)} of {stage}, saved. To resume: {command}")
        return state


def _urgency(interrupt: Interrupt, settings: CheckpointConfig, seconds: float) -> int:
    """STOP if a signal asks to save and stop, SAVE if the last checkpoint is too long ago, else 0. Collective.

    A signal may reach only one process, and clocks differ, but all processes must do the same after the same step.

    seconds: since the last checkpoint.
    """
    late = 0 < settings.minutes <= seconds / 60 and collectives.is_primary()
    return collectives.global_max(STOP if interrupt.requested else SAVE if late else 0)


def _is_due(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens after `step`."""
    return interval > 0 and step % interval == 0


def _resume(checkpoints: Checkpoints, state: TrainState) -> tuple[TrainState, int]:
    """The state of the latest checkpoint that is not damaged, and its step.

    Without a checkpoint, saves `state` as step 0 and returns it.

    Raises:
      CheckpointDamagedError: all checkpoints are damaged; it is the latest one's.
    """
    steps = collectives.broadcast(checkpoints.steps())
    if not steps:
        _save(checkpoints, state, None)
        return state, 0
    damage: CheckpointDamagedError | None = None
    for step in reversed(steps):
        try:
            saved = checkpoints.load(step, _to_trees(state))
        except CheckpointDamagedError as error:
            log.error("%s", error)
            damage = damage or error
            continue
        step_count, opt_state = saved["optimizer"]
        if step:
            log.info("resuming at step %d of %s", step, checkpoints.folder)
        return TrainState(step_count, saved["params"], opt_state), step
    assert damage is not None
    raise damage


def _save(checkpoints: Checkpoints, state: TrainState, accuracy: float | None) -> None:
    checkpoints.save(int(state.step), _to_trees(state), accuracy)


def _to_trees(state: TrainState) -> dict[str, Any]:
    """The state as the pytrees that a checkpoint stores; `params` can be loaded without the optimizer state."""
    return {"params": state.params, "optimizer": (state.step, state.opt_state)}


class DeferredMetrics:
    """Writes each step's metrics after the next step is dispatched, so that fetching them does not stall the device.

    A step's line is written before its checkpoint, so that a kill in between cannot lose it. Therefore the seconds of a
    checkpoint appear in the next step's line.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._pending: tuple[int, StepResult] | None = None
        self._values: dict[str, float] = {}  # host values of the next line
        self._device_step: Any = None  # the newest state's step; ready once the device finishes that step
        self._last_flush, self._seconds_outside_step = time.perf_counter(), 0.0
        self._not_finite_steps = 0  # consecutive, up to the last line

    def push(self, step: int, result: StepResult) -> None:
        """Writes the pending step and makes this one pending."""
        self.flush()
        self._pending = step, result
        self._values |= result.values
        self._device_step = result.state.step

    def timed(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Waits until the device has finished the newest step, calls a function and returns its result.

        The function's seconds are recorded as time/<name> and are not part of time/step.
        """
        with watchdog.waiting():
            jax.block_until_ready(self._device_step)
        begin = time.perf_counter()
        with watchdog.activity(name):
            result = function(*args)
        seconds = time.perf_counter() - begin
        self.record(f"time/{name}", seconds)
        self._seconds_outside_step += seconds
        return result

    def record(self, name: str, value: float) -> None:
        """Adds a value to the next line."""
        self._values[name] = value

    def flush(self) -> None:
        """Waits for the pending step, if there is one, and writes its line.

        Raises:
          NotFiniteError: it is the last of MAX_NOT_FINITE consecutive steps that were not finite.
        """
        if self._pending is None:
            return
        (step, result), self._pending = self._pending, None
        with watchdog.waiting():
            values, self._values = self._values | mean_metrics(result.sums), {}
        now = time.perf_counter()
        seconds = max(now - self._last_flush - self._seconds_outside_step, 1e-9)
        self._last_flush, self._seconds_outside_step = now, 0.0
        self._not_finite_steps = self._not_finite_steps + 1 if values["not_finite"] else 0
        self._metrics.write(step, _with_throughput(values, seconds))
        if self._not_finite_steps >= MAX_NOT_FINITE:
            raise NotFiniteError(
                f"step {step} and the {MAX_NOT_FINITE - 1} before it had a loss or gradient that is not finite, so "
                f"they changed no weights. The last batch held {', '.join(result.items[:8])}. Lower the learning rate "
                "or look at these records."
            )


def _with_throughput(values: dict[str, float], seconds: float) -> dict[str, float]:
    """A step's metrics with its seconds, tokens per second and, on chips whose peak is known, mfu instead of flops."""
    values = dict(values)
    step_flops, peak_flops = values.pop("flops", 0.0), flops.peak_flops(jax.devices()[0])
    values["time/step"] = seconds
    values["tokens_per_second"] = values["tokens"] / seconds
    values["tokens_per_second_per_chip"] = values["tokens_per_second"] / jax.device_count()
    if step_flops and peak_flops:
        values["mfu"] = step_flops / (seconds * peak_flops * jax.device_count())
    return values
