"""Rules about which rows a gold returns: LIMIT among ties, columns that a group does not determine, joins.

A rule reads the syntax tree and the schema. Where these cannot decide, its suspicion carries queries to run on the
database, mostly two variants of the gold that agree unless the suspicion matters on this data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sqlglot import exp

from sqlr1_jax.data.schema import Table
from sqlr1_jax.lint.statement import Block, Key, Statement, is_aggregate, write
from sqlr1_jax.lint.suspicion import Suspicion, agree, differ, differ_in_order, yes

if TYPE_CHECKING:
    from sqlr1_jax.lint.statement import Node


def limit(statement: Statement) -> Iterator[Suspicion]:
    """LIMIT among rows that its ORDER BY does not tell apart: `ties` on this data, `partial_order` on another."""
    cuts = [node.parent for node in statement.tree.find_all(exp.Limit) if isinstance(node.parent, exp.Query)]
    loose = [(query, width) for query in cuts if (width := _width(statement, query)) and not _total(statement, query)]
    if not loose:
        return
    queries = tuple(_tie_broken(statement, loose, desc) for desc in (False, True))
    orders = sorted({_order_text(query) for query, _ in loose})
    yield Suspicion("ties", f"rows tie {' and '.join(orders)}: which of them LIMIT keeps is chance", queries, differ)
    text = f"LIMIT {' and '.join(orders)} is no total order: no tie on this data, but perhaps on other data"
    yield Suspicion("partial_order", text, queries, agree)


def _order_text(query: Node) -> str:
    order = query.args.get("order")
    return f"under {write(order).strip()}" if order else "without ORDER BY"


def _tie_broken(statement: Statement, queries: Sequence[tuple[Node, int]], desc: bool) -> str:
    """The gold with ties under each LIMIT broken by all result columns, upwards or downwards."""
    root = statement.tree.copy()
    nodes = {id(old): new for old, new in zip(statement.tree.walk(), root.walk(), strict=True)}
    for query, width in queries:
        copy = nodes[id(query)]
        order = copy.args.get("order")
        terms = list(order.expressions) if order else []
        terms += [exp.Ordered(this=exp.Literal.number(i + 1), desc=desc, nulls_first=not desc) for i in range(width)]
        copy.set("order", exp.Order(expressions=terms))
    return write(root)


def _width(statement: Statement, query: Node) -> int:
    """Columns of a query's result; 0 where that cannot be told."""
    select = query
    while isinstance(select, exp.SetOperation | exp.Subquery):
        select = select.this
    if not isinstance(select, exp.Select):
        return 0
    if not select.is_star:
        return len(select.expressions)
    tables = statement.block(select).tables.values()
    alone = len(select.expressions) == 1 and isinstance(select.expressions[0], exp.Star)
    return sum(len(t.columns) for t in tables if t) if alone and all(tables) else 0


def _total(statement: Statement, query: Node) -> bool:
    """Whether the schema alone says that no two rows tie: one row, or keys of all sources, or every result column."""
    if not isinstance(query, exp.Select):
        return False
    block = statement.block(query)
    if block.aggregates() and not block.group_keys:
        return True
    order = query.args.get("order")
    terms = [term.this for term in order.expressions] if order else []
    terms = [block.aliases.get(t.name.lower(), t) if isinstance(t, exp.Column) and not t.table else t for t in terms]
    if query.args.get("distinct") and {write(p.unalias()) for p in query.expressions} <= set(map(write, terms)):
        return True
    known = _determined(block, terms)
    if block.group_keys:
        return all(_known(block, key, known) for key in block.group_keys)
    return all(_keys(alias, table) and _keys(alias, table) <= known for alias, table in block.tables.items())


def bare_column(statement: Statement) -> Iterator[Suspicion]:
    """A column beside aggregates that its group does not determine: SQLite takes any row's value."""
    for block in statement.blocks:
        calls = block.aggregates()
        extremes = [call for call in calls if isinstance(call, exp.Min | exp.Max)]
        # With one min or max, bare columns come from the row that holds it: documented, and meant by who writes it.
        if not (calls or block.group_keys) or len(extremes) == 1:
            continue
        bare = _bare(block)
        if bare:
            variants = tuple(_summarized(statement, bare, kind) for kind in (exp.Min, exp.Max))
            names = ", ".join(dict.fromkeys(write(column) for column in bare))
            keys = ", ".join(map(write, block.group_keys)) or "no key"
            reason = f"{names} has several values in a group (grouped by {keys}), of which SQLite shows any"
            ordered = statement.tree.args.get("order")
            yield Suspicion("bare_column", reason, variants, differ_in_order if ordered else differ)


def _bare(block: Block) -> list[Node]:
    known = _determined(block, block.group_keys)
    keys = {write(key).lower() for key in block.group_keys}
    clauses = (block.select.args.get(name) for name in ("having", "order"))
    parts = [*block.select.expressions, *filter(None, clauses)]
    found: list[Node] = []
    for part in parts:
        for column in block.own(part):
            place = block.place(column)
            if not isinstance(column, exp.Column) or place is None or place.block is not block:
                continue
            if place.column is None or place.key in known:
                continue
            named = not column.table and column.name.lower() in block.aliases and part not in block.select.expressions
            if not (named or column.find_ancestor(exp.AggFunc, exp.Window) or _within(column, part, keys)):
                found.append(column)
    return found


def _within(column: Node, root: Node, keys: set[str]) -> bool:
    """Whether the column stands inside an expression that is grouped by."""
    node: Node | None = column
    while node is not None and node is not root.parent:
        if write(node).lower() in keys:
            return True
        node = node.parent
    return False


def _summarized(statement: Statement, bare: Sequence[Node], kind: type[Node]) -> str:
    changes = {}
    for column in bare:
        call = kind(this=column.copy())
        is_result = isinstance(column.parent, exp.Select)
        changes[id(column)] = exp.alias_(call, column.name, quoted=True) if is_result else call
    return statement.changed(changes)


def _determined(block: Block, keys: Sequence[Node]) -> set[Key]:
    """The columns whose values follow from those of `keys`: by equality, by constants and by primary keys."""
    known = {place.key for place in map(block.place, keys) if place and place.block is block}
    pairs = list(_equalities(block))
    while True:
        before = len(known)
        for left, right in pairs:
            if left is None or right is None or left in known or right in known:
                known |= {key for key in (left, right) if key}
        for alias, table in block.tables.items():
            if table and _keys(alias, table) and _keys(alias, table) <= known:
                known |= {(alias, column.name.lower()) for column in table.columns}
        if len(known) == before:
            return known


def _equalities(block: Block) -> Iterator[tuple[Key | None, Key | None]]:
    """Pairs of columns that are equal in every row; None stands for a constant."""
    for condition in block.conditions:
        if isinstance(condition, exp.EQ):
            sides = [block.place(side) for side in (condition.this, condition.expression)]
            plain = [isinstance(side, exp.Literal) for side in (condition.this, condition.expression)]
            if all(place or constant for place, constant in zip(sides, plain, strict=True)):
                left, right = (place.key if place and place.block is block else None for place in sides)
                yield left, right
    for join in block.joins:
        for name in join.args.get("using") or []:
            keys = [(alias, name.name.lower()) for alias, table in block.tables.items() if _holds(table, name.name)]
            yield from itertools.pairwise(keys)


def _holds(table: Table | None, name: str) -> bool:
    return table is not None and name.lower() in {column.name.lower() for column in table.columns}


def _keys(alias: str, table: Table | None) -> set[Key]:
    """The primary key's columns; none where the source has no key."""
    return {(alias, column.name.lower()) for column in table.columns if column.primary_key} if table else set()


def _known(block: Block, key: Node, known: set[Key]) -> bool:
    place = block.place(key)
    return place is not None and place.key in known


def cross_join(statement: Statement) -> Iterator[Suspicion]:
    """Sources of one FROM that no condition links: every row meets every row."""
    for block in statement.blocks:
        apart = _unlinked(block)
        if apart:
            reason = f"no condition links {', '.join(apart)} to the tables before: every row meets every row"
            yield Suspicion("cross_join", reason)


def _unlinked(block: Block) -> list[str]:
    """The sources, each by its first alias, that conditions leave apart from those before them."""
    names = list(block.nodes)
    group = {name: name for name in names}

    def link(aliases: Sequence[str]) -> None:
        merged = {group[alias] for alias in aliases}
        for name in names:
            if group[name] in merged:
                group[name] = group[aliases[0]]

    for place, join in enumerate(block.joins, len(names) - len(block.joins)):
        if join.args.get("using") or join.args.get("method"):
            link(names[max(place - 1, 0) : place + 1])
    for condition in block.conditions:
        aliases, vague = _mentioned(block, condition)
        if vague:
            return []
        if aliases:
            link(aliases)
    for name, node in block.nodes.items():
        if _one_row(node):
            link([names[0], name])
    return [name for name in names[1:] if group[name] != group[names[0]]]


def _mentioned(block: Block, condition: Node) -> tuple[list[str], bool]:
    """The sources that a condition speaks of, its subqueries included, and whether some cannot be told."""
    aliases, vague = [], False
    for column in condition.find_all(exp.Column):
        select = column.find_ancestor(exp.Select)
        place = block.statement.block(select).place(column) if select else None
        vague |= place is None and not column.table
        if place and place.block is block:
            aliases.append(place.alias)
    return aliases, vague


def _one_row(source: Node) -> bool:
    """Whether a source is a subquery of one row: aggregates without a group, or LIMIT 1."""
    query = source.this if isinstance(source, exp.Subquery) else None
    if not isinstance(query, exp.Select):
        return False
    limit = query.args.get("limit")
    if limit and write(limit.expression) == "1":
        return True
    return not query.args.get("group") and all(any(map(is_aggregate, p.walk())) for p in query.expressions)


def fan_out(statement: Statement) -> Iterator[Suspicion]:
    """A sum, an average or a count over a table whose rows a join repeats.

    Where the question does not name that table, it is a lookup and its repeats are meant: the average ROM of phones,
    with ROM a column of their chips.
    """
    for block in statement.blocks:
        for call in block.aggregates() if len(block.tables) > 1 else ():
            alias = _summed(block, call)
            table = block.tables.get(alias)
            if table:
                reason = f"the join repeats rows of {alias}, so {write(call)} takes some of them more than once"
                yield Suspicion("fan_out", reason, (_repeats(block, alias),), yes, about=table.name)


def _summed(block: Block, call: Node) -> str:
    """The one source whose values an aggregate adds up, "" where there is none or repeats do not matter."""
    counts = isinstance(call, exp.Count) and not block.group_keys
    if not (counts or isinstance(call, exp.Sum | exp.Avg)) or isinstance(call.this, exp.Distinct):
        return ""
    places = [block.place(node) for node in call.walk() if isinstance(node, exp.Column)]
    aliases = {place.alias for place in places if place and place.block is block}
    return aliases.pop() if len(aliases) == 1 and all(places) else ""


def _repeats(block: Block, alias: str) -> str:
    """A query that answers 1 where a row of a source occurs more than once in a group."""
    select = block.select.copy()
    for part in ("with_", "with", "distinct", "having", "order", "limit", "offset"):
        select.set(part, None)
    if block.group_keys:
        select.set("group", exp.Group(expressions=[key.copy() for key in block.group_keys]))
    rowid = exp.column("rowid", table=alias, quoted=True)
    distinct = exp.Count(this=exp.Distinct(expressions=[rowid.copy()]))
    select.set("expressions", [exp.alias_(exp.GT(this=exp.Count(this=rowid), expression=distinct), "repeated")])
    return f"SELECT max(repeated) FROM ({write(select)})"
