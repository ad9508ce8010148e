from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sqlr1_jax import config
from sqlr1_jax.data import lint, schema
from sqlr1_jax.lint.statement import Statement
from sqlr1_jax.sql.executor import Executor
from testing.databases import make_shop

Found = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """The reasons of the rules that speak on a query over the shop, by rule."""
    database = make_shop(tmp_path_factory.mktemp("lint"))
    tables = schema.read_schema(database, sampled=False)
    with Executor(config.ExecuteConfig(workers=1)) as executor:

        def one(sql: str) -> dict[str, str]:
            reasons = {}
            for suspicion in lint.suspicions(Statement(sql, tables)):
                outcomes = [executor.run(database, query).result() for query in suspicion.queries]
                verdict = suspicion.verdict(outcomes)
                if verdict:
                    reasons[suspicion.rule] = suspicion.reason + (verdict if isinstance(verdict, str) else "")
            return reasons

        yield one
