"""python -m testing.killed_runs STAGE STEP MOMENT FLAGS…: main, which kills itself at a moment of a stage's step.

Moments: stepped (the step is on its way, its metrics are not written), saving (before its checkpoint), writing (during
it), saved (after it). With the stage `difficulty`, STEP is a chunk of that measurement, from 0; its moment is saved.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from typing import Any

from absl import app

from sqlr1_jax import main
from sqlr1_jax.evaluate.partial_results import PartialResults
from sqlr1_jax.rl import difficulty
from sqlr1_jax.train import checkpoint, loop


def kill() -> None:
    """Ends this process as the system would for want of memory: nothing is closed or flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_taking(stage: str, at: int) -> None:
    """Has the training loop of that stage kill the process once step `at` (from 1) is taken."""
    train = loop.run_steps

    def train_and_kill(*arguments: Any, **named: Any) -> Any:
        call = inspect.signature(train).bind(*arguments, **named)
        step_fn = call.arguments["step_fn"]

        def step_and_kill(state: Any, step: int) -> loop.StepResult:
            result: loop.StepResult = step_fn(state, step)
            if (call.arguments["stage"], step + 1) == (stage, at):
                kill()
            return result

        call.arguments["step_fn"] = step_and_kill
        return train(*call.args, **call.kwargs)

    loop.run_steps = train_and_kill


def kill_around_saving(stage: str, at: int, moment: str) -> None:
    """Has the checkpoint of step `at` kill the process: before, while or after it is written."""
    save = checkpoint.Checkpoints.save

    def save_and_kill(self: Any, step: int, *arguments: Any) -> None:
        here = (self.folder.name, step) == (stage, at)
        if here and moment == "saving":
            kill()
        save(self, step, *arguments)
        if here and moment == "saved":
            self.wait()
        if here and moment in ("writing", "saved"):
            kill()

    checkpoint.Checkpoints.save = save_and_kill  # type: ignore[method-assign, assignment]


def kill_after_chunk(at: int) -> None:
    """Has the measurement of difficulty kill the process once the counts of chunk `at` are on disk."""
    add = PartialResults.add

    def add_and_kill(self: Any, chunk: int, answers: Any) -> None:
        add(self, chunk, answers)
        if (self.path.name, chunk) == (difficulty.PARTIAL, at):
            kill()

    PartialResults.add = add_and_kill  # type: ignore[method-assign]


if __name__ == "__main__":
    stage, step, moment, *arguments = sys.argv[1:]
    if stage == "difficulty":
        kill_after_chunk(int(step))
    elif moment == "stepped":
        kill_after_taking(stage, int(step))
    else:
        kill_around_saving(stage, int(step), moment)
    app.run(main.absl_main, argv=[sys.argv[0], *arguments], flags_parser=main.parse)
