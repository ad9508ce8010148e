"""Rules that find gold queries which run but look wrong.

A rule reads the syntax tree of the query and the schema of its database. If they do not decide, its suspicion carries
queries to run on the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlr1_jax.lint import rows, values
from sqlr1_jax.lint.statement import Statement
from sqlr1_jax.lint.suspicion import Suspicion

SYNTAX_RULES: tuple[Callable[[Statement], Iterator[Suspicion]], ...] = (
    values.clock,
    rows.arbitrary_limit,
    rows.bare_column,
    rows.cross_join,
    rows.fan_out,
    values.null_comparison,
    values.text_number,
    values.text_order,
    values.integer_division,
    values.absent_value,
)


def suspicions(statement: Statement) -> list[Suspicion]:
    """What the rules suspect of a gold query; a suspicion with queries is decided only by running them."""
    return [suspicion for rule in SYNTAX_RULES for suspicion in rule(statement)]
