"""Queries as named tuples, and the one form in which they are written as SQL.

Every table and column name follows exactly one space, so that a name is the same token everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Expr(NamedTuple):
    """A column, an aggregate of one, or a count of rows (column "", function "count")."""

    column: str
    function: str = ""
    distinct: bool = False
    alias: str = ""


class Rank(NamedTuple):
    """A row's rank by `column`, within its `group` if there is one."""

    column: str
    descending: bool
    group: str = ""
    alias: str = ""


class Condition(NamedTuple):
    """`left op right`."""

    left: Expr
    op: str
    right: str | Select  # a literal as SQL writes it, or a subquery


class Select(NamedTuple):
    """One SELECT; an empty field leaves its clause out."""

    columns: tuple[Expr | Rank, ...]
    table: str | Select  # a name, or a subquery
    parent: str = ""  # a second table, joined
    on: tuple[str, str] = ("", "")  # column of `table`, key of `parent`
    where: tuple[Condition, ...] = ()
    connective: str = "AND"
    group: str = ""
    having: tuple[Condition, ...] = ()
    order: str = ""
    descending: bool = False
    limit: int = 0
    distinct: bool = False


class Compound(NamedTuple):
    """Two SELECTs combined by a set operation."""

    op: str  # INTERSECT or EXCEPT
    left: Select
    right: Select


class With(NamedTuple):
    """WITH `name` AS (`inner`) `outer`."""

    name: str
    inner: Select
    outer: Select


Query = Select | Compound | With


def sql(query: Query) -> str:
    """The query's text, on one line."""
    if isinstance(query, Compound):
        return f"{sql(query.left)} {query.op} {sql(query.right)}"
    if isinstance(query, With):
        return f"WITH {query.name} AS ( {sql(query.inner)} ) {sql(query.outer)}"
    return " ".join(_clauses(query))


def _clauses(query: Select) -> Iterator[str]:
    yield "SELECT DISTINCT" if query.distinct else "SELECT"
    yield ", ".join(expression(column) for column in query.columns)
    yield f"FROM ( {sql(query.table)} )" if isinstance(query.table, Select) else f"FROM {query.table}"
    if query.parent:
        yield f"JOIN {query.parent} ON {query.on[0]} = {query.on[1]}"
    if query.where:
        yield "WHERE " + f" {query.connective} ".join(map(_condition, query.where))
    if query.group:
        yield f"GROUP BY {query.group}"
    if query.having:
        yield "HAVING " + " AND ".join(map(_condition, query.having))
    if query.order:
        yield _order(query.order, query.descending)
    if query.limit:
        yield f"LIMIT {query.limit}"


def expression(column: Expr | Rank) -> str:
    """An entry of the select list as SQL."""
    alias = f" AS {column.alias}" if column.alias else ""
    if isinstance(column, Rank):
        partition = f"PARTITION BY {column.group} " if column.group else ""
        return f"rank( ) OVER ( {partition}{_order(column.column, column.descending)} ){alias}"
    if not column.function:
        return column.column
    return f"{column.function}( {'DISTINCT ' if column.distinct else ''}{column.column or '*'} ){alias}"


def _order(column: str, descending: bool) -> str:
    return f"ORDER BY {column} {'DESC' if descending else 'ASC'}"


def _condition(condition: Condition) -> str:
    right = f"( {sql(condition.right)} )" if isinstance(condition.right, Select) else condition.right
    return f"{expression(condition.left)} {condition.op} {right}"


def weaker(query: Query) -> Iterator[Query]:
    """Yields the query without one filter at a time, also those of subqueries; for a compound, also each side alone."""
    if isinstance(query, Compound):
        yield from (query.left, query.right)
        yield from (query._replace(left=left) for left in _weaker_select(query.left))
        yield from (query._replace(right=right) for right in _weaker_select(query.right))
    elif isinstance(query, With):
        yield from (query._replace(inner=inner) for inner in _weaker_select(query.inner))
        yield from (query._replace(outer=outer) for outer in _weaker_select(query.outer))
    else:
        yield from _weaker_select(query)


def _weaker_select(query: Select) -> Iterator[Select]:
    for i, condition in enumerate(query.where):
        rest = query.where[:i] + query.where[i + 1 :]
        yield query._replace(where=rest)
        if isinstance(condition.right, Select):
            for right in _weaker_select(condition.right):
                weakened = condition._replace(right=right)
                yield query._replace(where=(*query.where[:i], weakened, *query.where[i + 1 :]))
    for i in range(len(query.having)):
        yield query._replace(having=query.having[:i] + query.having[i + 1 :])
    if isinstance(query.table, Select):
        yield from (query._replace(table=table) for table in _weaker_select(query.table))
