from __future__ import annotations

import dataclasses
import json
import os
import signal
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
from sqlr1_jax.train.checkpoint import Checkpoints
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.interrupt import Interrupted
from sqlr1_jax.train.state import TrainState

STAGE = "practice"
TIMED = ("time/", "tokens_per_second")


class FakeContext:
    """The part of a RunContext that the loop uses."""

    def __init__(self, workdir: Path, **checkpoint: Any):
        self.workdir = workdir
        every = checkpoint.pop("evaluate_every", 0)
        cfg = config.Config(checkpoint=config.CheckpointConfig(**{"every": 2, **checkpoint}))
        self.config = dataclasses.replace(cfg, evaluate=config.EvaluateConfig(every=every))

    def checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.workdir / "checkpoints" / stage, self.config.checkpoint.keep, always=(0,))


def _fresh() -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(3)}, {"m": jnp.zeros(3)})


@jax.jit
def _step(at: TrainState, step: jax.Array) -> tuple[TrainState, dict[str, Any]]:
    """Weights that depend on every step before, and metrics that depend on the weights."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (3,))
    moment = 0.9 * at.opt_state["m"] + noise
    weights = at.params["w"] + 0.1 * moment
    sums = {"loss": (weights.sum(), jnp.ones(())), "not_finite": (jnp.zeros(()), jnp.ones(()))}
    return TrainState(at.step + 1, {"w": weights}, {"m": moment}), sums


def _take(at: TrainState, step: int) -> loop.StepResult:
    at, sums = _step(at, np.int32(step))
    return loop.StepResult(at, sums, {"tokens": 10.0 + step}, [f"item-{step}"])


def _train(
    context: FakeContext, steps: int, take: Callable[[TrainState, int], loop.StepResult] = _take, **more: Any
) -> TrainState:
    return loop.run_steps(context, STAGE, steps, _fresh(), take, **more)  # type: ignore[arg-type]


def _lines(context: FakeContext) -> list[dict[str, Any]]:
    """The metrics that a run promises to repeat."""
    lines = metrics.read_metrics(context.workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(TIMED)} for line in lines]


def _weights(at: TrainState) -> list[Any]:
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(at)]


class Killed(BaseException):
    """Stands for SIGKILL: nothing between here and the test catches it."""


def test_each_step_has_one_line_with_its_own_numbers(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    at = _train(context, 5)
    by_hand, losses = _fresh(), []
    for step in range(5):
        by_hand, sums = _step(by_hand, np.int32(step))
        losses.append(float(sums["loss"][0]))
    assert _weights(at) == _weights(by_hand)
    lines = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [(STAGE, step) for step in range(1, 6)]
    assert [line["loss"] for line in lines] == losses
    assert [line["tokens"] for line in lines] == [10.0, 11.0, 12.0, 13.0, 14.0]
    for line in lines:
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["time/step"])
        assert line["tokens_per_second_per_chip"] == pytest.approx(line["tokens_per_second"] / jax.device_count())


def _dies_in_step(at: int) -> Callable[[TrainState, int], loop.StepResult]:
    def take(state: TrainState, step: int) -> loop.StepResult:
        if step == at:
            raise Killed
        return _take(state, step)

    return take


@pytest.mark.parametrize("death", range(6))
def test_killed_in_any_step_it_ends_as_if_nothing_had_happened(tmp_path: Path, death: int) -> None:
    whole, context = FakeContext(tmp_path / "whole"), FakeContext(tmp_path / "killed")
    for one in (whole, context):
        one.workdir.mkdir()
    want = _train(whole, 6)
    with pytest.raises(Killed):
        _train(context, 6, _dies_in_step(death))
    rewound: list[int] = []
    assert _weights(_train(context, 6, rewind=rewound.append)) == _weights(want)
    assert rewound == [death - death % 2]
    assert _lines(context) == _lines(whole)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("death", [2, 4, 6])
def test_a_run_killed_around_a_checkpoint_loses_and_doubles_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, death: int
) -> None:
    whole, context = FakeContext(tmp_path / "whole"), FakeContext(tmp_path / "killed")
    for one in (whole, context):
        one.workdir.mkdir()
    want = _train(whole, 6)
    save = Checkpoints.save

    def dies(self: Checkpoints, step: int, trees: dict[str, Any], score: float | None = None) -> None:
        if step == death and moment == "before":
            raise Killed
        save(self, step, trees, score)
        if step == death:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", dies)
    with pytest.raises(Killed):
        _train(context, 6)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert _weights(_train(context, 6)) == _weights(want)
    assert _lines(context) == _lines(whole)


def test_a_stage_that_is_done_takes_no_step_and_one_made_longer_goes_on(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    done = _train(context, 3)
    assert _weights(_train(context, 3, _dies_in_step(0))) == _weights(done)
    assert _weights(_train(context, 5)) == _weights(_train(FakeContext(tmp_path / "other"), 5))
    assert [line["step"] for line in _lines(context)] == [1, 2, 3, 4, 5]


def test_a_stage_of_no_steps_leaves_its_beginning(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)
    assert _weights(_train(context, 0)) == _weights(_fresh())
    assert context.checkpoints(STAGE).steps() == [0]


def test_the_last_two_the_best_and_the_first_are_kept(tmp_path: Path) -> None:
    context, scores = FakeContext(tmp_path, evaluate_every=2), {2: 0.1, 4: 0.7, 6: 0.3, 8: 0.6, 9: 0.2}
    _train(context, 9, evaluate=lambda at: scores[int(at.step)])
    checkpoints = context.checkpoints(STAGE)
    assert checkpoints.steps() == [0, 4, 8, 9]
    assert (checkpoints.best(), checkpoints.latest()) == (4, 9)
    assert {line["step"]: line["evaluate/ex"] for line in _lines(context) if "evaluate/ex" in line} == scores


def _not_finite(bad: set[int]) -> Callable[[TrainState, int], loop.StepResult]:
    def take(at: TrainState, step: int) -> loop.StepResult:
        taken = _take(at, step)
        return taken._replace(sums=dict(taken.sums) | {"not_finite": (jnp.float32(step in bad), jnp.ones(()))})

    return take


def test_three_steps_in_a_row_that_are_not_finite_stop_the_run_by_name(tmp_path: Path) -> None:
    with pytest.raises(loop.NotFiniteError) as stop:
        _train(FakeContext(tmp_path), 9, _not_finite({3, 4, 5}))
    assert "step 6 and the 2 before it" in str(stop.value)
    assert "item-5" in str(stop.value)
    assert [line["not_finite"] for line in _lines(FakeContext(tmp_path))] == [0, 0, 0, 1, 1, 1]


def test_the_run_stops_before_such_weights_are_saved(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, every=6)
    with pytest.raises(loop.NotFiniteError):
        _train(context, 6, _not_finite({3, 4, 5}))
    assert context.checkpoints(STAGE).steps() == [0]


@pytest.mark.parametrize("bad", [{0, 1}, {0, 1, 3, 4, 6, 7}, {7, 8}])
def test_fewer_in_a_row_are_counted_and_the_run_goes_on(tmp_path: Path, bad: set[int]) -> None:
    context = FakeContext(tmp_path)
    _train(context, 9, _not_finite(bad))
    assert {line["step"] - 1 for line in _lines(context) if line["not_finite"]} == bad


def _interrupted_in(at: int, number: signal.Signals) -> Callable[[TrainState, int], loop.StepResult]:
    def take(state: TrainState, step: int) -> loop.StepResult:
        if step == at:
            os.kill(os.getpid(), number)
        return _take(state, step)

    return take


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_signal_finishes_and_saves_the_step_and_shows_the_command_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at: int
) -> None:
    """At the last step too: the stages that follow must not begin."""
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "sqlr1_jax.main", "--workdir=here"])
    context, before = FakeContext(tmp_path), signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"after step {at + 1} of {STAGE}.*python -m sqlr1_jax.main --workdir=here"):
        _train(context, 5, _interrupted_in(at, number))
    assert signal.getsignal(number) is before
    assert context.checkpoints(STAGE).latest() == at + 1
    assert _weights(_train(context, 5)) == _weights(_train(FakeContext(tmp_path / "other"), 5))
    assert [line["step"] for line in _lines(context)] == [1, 2, 3, 4, 5]


def test_a_signal_while_the_last_step_is_evaluated_is_heard(tmp_path: Path) -> None:
    context = FakeContext(tmp_path)

    def evaluate(_: Any) -> float:
        signal.raise_signal(signal.SIGINT)
        return 0.5

    with pytest.raises(Interrupted, match=f"after step 2 of {STAGE}"):
        _train(context, 2, evaluate=evaluate)
    assert context.checkpoints(STAGE).latest() == 2


def test_other_stages_keep_their_lines(tmp_path: Path) -> None:
    earlier = {"stage": "earlier", "step": 9, "loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(earlier) + "\n")
    _train(FakeContext(tmp_path), 2)
    assert _lines(FakeContext(tmp_path))[0] == earlier


def test_metrics_are_written_one_step_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a step runs, nothing waits for it: the line of the one before is written then."""
    seen: list[str] = []
    write = metrics.Metrics.write

    def noted(self: metrics.Metrics, step: int, values: Any) -> None:
        seen.append(f"write {step}")
        write(self, step, values)

    def take(at: TrainState, step: int) -> loop.StepResult:
        seen.append(f"take {step + 1}")
        return _take(at, step)

    monkeypatch.setattr(metrics.Metrics, "write", noted)
    _train(FakeContext(tmp_path, every=0), 3, take)
    assert seen == ["take 1", "take 2", "write 1", "take 3", "write 2", "write 3"]


def test_the_fake_context_has_nothing_that_the_real_one_lacks() -> None:
    for name in ("workdir", "config"):
        assert name in RunContext.__dataclass_fields__
    assert isinstance(RunContext.checkpoints, types.FunctionType)
