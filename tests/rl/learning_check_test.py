from __future__ import annotations

import numpy as np
import pytest

from sqlr1_jax.rl.learning_check import LearningCheck, NothingToLearnError
from sqlr1_jax.rl.scoring import Rewards
from sqlr1_jax.sql.outcome import OutcomeKind

RIGHT, WRONG, BAD = OutcomeKind.MATCH, OutcomeKind.MISMATCH, OutcomeKind.BAD_FORMAT


def _rewards(groups: list[list[OutcomeKind]]) -> Rewards:
    correct_PG = np.asarray([[kind.correct for kind in group] for group in groups])
    outcome_PG = np.asarray([[kind.code for kind in group] for group in groups], np.int32)
    ones_PG = np.ones(correct_PG.shape, np.int32)
    return Rewards(
        np.zeros((*correct_PG.shape, 1), np.float32), correct_PG, np.ones(len(groups), bool), outcome_PG, ones_PG,
        ones_PG > 0,
    )  # fmt: skip


def test_a_run_without_a_mixed_group_is_stopped_with_what_was_seen() -> None:
    check, texts = LearningCheck(3), [["SELECT 1" * 100, "b"], ["c", "d"]]
    for _ in range(2):
        check.watch(_rewards([[RIGHT, RIGHT], [WRONG, BAD]]), texts)
    with pytest.raises(NothingToLearnError) as error:
        check.watch(_rewards([[WRONG, WRONG], [WRONG, BAD]]), texts)
    message = str(error.value)
    assert "3 steps: 0 of 6 groups" in message and "5 mismatch, 4 match, 3 bad_format" in message
    assert message.count("--- rollout") == 3 and "SELECT 1" * 50 in message and "SELECT 1" * 51 not in message
    assert "config.data.form=direct" in message


def test_a_run_whose_answers_are_badly_formed_is_stopped_even_if_one_is_right() -> None:
    check = LearningCheck(1)
    with pytest.raises(NothingToLearnError, match="1 of 25 groups"):
        check.watch(_rewards([[RIGHT, BAD], *[[BAD, BAD]] * 24]), [["a", "b"]])


@pytest.mark.parametrize("steps", [0, 2])
def test_one_mixed_group_is_enough_and_later_steps_are_not_watched(steps: int) -> None:
    check = LearningCheck(steps)
    check.watch(_rewards([[RIGHT, WRONG], [WRONG, WRONG]]), [["a", "b"]])
    for _ in range(5):
        check.watch(_rewards([[WRONG, WRONG], [WRONG, BAD]]), [["a", "b"]])
