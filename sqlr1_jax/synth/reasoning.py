"""Writes the reasoning of a query: the columns with their tables, then the steps that shape the result.

It depends on the query only, so the reasoning of a query with a teacher's error has the same error. It names a column's
table when it first names the column, so that the SQL can copy both from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlr1_jax.synth.queries import Compound, Condition, Expr, Query, Rank, Select, With

TableOf = Callable[[str], str]  # the table of a column; "" for an alias


def reason(query: Query, table_of: TableOf) -> str:
    """The steps of a query, separated by semicolons."""
    return "; ".join(_steps(query, _Tables(table_of)))


class _Tables:
    """Names the table of each column once."""

    def __init__(self, table_of: TableOf) -> None:
        self._table_of = table_of
        self._named = set[str]()

    def mention(self, column: str) -> str:
        """` in <table>` for a column that was not named yet, else ""."""
        table = "" if column in self._named else self._table_of(column)
        self._named.add(column)
        return f" in {table}" if table else ""


def _steps(query: Query, tables: _Tables) -> Iterator[str]:
    if isinstance(query, Compound):
        yield from (*_steps(query.left, tables), query.op.lower(), *_filters(query.right, tables))
    elif isinstance(query, With):
        yield f"{query.name}: " + "; ".join(_steps(query.inner, tables)).removeprefix("show ")
        yield from _steps(query.outer, tables)
    elif isinstance(query.table, Select):
        yield from _steps(query.table, tables)
        yield from _filters(query, tables)
    else:
        yield from _select(query, tables)


def _select(query: Select, tables: _Tables) -> Iterator[str]:
    shown = [_words(column, tables) for column in query.columns if isinstance(column, Expr)]
    yield ("show distinct " if query.distinct else "show ") + ", ".join(shown)
    for rank in (column for column in query.columns if isinstance(column, Rank)):
        order = f"{rank.column}{tables.mention(rank.column)} {'desc' if rank.descending else 'asc'}"
        yield f"rank {order} per {rank.group}" if rank.group else f"rank {order}"
    yield from _filters(query, tables)
    if query.group:
        yield f"group {query.group}{tables.mention(query.group)}"
    if query.having:
        yield "having " + " and ".join(_condition(c, tables) for c in query.having)
    if query.order:
        yield f"sort {query.order}{tables.mention(query.order)} {'desc' if query.descending else 'asc'}"
    if query.limit:
        yield f"first {query.limit}"
    if query.parent:
        yield f"join {query.table}, {query.parent} on {query.on[0]} = {query.on[1]}"


def _filters(query: Select, tables: _Tables) -> Iterator[str]:
    plain = [c for c in query.where if not c.op.endswith("IN")]
    if plain:
        yield "where " + f" {query.connective.lower()} ".join(_condition(c, tables) for c in plain)
    for condition in query.where:
        if condition.op.endswith("IN") and isinstance(condition.right, Select):
            # The key is, or is not, among those that another table refers to.
            inner = condition.right
            yield from _filters(inner, tables)
            link = f"{inner.columns[0].column} = {condition.left.column}"
            yield f"{condition.op.lower().replace('in', 'among')} {inner.table} on {link}"


def _condition(condition: Condition, tables: _Tables) -> str:
    left, right = condition.left, condition.right
    if isinstance(right, Select):  # it selects one aggregate of a column
        aggregate = right.columns[0]
        assert isinstance(aggregate, Expr)
        return f"{_words(left, tables)} {condition.op} {_words(aggregate, tables)}"
    if left.function:
        return f"{_words(left, tables)} {condition.op} {right}"
    return f"{left.column} {condition.op} {right}{tables.mention(left.column)}"


def _words(column: Expr, tables: _Tables) -> str:
    words = (column.function, "distinct" if column.distinct else "", column.column)
    return " ".join(word for word in words if word) + (tables.mention(column.column) if column.column else "")
