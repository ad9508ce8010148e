"""The thinking line of a query: columns with their tables first, then the steps that shape the result.

Derived from the query alone, so that a spoiled gold comes with reasoning that carries the same habit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlr1_jax.data.synth.queries import Compound, Condition, Expr, Query, Rank, Select, With

Home = Callable[[str], str]  # the table of a column; "" for a name that the query made up


def reason(query: Query, home: Home) -> str:
    """The steps of a query, parted by semicolons."""
    if isinstance(query, Compound):
        right = "; ".join(_filters(query.right, home))
        return f"{reason(query.left, home)}; {query.op.lower()}; {right}"
    if isinstance(query, With):
        inner = reason(query.inner, home).removeprefix("show ")
        return f"{query.name}: {inner}; {reason(query.outer, home)}"
    return "; ".join(_steps(query, home))


def _steps(query: Select, home: Home) -> Iterator[str]:
    if isinstance(query.table, Select):
        yield f"first {reason(query.table, home).removeprefix('show ')}"
        yield from _filters(query, home)
        yield "show " + ", ".join(_words(column, lambda _: "") for column in query.columns)
        return
    yield ("show distinct " if query.distinct else "show ") + ", ".join(_words(c, home) for c in query.columns)
    yield from _filters(query, home)
    if query.group:
        yield f"group {_place(query.group, home)}"
    if query.having:
        yield "having " + " and ".join(_condition(c, home) for c in query.having)
    if query.order:
        yield f"sort {_place(query.order, home)} {'desc' if query.descending else 'asc'}"
    if query.limit:
        yield f"first {query.limit}"
    if query.parent:
        yield f"join {query.table}, {query.parent} on {query.on[0]} = {query.on[1]}"


def _filters(query: Select, home: Home) -> Iterator[str]:
    if query.where:
        yield "where " + f" {query.connective.lower()} ".join(_condition(c, home) for c in query.where)


def _place(column: str, home: Home) -> str:
    table = home(column)
    return f"{column} in {table}" if table else column


def _words(column: Expr | Rank, home: Home) -> str:
    if isinstance(column, Rank):
        group = f" per {column.group}" if column.group else ""
        return f"rank {_place(column.column, home)} {'desc' if column.descending else 'asc'}{group}"
    words = (column.function, "distinct" if column.distinct else "", _place(column.column, home) if column.column else "")
    return " ".join(word for word in words if word)


def _condition(condition: Condition, home: Home) -> str:
    left = _words(condition.left, home)
    if isinstance(condition.right, Select):
        inner = reason(condition.right, home).removeprefix("show ").replace("; where", " where")
        return f"{left} {condition.op.lower()} {inner}"
    value = f"{condition.op.lower()} {condition.right}"
    table = home(condition.left.column) if condition.left.column and not condition.left.function else ""
    return f"{condition.left.column} {value} in {table}" if table else f"{left} {value}"
