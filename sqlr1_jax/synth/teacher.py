"""A fallible teacher: two habits that spoil a sound gold, in the query and so in its reasoning too."""

from __future__ import annotations

from sqlr1_jax.synth.queries import Compound, Expr, Query, Select, With

EXTRA_COLUMN = "extra_column"  # also selects the column it ordered by, or compared to an aggregate
DROPPED_DISTINCT = "dropped_distinct"
HABITS = (EXTRA_COLUMN, DROPPED_DISTINCT)


def habit(query: Query) -> str:
    """The habit that applies to a query, "" for none."""
    if isinstance(query, Compound | With):
        return ""
    if query.distinct or any(isinstance(c, Expr) and c.distinct for c in query.columns):
        return DROPPED_DISTINCT
    return EXTRA_COLUMN if _compared(query) else ""


def spoil(query: Query) -> Query:
    """The query as the teacher's habit writes it; the same query where none applies."""
    name = habit(query)
    if not isinstance(query, Select) or not name:
        return query
    if name == EXTRA_COLUMN:
        return query._replace(columns=(*query.columns, Expr(_compared(query))))
    columns = tuple(c._replace(distinct=False) if isinstance(c, Expr) else c for c in query.columns)
    return query._replace(distinct=False, columns=columns)


def _compared(query: Select) -> str:
    """The column that a query orders by, or compares to a subquery's aggregate."""
    if query.order:
        return query.order
    for condition in query.where:
        right = condition.right
        if isinstance(right, Select) and isinstance(right.columns[0], Expr) and right.columns[0].function:
            return condition.left.column
    return ""
