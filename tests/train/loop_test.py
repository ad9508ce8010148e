from __future__ import annotations

import itertools
import json
import os
import signal
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.train import loop, metrics
from sqlr1_jax.train.checkpoint import CheckpointDamagedError, Checkpoints
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.interrupt import Interrupted, abandon_if_requested
from sqlr1_jax.train.state import TrainState

STAGE = "practice"
TIMINGS = ("time/", "tokens_per_second")  # prefixes of metrics that differ between equal runs
StepFn = Callable[[TrainState, int], loop.StepResult]


class FakeContext:
    """The part of a RunContext that the loop uses."""

    def __init__(self, workdir: Path, evaluate_every: int = 0, **checkpoint: Any):
        self.workdir = workdir
        self.config = config.Config(
            checkpoint=config.CheckpointConfig(**{"every": 2, **checkpoint}),
            evaluate=config.EvaluateConfig(every=evaluate_every),
        )

    def checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.workdir / "checkpoints" / stage, self.config.checkpoint.keep, pinned=(0,))


def _initial_state() -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(3)}, {"m": jnp.zeros(3)})


@jax.jit
def _update(state: TrainState, step: jax.Array) -> tuple[TrainState, dict[str, Any]]:
    """Weights that depend on every earlier step, and metrics that depend on the weights."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (3,))
    moment = 0.9 * state.opt_state["m"] + noise
    weights = state.params["w"] + 0.1 * moment
    sums = {"loss": (weights.sum(), jnp.ones(())), "not_finite": (jnp.zeros(()), jnp.ones(()))}
    return TrainState(state.step + 1, {"w": weights}, {"m": moment}), sums


def _step(state: TrainState, step: int) -> loop.StepResult:
    state, sums = _update(state, np.int32(step))
    return loop.StepResult(state, sums, {"tokens": 10.0 + step}, [f"item-{step}"])


def _train(context: FakeContext, steps: int, step_fn: StepFn = _step, **functions: Any) -> TrainState:
    return loop.run_steps(context, STAGE, steps, _initial_state(), step_fn, **functions)  # type: ignore[arg-type]


def _lines(context: FakeContext) -> list[dict[str, Any]]:
    """The run's metrics without timings: those that a resumed run must reproduce."""
    lines = metrics.read_metrics(context.workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(TIMINGS)} for line in lines]


def _values(state: TrainState) -> list[Any]:
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state)]


class Killed(BaseException):
    """Stands for SIGKILL: the code under test does not catch it."""


def test_each_step_has_one_line_with_its_metrics(tmp_path: Path) -> None:
    state = _train(FakeContext(tmp_path), 5)
    expected, losses = _initial_state(), []
    for step in range(5):
        expected, sums = _update(expected, np.int32(step))
        losses.append(float(sums["loss"][0]))
    assert _values(state) == _values(expected)
    lines = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [(STAGE, step) for step in range(1, 6)]
    assert [line["loss"] for line in lines] == losses
    assert [line["tokens"] for line in lines] == [10.0, 11.0, 12.0, 13.0, 14.0]
    for line in lines:
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["time/step"])
        assert line["tokens_per_second_per_chip"] == pytest.approx(line["tokens_per_second"] / jax.device_count())


def _killed_in(killed_step: int) -> StepFn:
    def step_fn(state: TrainState, step: int) -> loop.StepResult:
        if step == killed_step:
            raise Killed
        return _step(state, step)

    return step_fn


def _two_contexts(folder: Path) -> tuple[FakeContext, FakeContext]:
    """Contexts of a run that is never killed, and of one that is."""
    contexts = FakeContext(folder / "whole"), FakeContext(folder / "killed")
    for context in contexts:
        context.workdir.mkdir()
    return contexts


@pytest.mark.parametrize("killed_step", range(6))
def test_a_run_killed_in_any_step_ends_like_one_that_was_not(tmp_path: Path, killed_step: int) -> None:
    whole, killed = _two_contexts(tmp_path)
    expected = _train(whole, 6)
    with pytest.raises(Killed):
        _train(killed, 6, _killed_in(killed_step))
    resumed_at: list[int] = []
    assert _values(_train(killed, 6, on_resume=resumed_at.append)) == _values(expected)
    assert resumed_at == [killed_step - killed_step % 2]
    assert _lines(killed) == _lines(whole)


def _cut_short(context: FakeContext, step: int) -> None:
    """Damages a checkpoint as a full disk does."""
    for path in (context.workdir / "checkpoints" / STAGE / str(step)).rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = _two_contexts(tmp_path)
    expected = _train(whole, 6)
    with pytest.raises(Killed):
        _train(damaged, 6, _killed_in(5))
    _cut_short(damaged, 4)
    resumed_at: list[int] = []
    assert _values(_train(damaged, 6, on_resume=resumed_at.append)) == _values(expected)
    assert resumed_at == [2] and f"{STAGE}/4 cannot be read" in caplog.text
    assert _lines(damaged) == _lines(whole)


def test_if_all_checkpoints_are_damaged_nothing_starts_anew(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    _train(context, 4)
    for step in (0, 2, 4):
        _cut_short(context, step)
    with pytest.raises(CheckpointDamagedError, match=f"{STAGE}/4 cannot be read"):
        _train(context, 6)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("killed_step", [2, 4, 6])
def test_a_run_killed_around_a_checkpoint_has_one_line_per_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, killed_step: int
) -> None:
    whole, killed = _two_contexts(tmp_path)
    expected = _train(whole, 6)
    save = Checkpoints.save

    def save_and_die(self: Checkpoints, step: int, trees: dict[str, Any], accuracy: float | None = None) -> None:
        if step == killed_step and moment == "before":
            raise Killed
        save(self, step, trees, accuracy)
        if step == killed_step:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
        _train(killed, 6)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert _values(_train(killed, 6)) == _values(expected)
    assert _lines(killed) == _lines(whole)


def test_a_completed_stage_runs_no_step_and_a_lengthened_one_continues(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    completed = _train(context, 3)
    assert _values(_train(context, 3, _killed_in(0))) == _values(completed)
    assert _values(_train(context, 5)) == _values(_train(FakeContext(tmp_path / "other"), 5))
    assert [line["step"] for line in _lines(context)] == [1, 2, 3, 4, 5]


def test_programs_are_compiled_only_if_a_step_is_left(tmp_path: Path) -> None:
    compiled: list[int] = []

    def compile_fn(state: TrainState) -> TrainState:
        compiled.append(int(state.step))
        return state

    _train(FakeContext(tmp_path), 2, compile_fn=compile_fn)
    _train(FakeContext(tmp_path), 2, compile_fn=compile_fn)
    _train(FakeContext(tmp_path), 3, compile_fn=compile_fn)
    assert compiled == [0, 2]


def test_a_stage_of_no_steps_saves_its_initial_state(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    assert _values(_train(context, 0)) == _values(_initial_state())
    assert context.checkpoints(STAGE).steps() == [0]


def test_the_last_two_checkpoints_the_best_and_the_first_are_kept(tmp_path: Path) -> None:
    context, accuracy = FakeContext(tmp_path, evaluate_every=2), {2: 0.1, 4: 0.7, 6: 0.3, 8: 0.6, 9: 0.2}
    _train(context, 9, evaluate_fn=lambda state: accuracy[int(state.step)])
    checkpoints = context.checkpoints(STAGE)
    assert checkpoints.steps() == [0, 4, 8, 9]
    assert (checkpoints.best(), checkpoints.latest()) == (4, 9)
    assert {line["step"]: line["evaluate/ex"] for line in _lines(context) if "evaluate/ex" in line} == accuracy


def _not_finite_in(steps: set[int]) -> StepFn:
    def step_fn(state: TrainState, step: int) -> loop.StepResult:
        result = _step(state, step)
        return result._replace(sums=dict(result.sums) | {"not_finite": (jnp.float32(step in steps), jnp.ones(()))})

    return step_fn


def test_three_consecutive_steps_that_are_not_finite_stop_the_run_with_their_items(tmp_path: Path) -> None:
    with pytest.raises(loop.NotFiniteError) as stop:
        _train(FakeContext(tmp_path), 9, _not_finite_in({3, 4, 5}))
    assert "step 6 and the 2 before it" in str(stop.value)
    assert "item-5" in str(stop.value)
    assert [line["not_finite"] for line in _lines(FakeContext(tmp_path))] == [0, 0, 0, 1, 1, 1]


def test_the_run_stops_before_it_saves_a_state_that_is_not_finite(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, every=6)
    with pytest.raises(loop.NotFiniteError):
        _train(context, 6, _not_finite_in({3, 4, 5}))
    assert context.checkpoints(STAGE).steps() == [0]


@pytest.mark.parametrize("steps", [{0, 1}, {0, 1, 3, 4, 6, 7}, {7, 8}])
def test_fewer_consecutive_steps_that_are_not_finite_are_counted_and_the_run_continues(
    tmp_path: Path, steps: set[int]
) -> None:
    context = FakeContext(tmp_path)
    _train(context, 9, _not_finite_in(steps))
    assert {line["step"] - 1 for line in _lines(context) if line["not_finite"]} == steps


def _signaled_in(signaled_step: int, number: signal.Signals) -> StepFn:
    def step_fn(state: TrainState, step: int) -> loop.StepResult:
        if step == signaled_step:
            os.kill(os.getpid(), number)
        return _step(state, step)

    return step_fn


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_signal_finishes_the_step_saves_it_and_names_the_command_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int
) -> None:
    """In the last step, too: the stages that follow must not start."""
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "sqlr1_jax.main", "--workdir=here"])
    context, before = FakeContext(tmp_path), signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"after step {step + 1} of {STAGE}.*python -m sqlr1_jax.main --workdir=here"):
        _train(context, 5, _signaled_in(step, number))
    assert signal.getsignal(number) is before
    assert context.checkpoints(STAGE).latest() == step + 1
    assert _values(_train(context, 5)) == _values(_train(FakeContext(tmp_path / "other"), 5))
    assert [line["step"] for line in _lines(context)] == [1, 2, 3, 4, 5]


def test_a_signal_during_the_last_evaluation_interrupts_the_run(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)

    def evaluate_fn(_: Any) -> float:
        signal.raise_signal(signal.SIGINT)
        return 0.5

    with pytest.raises(Interrupted, match=f"after step 2 of {STAGE}"):
        _train(context, 2, evaluate_fn=evaluate_fn)
    assert context.checkpoints(STAGE).latest() == 2


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_a_step_that_a_signal_abandons_is_made_again(
    tmp_path: Path, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is kept, the step before it is saved if it was not, and the run ends as if it had not stopped."""

    def step_fn(state: TrainState, number: int) -> loop.StepResult:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
            abandon_if_requested()
        return _step(state, number)

    whole, context = _two_contexts(tmp_path)
    with pytest.raises(Interrupted, match=f"after step {step} of {STAGE}"):
        _train(context, 5, step_fn)
    assert context.checkpoints(STAGE).latest() == step
    assert [line["step"] for line in _lines(context)] == list(range(1, step + 1))
    assert _values(_train(context, 5)) == _values(_train(whole, 5))
    assert _lines(context) == _lines(whole)


def test_a_signal_abandons_an_evaluation_but_not_its_step(tmp_path: Path) -> None:
    def evaluate_fn(_: Any) -> float:
        signal.raise_signal(signal.SIGTERM)
        abandon_if_requested()
        return 0.5

    context = FakeContext(tmp_path)
    with pytest.raises(Interrupted, match=f"after step 5 of {STAGE}"):
        _train(context, 5, evaluate_fn=evaluate_fn)
    assert context.checkpoints(STAGE).latest() == 5


def test_checkpoints_are_written_by_minutes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that the loop sees goes 40 seconds further each time it is read."""
    context, clock = FakeContext(tmp_path, every=0, minutes=2.0, keep=10), itertools.count(0, 40)
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=clock.__next__, perf_counter=time.perf_counter))
    _train(context, 9)
    assert context.checkpoints(STAGE).steps() == [0, 3, 6, 9]


def test_lines_of_other_stages_are_kept(tmp_path: Path) -> None:
    earlier = {"stage": "earlier", "step": 9, "loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(earlier) + "\n")
    _train(FakeContext(tmp_path), 2)
    assert _lines(FakeContext(tmp_path))[0] == earlier


def test_metrics_are_fetched_one_step_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's line is written once the next step is dispatched, so the device never waits for the host."""
    events: list[str] = []
    write = metrics.Metrics.write

    def logged_write(self: metrics.Metrics, step: int, values: Any) -> None:
        events.append(f"write {step}")
        write(self, step, values)

    def step_fn(state: TrainState, step: int) -> loop.StepResult:
        events.append(f"step {step + 1}")
        return _step(state, step)

    monkeypatch.setattr(metrics.Metrics, "write", logged_write)
    _train(FakeContext(tmp_path, every=0), 3, step_fn)
    assert events == ["step 1", "step 2", "write 1", "step 3", "write 2", "write 3"]


def test_the_fake_context_has_only_attributes_of_the_real_one() -> None:
    for name in ("workdir", "config"):
        assert name in RunContext.__dataclass_fields__
    assert isinstance(RunContext.checkpoints, types.FunctionType)
