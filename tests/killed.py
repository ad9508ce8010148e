"""python tests/killed.py STAGE STEP MOMENT FLAGS…: main, which kills itself at a moment of a stage's step.

Moments: stepped (the step is on its way, its line is not written), saving (before its checkpoint), writing (during
it), saved (after it).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from absl import app

from sqlr1_jax import main
from sqlr1_jax.train import checkpoint, loop


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(stage: str, at: int, moment: str) -> None:
    push, save = loop._Late.push, checkpoint.Checkpoints.save

    def pushing(self: Any, step: int, taken: Any) -> None:
        push(self, step, taken)
        if moment == "stepped" and (self._metrics._stage, step) == (stage, at):
            _die()

    def saving(self: Any, step: int, *arguments: Any) -> None:
        here = (self.folder.name, step) == (stage, at)
        if here and moment == "saving":
            _die()
        save(self, step, *arguments)
        if here and moment == "saved":
            self.wait()
        if here and moment in ("writing", "saved"):
            _die()

    loop._Late.push, checkpoint.Checkpoints.save = pushing, saving  # type: ignore[method-assign]


if __name__ == "__main__":
    stage, step, moment, *arguments = sys.argv[1:]
    _arm(stage, int(step), moment)
    app.run(main.main, argv=[sys.argv[0], *arguments], flags_parser=main.parse)
