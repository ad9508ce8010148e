"""The query families: each draws a random query on a database, with the names and words that its question needs.

A family raises `IndexError` if the table that it drew lacks a column that it needs; the caller draws again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from sqlr1_jax.synth.databases import Database, Link, Table
from sqlr1_jax.synth.queries import Compound, Condition, Expr, Query, Rank, Select, With

NUMBER_OPS = (">", ">", ">", "<", "<", "<", ">=", "<=", "=")
AGGREGATES = ("max", "min", "avg", "sum")
COUNT = Expr("", "count")


class Draft(NamedTuple):
    """A query with what its question says."""

    query: Query
    slots: dict[str, str]  # names and words by slot of the templates in phrasings.toml
    filters: tuple[Condition, ...] = ()  # in the order in which the question names them
    templates: str = ""  # the name of their templates; "": the family's name


class Family(NamedTuple):
    """A kind of query."""

    complexity: str  # SynSQL's label
    share: float  # percent of the questions
    draw: Callable[[Draw], Draft]


class Draw:
    """Random choices within one database.

    Raises:
      IndexError: a table has no column of the kinds that are wanted.
    """

    def __init__(self, rng: random.Random, database: Database) -> None:
        self.rng, self.database = rng, database

    def table(self) -> Table:
        """Any table."""
        return self.rng.choice(self.database.tables)

    def joined(self) -> tuple[Link, Table, Table]:
        """A foreign key with its child and its parent."""
        link = self.rng.choice(self.database.links)
        return link, self.database.tables[link.child], self.database.tables[link.parent]

    def column(self, table: Table, *kinds: str, excluded: tuple[str, ...] = ()) -> str:
        """A column of these kinds that is not excluded."""
        return self.rng.choice([c.name for c in table.of_kind(*kinds) if c.name not in excluded])

    def shown(self, table: Table, *excluded: str) -> str:
        """A column to show: mostly a text or a number, seldom a key."""
        kinds = ("text", "number") if self.rng.random() < 0.8 else ("key", "text", "number")
        return self.column(table, *kinds, excluded=excluded)

    def filter(self, table: Table, *excluded: str) -> Condition:
        """A condition on a text or number column that keeps some rows and drops others."""
        column = self.rng.choice([c for c in table.of_kind("text", "number") if c.name not in excluded])
        if column.kind == "text":
            return Condition(Expr(column.name), "=", f"'{self.rng.choice(column.values)}'")
        op = self.rng.choice(NUMBER_OPS)
        bound = self.rng.choice(sorted(column.values)[2:-2])
        return Condition(Expr(column.name), op, str(bound))

    def filters(self, table: Table, *excluded: str, chance: float) -> tuple[Condition, ...]:
        """One filter with probability `chance`, else none."""
        return (self.filter(table, *excluded),) if self.rng.random() < chance else ()

    def coin(self) -> bool:
        """True or False, with equal probability."""
        return self.rng.random() < 0.5


def _join(link: Link, child: Table, parent: Table, *columns: Expr | Rank) -> Select:
    return Select(columns, child.name, parent.name, (link.column, link.key))


def _filter(draw: Draw) -> Draft:
    """SELECT column FROM table WHERE condition."""
    table = draw.table()
    column = draw.shown(table)
    where = (draw.filter(table, column),)
    return Draft(Select((Expr(column),), table.name, where=where), {"table": table.name, "column": column}, where)


def _two_filters(draw: Draw) -> Draft:
    """SELECT column FROM table WHERE condition AND condition, or with OR."""
    table = draw.table()
    column = draw.shown(table)
    first = draw.filter(table, column)
    second = draw.filter(table, column, first.left.column)
    word = draw.rng.choice(("AND", "AND", "OR"))
    query = Select((Expr(column),), table.name, where=(first, second), connective=word)
    return Draft(query, {"table": table.name, "column": column, "connective": word.lower()}, (first, second))


def _count(draw: Draw) -> Draft:
    """SELECT count(*) FROM table WHERE condition."""
    table = draw.table()
    where = draw.filter(table)
    return Draft(Select((COUNT,), table.name, where=(where,)), {"table": table.name}, (where,))


def _aggregate(draw: Draw) -> Draft:
    """SELECT max(number) FROM table WHERE condition; the condition may be missing, as in other families."""
    table, function = draw.table(), draw.rng.choice(AGGREGATES)
    number = draw.column(table, "number")
    where = draw.filters(table, number, chance=0.7)
    query = Select((Expr(number, function),), table.name, where=where)
    return Draft(query, {"table": table.name, "number": number, "aggregate": function}, where)


def _distinct(draw: Draw, counted: bool = False) -> Draft:
    """SELECT DISTINCT column FROM table WHERE condition, or with count(DISTINCT column)."""
    table = draw.table()
    column = draw.column(table, "text", "number")
    where = draw.filters(table, column, chance=0.6)
    expression = Expr(column, "count", True) if counted else Expr(column)
    query = Select((expression,), table.name, where=where, distinct=not counted)
    return Draft(query, {"table": table.name, "column": column}, where)


def _top(draw: Draw, limit: int) -> Draft:
    """SELECT column FROM table WHERE condition ORDER BY number DESC LIMIT limit."""
    table = draw.table()
    number = draw.column(table, "number")
    column, descending = draw.shown(table, number), draw.coin()
    where = draw.filters(table, number, column, chance=0.25)
    query = Select((Expr(column),), table.name, where=where, order=number, descending=descending, limit=limit)
    extreme = "max" if descending else "min"
    slots = {"table": table.name, "column": column, "number": number, "extreme": extreme, "limit": str(limit)}
    return Draft(query, slots, where)


def _group_count(draw: Draw) -> Draft:
    """SELECT group, count(*) FROM table WHERE condition GROUP BY group."""
    table = draw.table()
    group = draw.column(table, "text")
    where = draw.filters(table, group, chance=0.25)
    query = Select((Expr(group), COUNT), table.name, where=where, group=group)
    return Draft(query, {"table": table.name, "group": group}, where)


def _group_aggregate(draw: Draw) -> Draft:
    """SELECT group, sum(number) FROM table WHERE condition GROUP BY group."""
    table, function = draw.table(), draw.rng.choice(AGGREGATES)
    group, number = draw.column(table, "text"), draw.column(table, "number")
    where = draw.filters(table, group, number, chance=0.15) if len(table.columns) > 3 else ()
    query = Select((Expr(group), Expr(number, function)), table.name, where=where, group=group)
    return Draft(query, {"table": table.name, "group": group, "number": number, "aggregate": function}, where)


def _having(draw: Draw) -> Draft:
    """SELECT group FROM table GROUP BY group HAVING count(*) > bound, or with an aggregate of a number."""
    table = draw.table()
    group, number = draw.column(table, "text"), draw.column(table, "number")
    if draw.coin():
        measure, slots, templates = COUNT, {"table": table.name, "group": group}, ""
        bound = str(draw.rng.randint(2, 5))
    else:
        function = draw.rng.choice(AGGREGATES)
        measure, templates = Expr(number, function), "having_aggregate"
        slots = {"table": table.name, "group": group, "number": number, "aggregate": function}
        bound = _bound(draw, table, group, number, function)
    condition = Condition(measure, draw.rng.choice((">", ">", "<")), bound)
    query = Select((Expr(group),), table.name, group=group, having=(condition,))
    return Draft(query, slots, (condition,), templates)


def _bound(draw: Draw, table: Table, group: str, number: str, function: str) -> str:
    """A whole number at or near the value of `function` for one random group."""
    values = {column.name: column.values for column in table.columns}
    chosen = draw.rng.choice(values[group])
    numbers = [n for g, n in zip(values[group], values[number], strict=True) if g == chosen]
    measures = {"max": max(numbers), "min": min(numbers), "sum": sum(numbers)}
    return str(measures.get(function, sum(numbers) // len(numbers)))


def _join_filter(draw: Draw) -> Draft:
    """SELECT column FROM child JOIN parent ON link = key WHERE condition on the parent."""
    link, child, parent = draw.joined()
    column, where = draw.shown(child), draw.filter(parent)
    query = _join(link, child, parent, Expr(column))._replace(where=(where,))
    return Draft(query, {"table": child.name, "parent": parent.name, "column": column}, (where,))


def _join_count(draw: Draw) -> Draft:
    """SELECT count(*) FROM child JOIN parent ON link = key WHERE condition on the parent."""
    link, child, parent = draw.joined()
    where = draw.filter(parent)
    query = _join(link, child, parent, COUNT)._replace(where=(where,))
    return Draft(query, {"table": child.name, "parent": parent.name}, (where,))


def _join_distinct(draw: Draw) -> Draft:
    """SELECT DISTINCT column of the parent FROM child JOIN parent ON link = key WHERE condition on the child."""
    link, child, parent = draw.joined()
    column, where = draw.column(parent, "text", "number"), draw.filter(child)
    query = _join(link, child, parent, Expr(column))._replace(where=(where,), distinct=True)
    return Draft(query, {"table": child.name, "parent": parent.name, "column": column}, (where,))


def _join_superlative(draw: Draw) -> Draft:
    """SELECT column of the parent FROM child JOIN parent ON link = key ORDER BY number DESC LIMIT 1."""
    link, child, parent = draw.joined()
    column, number, descending = draw.shown(parent), draw.column(child, "number"), draw.coin()
    query = _join(link, child, parent, Expr(column))._replace(order=number, descending=descending, limit=1)
    extreme = "max" if descending else "min"
    slots = {"table": child.name, "parent": parent.name, "column": column, "number": number, "extreme": extreme}
    return Draft(query, slots)


def _join_group(draw: Draw) -> Draft:
    """SELECT group, sum(number) FROM child JOIN parent ON link = key GROUP BY group; the group is a parent's column."""
    link, child, parent = draw.joined()
    group, number = draw.column(parent, "text"), draw.column(child, "number")
    function = draw.rng.choice(AGGREGATES)
    query = _join(link, child, parent, Expr(group), Expr(number, function))._replace(group=group)
    return Draft(
        query, {"table": child.name, "parent": parent.name, "group": group, "number": number, "aggregate": function}
    )


def _nested_average(draw: Draw) -> Draft:
    """SELECT column FROM table WHERE number > (SELECT avg(number) FROM table)."""
    table = draw.table()
    number = draw.column(table, "number")
    column, op = draw.shown(table, number), draw.rng.choice("><")
    average = Select((Expr(number, "avg"),), table.name)
    where = (Condition(Expr(number), op, average),)
    slots = {"table": table.name, "column": column, "number": number, "side": "above" if op == ">" else "below"}
    return Draft(Select((Expr(column),), table.name, where=where), slots)


def _in_subquery(draw: Draw) -> Draft:
    """SELECT column FROM parent WHERE key IN (SELECT link FROM child WHERE condition), or NOT IN."""
    link, child, parent = draw.joined()
    column, negated = draw.shown(parent), draw.coin()
    inner = draw.filters(child, chance=0.5 if negated else 1.0)
    linked = Select((Expr(link.column),), child.name, where=inner)
    where = (Condition(Expr(link.key), "NOT IN" if negated else "IN", linked),)
    slots = {"table": child.name, "parent": parent.name, "column": column, "some": "no" if negated else "some"}
    return Draft(Select((Expr(column),), parent.name, where=where), slots, inner)


def _set_operation(draw: Draw) -> Draft:
    """SELECT column FROM table WHERE condition INTERSECT the same with another condition, or EXCEPT."""
    table = draw.table()
    column = draw.column(table, "text", "number")
    first, second = draw.filter(table, column), draw.filter(table, column)
    op = draw.rng.choice(("INTERSECT", "EXCEPT"))
    left, right = (Select((Expr(column),), table.name, where=(f,)) for f in (first, second))
    slots = {"table": table.name, "column": column, "set_operation": op.lower()}
    return Draft(Compound(op, left, right), slots, (first, second))


def _cte(draw: Draw) -> Draft:
    """WITH totals AS (SELECT group, sum(number) AS total …) SELECT max(total) FROM totals, or a count of totals."""
    table = draw.table()
    group, number = draw.column(table, "text"), draw.column(table, "number")
    inner = Select((Expr(group), Expr(number, "sum", alias="total")), table.name, group=group)
    slots = {"table": table.name, "group": group, "number": number}
    if draw.coin():
        function = draw.rng.choice(("max", "min", "avg"))
        outer = Select((Expr("total", function),), "totals")
        return Draft(With("totals", inner, outer), slots | {"aggregate": function})
    bound = _bound(draw, table, group, number, "sum")
    where = (Condition(Expr("total"), draw.rng.choice("><"), bound),)
    return Draft(With("totals", inner, Select((COUNT,), "totals", where=where)), slots, where, "cte_count")


def _window(draw: Draw) -> Draft:
    """SELECT column, rank() OVER (ORDER BY number DESC) FROM table, or the rows of rank 1 in each group."""
    table = draw.table()
    number, descending = draw.column(table, "number"), draw.coin()
    slots = {"table": table.name, "number": number, "extreme": "max" if descending else "min"}
    if draw.coin():
        column = draw.shown(table, number)
        query = Select((Expr(column), Rank(number, descending)), table.name)
        return Draft(query, slots | {"column": column})
    group = draw.column(table, "text")
    column = draw.shown(table, number, group)
    ranked = Select((Expr(group), Expr(column), Rank(number, descending, group, "place")), table.name)
    query = Select((Expr(group), Expr(column)), ranked, where=(Condition(Expr("place"), "=", "1"),))
    return Draft(query, slots | {"column": column, "group": group}, templates="window_group")


# Percent of the questions in each family that a teacher's habit (teacher.py) can spoil, and in each other family.
_SPOILABLE, _PLAIN = 4.15, 5.07

FAMILIES: dict[str, Family] = {
    "filter": Family("Simple", _PLAIN, _filter),
    "count": Family("Simple", _PLAIN, _count),
    "aggregate": Family("Simple", _PLAIN, _aggregate),
    "distinct": Family("Simple", _SPOILABLE, _distinct),
    "superlative": Family("Simple", _SPOILABLE, lambda draw: _top(draw, 1)),
    "two_filters": Family("Moderate", _PLAIN, _two_filters),
    "top_k": Family("Moderate", _SPOILABLE, lambda draw: _top(draw, draw.rng.randint(2, 5))),
    "count_distinct": Family("Moderate", _SPOILABLE, lambda draw: _distinct(draw, counted=True)),
    "group_count": Family("Moderate", _PLAIN, _group_count),
    "group_aggregate": Family("Moderate", _PLAIN, _group_aggregate),
    "having": Family("Moderate", _PLAIN, _having),
    "join_filter": Family("Moderate", _PLAIN, _join_filter),
    "join_count": Family("Complex", _PLAIN, _join_count),
    "join_distinct": Family("Complex", _SPOILABLE, _join_distinct),
    "join_superlative": Family("Complex", _SPOILABLE, _join_superlative),
    "join_group": Family("Complex", _PLAIN, _join_group),
    "nested_average": Family("Complex", _SPOILABLE, _nested_average),
    "in_subquery": Family("Highly Complex", _PLAIN, _in_subquery),
    "set_operation": Family("Highly Complex", _PLAIN, _set_operation),
    "cte": Family("Highly Complex", _PLAIN, _cte),
    "window": Family("Highly Complex", _PLAIN, _window),
}
