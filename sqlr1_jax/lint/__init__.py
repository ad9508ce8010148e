"""Golds that run but look wrong: rules on their syntax trees, decided on the database where the tree cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlr1_jax.lint import rows, values
from sqlr1_jax.lint.statement import Statement
from sqlr1_jax.lint.suspicion import Suspicion

Rule = Callable[[Statement], Iterator[Suspicion]]

RULES: tuple[Rule, ...] = (
    values.clock,
    rows.limit,
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
    """What the rules suspect of a gold, each suspicion still to be decided by its queries."""
    return [suspicion for rule in RULES for suspicion in rule(statement)]
