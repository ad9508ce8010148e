from __future__ import annotations

from collections.abc import Callable

import pytest

from sqlr1_jax import lint
from sqlr1_jax.data import schema
from sqlr1_jax.lint.statement import Statement
from sqlr1_jax.sql.executor import Executor
from testing.databases import make_shop

FindReasons = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def find_reasons(tmp_path_factory: pytest.TempPathFactory, executor: Executor) -> FindReasons:
    """Applies all rules to a query on the shop database: the reasons of those that find something, by rule."""
    database = make_shop(tmp_path_factory.mktemp("lint"))
    tables = schema.read_schema(database, sampled=False)

    def find(sql: str) -> dict[str, str]:
        reasons = {}
        for suspicion in lint.suspicions(Statement(sql, tables)):
            outcomes = [executor.run(database, query).result() for query in suspicion.queries]
            verdict = suspicion.verdict(outcomes)
            if verdict:
                reasons[suspicion.rule] = suspicion.reason + (verdict if isinstance(verdict, str) else "")
        return reasons

    return find
