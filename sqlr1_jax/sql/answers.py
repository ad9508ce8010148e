"""The SQL of a model's answer, submitted to the executor: the one step from `Answer` to `Outcome`."""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sqlr1_jax.sql.outcome import Outcome

if TYPE_CHECKING:
    from sqlr1_jax.data.answer import Answer
    from sqlr1_jax.sql.executor import Executor


def submit_answer(
    executor: Executor,
    answer: Answer,
    database: str | os.PathLike[str],
    gold_sql: str | None = None,
    rule: str = "spider",
) -> Future[Outcome]:
    """Runs the SQL of an answer, exactly as the model wrote it.

    Args:
      executor: an open pool.
      answer: if it has no SQL, nothing runs, and the Future already holds the answer's problem as its outcome.
      database: the SQLite file.
      gold_sql: the gold query to compare results with; None: no comparison.
      rule: the comparison, a name in `compare.RULES`.

    Raises:
      ValueError: the rule is unknown.
      ExecutorError: the executor is closed.
    """
    if answer.problem:
        outcome: Future[Outcome] = Future()
        outcome.set_result(Outcome(answer.problem))
        return outcome
    assert answer.sql is not None, "an Answer without SQL has a problem"
    if gold_sql is None:
        return executor.run(database, answer.sql)
    return executor.submit(database, answer.sql, gold_sql, rule)
