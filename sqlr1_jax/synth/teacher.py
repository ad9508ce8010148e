"""A simulated fallible teacher for the SFT split.

It has two habits: systematic errors, each of which turns a correct gold query into a wrong one ("spoils" it). Reasoning
is written from the query, so it has the same error.
"""

from __future__ import annotations

from sqlr1_jax.synth.queries import Compound, Expr, Query, Select, With

EXTRA_COLUMN = "extra_column"  # also selects the column that the query orders by, or compares with an aggregate
DROPPED_DISTINCT = "dropped_distinct"  # leaves out DISTINCT


def habit(query: Query) -> str:
    """The habit that applies to a query; "" for none."""
    if isinstance(query, Compound | With):
        return ""
    if query.distinct or any(isinstance(c, Expr) and c.distinct for c in query.columns):
        return DROPPED_DISTINCT
    return EXTRA_COLUMN if _compared_column(query) else ""


def spoil(query: Query) -> Query:
    """The query with the error of the habit that applies to it; the query itself if none does."""
    applied = habit(query)
    if not isinstance(query, Select) or not applied:
        return query
    if applied == EXTRA_COLUMN:
        return query._replace(columns=(*query.columns, Expr(_compared_column(query))))
    columns = tuple(c._replace(distinct=False) if isinstance(c, Expr) else c for c in query.columns)
    return query._replace(distinct=False, columns=columns)


def _compared_column(query: Select) -> str:
    """The column that a query orders by, or compares with a subquery's aggregate; "" if it does neither."""
    if query.order:
        return query.order
    for condition in query.where:
        right = condition.right
        if isinstance(right, Select) and isinstance(right.columns[0], Expr) and right.columns[0].function:
            return condition.left.column
    return ""
