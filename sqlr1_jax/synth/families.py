"""The query families: each draws a query on a database and the words that a question about it needs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from sqlr1_jax.synth.databases import Column, Database, Link, Table
from sqlr1_jax.synth.queries import Compound, Condition, Expr, Query, Rank, Select, With

NUMBER_OPS = (">", ">", ">", "<", "<", "<", ">=", "<=", "=")
AGGREGATES = ("max", "min", "avg", "sum")
COUNT = Expr("", "count")


class Draft(NamedTuple):
    """A query with what its question says: names and words by slot, and filters in order."""

    query: Query
    slots: dict[str, str]
    filters: tuple[Condition, ...] = ()
    wording: str = ""  # of phrasings.py; "": the family's own


class Family(NamedTuple):
    complexity: str  # SynSQL's label
    share: float  # of the questions, in per cent
    draw: Callable[[Draw], Draft]


class Draw:
    """Random choices within one database. Raises `IndexError` where a table lacks what is asked for."""

    def __init__(self, rng: random.Random, database: Database) -> None:
        self.rng, self.database = rng, database

    def table(self) -> Table:
        return self.rng.choice(self.database.tables)

    def joined(self) -> tuple[Link, Table, Table]:
        """A foreign key with its child and its parent."""
        link = self.rng.choice(self.database.links)
        return link, self.database.tables[link.child], self.database.tables[link.parent]

    def column(self, table: Table, *kinds: str, other: tuple[str, ...] = ()) -> str:
        """A column of the kinds, none of `other`."""
        return self.rng.choice([c.name for c in table.of_kind(*kinds) if c.name not in other])

    def shown(self, table: Table, *other: str) -> str:
        """A column worth showing: a key seldom."""
        kinds = ("text", "number") if self.rng.random() < 0.8 else ("key", "text", "number")
        return self.column(table, *kinds, other=other)

    def filter(self, table: Table, *other: str) -> Condition:
        """A condition on a text or number column that keeps some rows and drops others."""
        column = self.rng.choice([c for c in table.of_kind("text", "number") if c.name not in other])
        if column.kind == "text":
            return Condition(Expr(column.name), "=", f"'{self.rng.choice(column.values)}'")
        return self._number_filter(column)

    def _number_filter(self, column: Column) -> Condition:
        values = sorted(column.values)
        return Condition(Expr(column.name), self.rng.choice(NUMBER_OPS), str(self.rng.choice(values[2:-2])))

    def filters(self, table: Table, *other: str, chance: float) -> tuple[Condition, ...]:
        """One filter with this chance, else none."""
        return (self.filter(table, *other),) if self.rng.random() < chance else ()

    def coin(self) -> bool:
        return self.rng.random() < 0.5


def _join(link: Link, child: Table, parent: Table, *columns: Expr | Rank) -> Select:
    return Select(columns, child.name, parent.name, (link.column, link.key))


def _filter(draw: Draw) -> Draft:
    table = draw.table()
    column = draw.shown(table)
    where = (draw.filter(table, column),)
    return Draft(Select((Expr(column),), table.name, where=where), {"t": table.name, "c": column}, where)


def _two_filters(draw: Draw) -> Draft:
    table = draw.table()
    column = draw.shown(table)
    first = draw.filter(table, column)
    second = draw.filter(table, column, first.left.column)
    word = draw.rng.choice(("AND", "AND", "OR"))
    query = Select((Expr(column),), table.name, where=(first, second), connective=word)
    return Draft(query, {"t": table.name, "c": column, "and": word.lower()}, (first, second))


def _count(draw: Draw) -> Draft:
    table = draw.table()
    where = draw.filter(table)
    return Draft(Select((COUNT,), table.name, where=(where,)), {"t": table.name}, (where,))


def _aggregate(draw: Draw) -> Draft:
    table, function = draw.table(), draw.rng.choice(AGGREGATES)
    number = draw.column(table, "number")
    where = draw.filters(table, number, chance=0.7)
    query = Select((Expr(number, function),), table.name, where=where)
    return Draft(query, {"t": table.name, "n": number, "a": function}, where)


def _distinct(draw: Draw) -> Draft:
    table = draw.table()
    column = draw.column(table, "text", "number")
    where = draw.filters(table, column, chance=0.6)
    query = Select((Expr(column),), table.name, where=where, distinct=True)
    return Draft(query, {"t": table.name, "c": column}, where)


def _count_distinct(draw: Draw) -> Draft:
    table = draw.table()
    column = draw.column(table, "text", "number")
    where = draw.filters(table, column, chance=0.6)
    query = Select((Expr(column, "count", True),), table.name, where=where)
    return Draft(query, {"t": table.name, "c": column}, where)


def _top(draw: Draw, limit: int) -> Draft:
    table = draw.table()
    number = draw.column(table, "number")
    column, descending = draw.shown(table, number), draw.coin()
    where = draw.filters(table, number, column, chance=0.25)
    query = Select((Expr(column),), table.name, where=where, order=number, descending=descending, limit=limit)
    slots = {"t": table.name, "c": column, "n": number, "s": _extreme(descending), "k": str(limit)}
    return Draft(query, slots, where)


def _superlative(draw: Draw) -> Draft:
    return _top(draw, 1)


def _top_k(draw: Draw) -> Draft:
    return _top(draw, draw.rng.randint(2, 5))


def _extreme(descending: bool) -> str:
    return "max" if descending else "min"


def _group_count(draw: Draw) -> Draft:
    table = draw.table()
    group = draw.column(table, "text")
    where = draw.filters(table, group, chance=0.25)
    query = Select((Expr(group), COUNT), table.name, where=where, group=group)
    return Draft(query, {"t": table.name, "g": group}, where)


def _group_aggregate(draw: Draw) -> Draft:
    table, function = draw.table(), draw.rng.choice(AGGREGATES)
    group, number = draw.column(table, "text"), draw.column(table, "number")
    where = draw.filters(table, group, number, chance=0.15) if len(table.columns) > 3 else ()
    query = Select((Expr(group), Expr(number, function)), table.name, where=where, group=group)
    return Draft(query, {"t": table.name, "g": group, "n": number, "a": function}, where)


def _having(draw: Draw) -> Draft:
    table = draw.table()
    group, number = draw.column(table, "text"), draw.column(table, "number")
    if draw.coin():
        measure, slots, wording = COUNT, {"t": table.name, "g": group}, ""
        bound = str(draw.rng.randint(2, 5))
    else:
        function = draw.rng.choice(AGGREGATES)
        measure, wording = Expr(number, function), "having_aggregate"
        slots = {"t": table.name, "g": group, "n": number, "a": function}
        bound = _bound(draw, table, group, number, function)
    condition = Condition(measure, draw.rng.choice((">", ">", "<")), bound)
    query = Select((Expr(group),), table.name, group=group, having=(condition,))
    return Draft(query, slots, (condition,), wording)


def _bound(draw: Draw, table: Table, group: str, number: str, function: str) -> str:
    """A whole number near what `function` gives for one group."""
    columns = {column.name: column.values for column in table.columns}
    chosen = draw.rng.choice(columns[group])
    numbers = [n for g, n in zip(columns[group], columns[number], strict=True) if g == chosen]
    measures = {"max": max(numbers), "min": min(numbers), "sum": sum(numbers)}
    return str(measures.get(function, sum(numbers) // len(numbers)))


def _join_filter(draw: Draw) -> Draft:
    link, child, parent = draw.joined()
    column, where = draw.shown(child), draw.filter(parent)
    query = _join(link, child, parent, Expr(column))._replace(where=(where,))
    return Draft(query, {"t": child.name, "u": parent.name, "c": column}, (where,))


def _join_count(draw: Draw) -> Draft:
    link, child, parent = draw.joined()
    where = draw.filter(parent)
    query = _join(link, child, parent, COUNT)._replace(where=(where,))
    return Draft(query, {"t": child.name, "u": parent.name}, (where,))


def _join_distinct(draw: Draw) -> Draft:
    link, child, parent = draw.joined()
    column, where = draw.column(parent, "text", "number"), draw.filter(child)
    query = _join(link, child, parent, Expr(column))._replace(where=(where,), distinct=True)
    return Draft(query, {"t": child.name, "u": parent.name, "c": column}, (where,))


def _join_superlative(draw: Draw) -> Draft:
    link, child, parent = draw.joined()
    column, number, descending = draw.shown(parent), draw.column(child, "number"), draw.coin()
    query = _join(link, child, parent, Expr(column))._replace(order=number, descending=descending, limit=1)
    slots = {"t": child.name, "u": parent.name, "c": column, "n": number, "s": _extreme(descending)}
    return Draft(query, slots)


def _join_group(draw: Draw) -> Draft:
    link, child, parent = draw.joined()
    group, number = draw.column(parent, "text"), draw.column(child, "number")
    function = draw.rng.choice(AGGREGATES)
    query = _join(link, child, parent, Expr(group), Expr(number, function))._replace(group=group)
    return Draft(query, {"t": child.name, "u": parent.name, "g": group, "n": number, "a": function})


def _nested_average(draw: Draw) -> Draft:
    table = draw.table()
    number = draw.column(table, "number")
    column, op = draw.shown(table, number), draw.rng.choice("><")
    average = Select((Expr(number, "avg"),), table.name)
    where = (Condition(Expr(number), op, average),)
    slots = {"t": table.name, "c": column, "n": number, "o": "above" if op == ">" else "below"}
    return Draft(Select((Expr(column),), table.name, where=where), slots)


def _in_subquery(draw: Draw) -> Draft:
    link, child, parent = draw.joined()
    column, negated = draw.shown(parent), draw.coin()
    inner = draw.filters(child, chance=0.5 if negated else 1.0)
    linked = Select((Expr(link.column),), child.name, where=inner)
    where = (Condition(Expr(link.key), "NOT IN" if negated else "IN", linked),)
    slots = {"t": child.name, "u": parent.name, "c": column, "in": "no" if negated else "some"}
    return Draft(Select((Expr(column),), parent.name, where=where), slots, inner)


def _set_operation(draw: Draw) -> Draft:
    table = draw.table()
    column = draw.column(table, "text", "number")
    first, second = draw.filter(table, column), draw.filter(table, column)
    op = draw.rng.choice(("INTERSECT", "EXCEPT"))
    left, right = (Select((Expr(column),), table.name, where=(f,)) for f in (first, second))
    slots = {"t": table.name, "c": column, "set": op.lower()}
    return Draft(Compound(op, left, right), slots, (first, second))


def _cte(draw: Draw) -> Draft:
    table = draw.table()
    group, number = draw.column(table, "text"), draw.column(table, "number")
    inner = Select((Expr(group), Expr(number, "sum", alias="total")), table.name, group=group)
    slots = {"t": table.name, "g": group, "n": number}
    if draw.coin():
        function = draw.rng.choice(("max", "min", "avg"))
        outer = Select((Expr("total", function),), "totals")
        return Draft(With("totals", inner, outer), slots | {"a": function})
    bound = _bound(draw, table, group, number, "sum")
    where = (Condition(Expr("total"), draw.rng.choice("><"), bound),)
    return Draft(With("totals", inner, Select((COUNT,), "totals", where=where)), slots, where, "cte_count")


def _window(draw: Draw) -> Draft:
    table = draw.table()
    number, descending = draw.column(table, "number"), draw.coin()
    slots = {"t": table.name, "n": number, "s": _extreme(descending)}
    if draw.coin():
        column = draw.shown(table, number)
        query = Select((Expr(column), Rank(number, descending)), table.name)
        return Draft(query, slots | {"c": column})
    group = draw.column(table, "text")
    column = draw.shown(table, number, group)
    ranked = Select((Expr(group), Expr(column), Rank(number, descending, group, "place")), table.name)
    query = Select((Expr(group), Expr(column)), ranked, where=(Condition(Expr("place"), "=", "1"),))
    return Draft(query, slots | {"c": column, "g": group}, wording="window_group")


_SPOILABLE, _PLAIN = 4.15, 5.07  # per cent of the questions: families which a habit can spoil, and others

FAMILIES: dict[str, Family] = {
    "filter": Family("Simple", _PLAIN, _filter),
    "count": Family("Simple", _PLAIN, _count),
    "aggregate": Family("Simple", _PLAIN, _aggregate),
    "distinct": Family("Simple", _SPOILABLE, _distinct),
    "superlative": Family("Simple", _SPOILABLE, _superlative),
    "two_filters": Family("Moderate", _PLAIN, _two_filters),
    "top_k": Family("Moderate", _SPOILABLE, _top_k),
    "count_distinct": Family("Moderate", _SPOILABLE, _count_distinct),
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
