"""Stops GRPO if its first steps show that it cannot learn anything, before hours are spent.

Advantages compare the completions of one group. If no group has both right and wrong ones, every advantage is 0, and so
is every gradient; if nearly no completion has the answer form, the reward says nothing about the SQL.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.rl.scoring import Rewards
from sqlr1_jax.sql.outcome import OutcomeKind

MALFORMED = 0.98  # a fraction of badly formed completions from which on nothing is learned
SHOWN_ROLLOUTS, SHOWN_CHARACTERS = 3, 400
_ADVICE = (
    "What helps: an SFT stage before GRPO (config.stages), the answer form that the model gives by itself "
    "(config.data.form=direct, or config.grpo.reward.open_answer=True), easier questions, or more samples per prompt. "
    "config.grpo.idle_steps=0 trains on regardless."
)


class NothingToLearnError(Sqlr1Error):
    """The first steps of GRPO had no signal; the message says what was seen and what helps."""


class LearningCheck:
    """Watches the first steps of GRPO that a process runs. All processes see the same rewards, so all stop alike."""

    def __init__(self, steps: int) -> None:
        """steps: how many steps to watch; 0: none."""
        self._steps, self._seen = steps, 0
        self._mixed = self._groups = 0
        self._outcomes = np.zeros(len(OutcomeKind), np.int64)

    def watch(self, rewards: Rewards, texts: Sequence[Sequence[str]]) -> None:
        """Counts a step's groups and outcomes, of all processes.

        Args:
          rewards: of the step.
          texts: this process's completions, [prompt][sample], for the message.

        Raises:
          NothingToLearnError: this is the last step to watch, and there was nothing to learn.
        """
        if self._seen >= self._steps:
            return
        self._seen += 1
        right_PG = rewards.correct_PG
        self._groups += len(right_PG)
        self._mixed += int((right_PG.any(axis=1) & ~right_PG.all(axis=1)).sum())
        self._outcomes += np.bincount(rewards.outcome_PG.ravel(), minlength=len(OutcomeKind))
        malformed = sum(self._outcomes[kind.code] for kind in OutcomeKind if not kind.well_formed)
        if self._seen == self._steps and (not self._mixed or malformed >= MALFORMED * self._outcomes.sum()):
            raise NothingToLearnError(self._message(texts))

    def _message(self, texts: Sequence[Sequence[str]]) -> str:
        counts = {kind: int(self._outcomes[kind.code]) for kind in OutcomeKind if self._outcomes[kind.code]}
        outcomes = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items(), key=lambda item: -item[1]))
        shown = [text for group in texts for text in group][:SHOWN_ROLLOUTS]
        rollouts = "\n".join(f"--- rollout {i + 1}\n{text[:SHOWN_CHARACTERS]}" for i, text in enumerate(shown))
        return (
            f"nothing to learn in {self._seen} steps: {self._mixed} of {self._groups} groups had both right and wrong "
            f"answers; the completions were {outcomes}.\n{rollouts}\n{_ADVICE}"
        )
