"""The thinking line of a query: columns with their tables first, then the steps that shape the result.

Derived from the query alone, so that a spoiled gold comes with reasoning that carries the same habit. A
column's table is said where the column is first named: what the SQL needs stands there to be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlr1_jax.synth.queries import Compound, Condition, Expr, Query, Rank, Select, With

Home = Callable[[str], str]  # the table of a column; "" for a name that the query made up


def reason(query: Query, home: Home) -> str:
    """The steps of a query, parted by semicolons."""
    return "; ".join(_steps(query, _Places(home)))


class _Places:
    """` in <table>` for a column that was not named before, else nothing."""

    def __init__(self, home: Home) -> None:
        self._home, self._named = home, set[str]()

    def __call__(self, column: str) -> str:
        table = "" if column in self._named else self._home(column)
        self._named.add(column)
        return f" in {table}" if table else ""


def _steps(query: Query, place: _Places) -> Iterator[str]:
    if isinstance(query, Compound):
        yield from (*_steps(query.left, place), query.op.lower(), *_filters(query.right, place))
    elif isinstance(query, With):
        yield f"{query.name}: " + "; ".join(_steps(query.inner, place)).removeprefix("show ")
        yield from _steps(query.outer, place)
    elif isinstance(query.table, Select):
        yield from _steps(query.table, place)
        yield from _filters(query, place)
    else:
        yield from _select(query, place)


def _select(query: Select, place: _Places) -> Iterator[str]:
    shown = [_words(column, place) for column in query.columns if isinstance(column, Expr)]
    yield ("show distinct " if query.distinct else "show ") + ", ".join(shown)
    yield from (_rank(column, place) for column in query.columns if isinstance(column, Rank))
    yield from _filters(query, place)
    if query.group:
        yield f"group {query.group}{place(query.group)}"
    if query.having:
        yield "having " + " and ".join(_condition(c, place) for c in query.having)
    if query.order:
        yield f"sort {query.order}{place(query.order)} {_direction(query.descending)}"
    if query.limit:
        yield f"first {query.limit}"
    if query.parent:
        yield f"join {query.table}, {query.parent} on {query.on[0]} = {query.on[1]}"


def _filters(query: Select, place: _Places) -> Iterator[str]:
    plain = [c for c in query.where if not c.op.endswith("IN")]
    if plain:
        yield "where " + f" {query.connective.lower()} ".join(_condition(c, place) for c in plain)
    for condition in query.where:
        if condition.op.endswith("IN") and isinstance(condition.right, Select):
            yield from _membership(condition, condition.right, place)


def _membership(condition: Condition, inner: Select, place: _Places) -> Iterator[str]:
    """A key that is, or is not, among those that another table refers to."""
    yield from _filters(inner, place)
    link = inner.columns[0].column
    yield f"{condition.op.lower().replace('in', 'among')} {inner.table} on {link} = {condition.left.column}"


def _condition(condition: Condition, place: _Places) -> str:
    left, right = condition.left, condition.right
    if isinstance(right, Select):  # one aggregate of a column
        aggregate = right.columns[0]
        assert isinstance(aggregate, Expr)
        return f"{_words(left, place)} {condition.op} {_words(aggregate, place)}"
    if left.function:
        return f"{_words(left, place)} {condition.op} {right}"
    return f"{left.column} {condition.op} {right}{place(left.column)}"


def _words(column: Expr, place: _Places) -> str:
    words = (column.function, "distinct" if column.distinct else "", column.column)
    return " ".join(word for word in words if word) + (place(column.column) if column.column else "")


def _rank(column: Rank, place: _Places) -> str:
    group = f" per {column.group}" if column.group else ""
    return f"rank {column.column}{place(column.column)} {_direction(column.descending)}{group}"


def _direction(descending: bool) -> str:
    return "desc" if descending else "asc"
