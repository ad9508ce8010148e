from __future__ import annotations

from pathlib import Path

import pytest

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.sql.answers import submit_answer
from sqlr1_jax.sql.executor import Executor, ExecutorError
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

COUNT = "SELECT count(*) FROM dogs"


def _answer(sql: str) -> Answer:
    return Answer("", f"```sql\n{sql}\n```", sql)


def test_an_answer_is_compared_with_the_gold_result_by_the_rule(executor: Executor, pets: Path) -> None:
    swapped = _answer("SELECT age, color FROM dogs")
    kinds = [
        submit_answer(executor, swapped, pets, "SELECT color, age FROM dogs", rule).result().kind
        for rule in ("spider", "bird")
    ]
    assert kinds == [OutcomeKind.MATCH, OutcomeKind.MISMATCH]


def test_without_a_gold_query_the_answer_is_only_run(executor: Executor, pets: Path) -> None:
    outcome = submit_answer(executor, _answer(COUNT), pets).result()
    assert (outcome.kind, outcome.rows) == (OutcomeKind.OK, ((4,),))


@pytest.mark.parametrize("problem", [OutcomeKind.NO_SQL, OutcomeKind.BAD_FORMAT])
def test_an_answer_without_sql_is_done_at_once(executor: Executor, pets: Path, problem: OutcomeKind) -> None:
    future = submit_answer(executor, Answer("", "", None, problem), pets, COUNT)
    assert future.done()
    assert future.result() == Outcome(problem)


def test_a_closed_executor_and_an_unknown_rule_are_errors(executor: Executor, pets: Path) -> None:
    with pytest.raises(ValueError, match="spidre"):
        submit_answer(executor, _answer(COUNT), pets, COUNT, "spidre")
    with Executor(ExecuteConfig(workers=1)) as closed:
        pass
    with pytest.raises(ExecutorError, match="closed"):
        submit_answer(closed, _answer(COUNT), pets, COUNT)
