"""Rules about the rows of a gold result: LIMIT among ties, columns that a group does not determine, joins.

A rule reads the syntax tree and the schema. If they do not decide, its suspicion carries queries to run on the
database: mostly two variants of the gold query whose results are equal unless the suspicion matters on this data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sqlglot import exp

from sqlr1_jax.data.schema import Table, quote
from sqlr1_jax.lint.statement import Block, Key, Statement, is_in_key, write
from sqlr1_jax.lint.suspicion import Suspicion, agree, differ, differ_in_order, is_true

if TYPE_CHECKING:
    from sqlr1_jax.lint.statement import Node
    from sqlr1_jax.sql.outcome import Outcome


def arbitrary_limit(statement: Statement) -> Iterator[Suspicion]:
    """LIMIT after an ORDER BY that rows can tie under. It is `ties` if they do on this data, else `partial_order`.

    SELECT name FROM shop ORDER BY seats DESC LIMIT 1: if two shops have the most seats, either may be the result.
    The variants break ties by all result columns, once ascending and once descending.
    """
    limited = [node.parent for node in statement.tree.find_all(exp.Limit) if isinstance(node.parent, exp.Query)]
    limited = [query for query in limited if not isinstance(query.parent, exp.Exists)]
    widths = [(query, _num_columns(statement, query)) for query in limited]
    partial = [(query, width) for query, width in widths if width and not _is_total_order(statement, query)]
    if not partial:
        return
    variants = tuple(_break_ties(statement, partial, desc) for desc in (False, True))
    clauses = [query.args.get("order") for query, _ in partial]
    texts = {f"under {write(clause).strip()}" if clause else "without ORDER BY" for clause in clauses}
    orders = " and ".join(sorted(texts))
    yield Suspicion("ties", f"rows tie {orders}, so LIMIT keeps arbitrary ones", variants, differ)
    reason = f"LIMIT {orders}: not a total order; no rows tie on this data, but on other data they may"
    yield Suspicion("partial_order", reason, variants, agree)


def _break_ties(statement: Statement, limited: Sequence[tuple[Node, int]], desc: bool) -> str:
    """The query with ties before each LIMIT broken by all result columns; `limited` has each SELECT and its columns."""
    copies = statement.copy_nodes()
    for query, width in limited:
        copy = copies[id(query)]
        order = copy.args.get("order")
        terms = list(order.expressions) if order else []
        terms += [exp.Ordered(this=exp.Literal.number(i + 1), desc=desc, nulls_first=not desc) for i in range(width)]
        copy.set("order", exp.Order(expressions=terms))
    return write(copies[id(statement.tree)])


def _num_columns(statement: Statement, query: Node) -> int:
    """The number of columns of a query's result; 0 if it is unknown."""
    select = query
    while isinstance(select, exp.SetOperation | exp.Subquery):
        select = select.this
    if not isinstance(select, exp.Select):
        return 0
    if not select.is_star:
        return len(select.expressions)
    tables = statement.block(select).tables.values()
    only_star = len(select.expressions) == 1 and isinstance(select.expressions[0], exp.Star)
    return sum(len(t.columns) for t in tables if t) if only_star and all(tables) else 0


def _is_total_order(statement: Statement, query: Node) -> bool:
    """Whether no two different rows can tie on any data.

    True if the result has one row, if ORDER BY determines the primary keys of all sources or every group key, or
    if it has every column of the result.
    """
    if not isinstance(query, exp.Select):
        return False
    block = statement.block(query)
    if block.aggregates() and not block.group_keys:
        return True
    order = query.args.get("order")
    terms = [term.this for term in order.expressions] if order else []
    terms = [block.aliases.get(t.name.lower(), t) if isinstance(t, exp.Column) and not t.table else t for t in terms]
    if {write(p.unalias()).lower() for p in query.expressions} <= {write(term).lower() for term in terms}:
        return True
    determined = _determined(block, terms)
    if block.group_keys:
        return all((source := block.resolve(key)) and source.key in determined for key in block.group_keys)
    return all(_primary_key(a, table) and _primary_key(a, table) <= determined for a, table in block.tables.items())


def bare_column(statement: Statement) -> Iterator[Suspicion]:
    """A column, in a query with groups or aggregates, that its group does not determine: SQLite takes any row's value.

    SELECT name, count(*) FROM shop GROUP BY city: a city with several shops shows the name of an arbitrary one.
    The variants put the bare columns into min() and into max().
    """
    for block in statement.blocks:
        calls = block.aggregates()
        extremes = [call for call in calls if isinstance(call, exp.Min | exp.Max)]
        # With one min() or max(), SQLite documents that bare columns come from the row that has it. Authors rely on it.
        if not (calls or block.group_keys) or len(extremes) == 1:
            continue
        bare = _bare_columns(block)
        if bare:
            variants = tuple(_aggregate_columns(statement, bare, function) for function in (exp.Min, exp.Max))
            names = ", ".join(dict.fromkeys(write(column) for column in bare))
            keys = ", ".join(map(write, block.group_keys)) or "no key"
            reason = f"{names} has several values in a group (grouped by {keys}), and SQLite shows an arbitrary one"
            ordered = statement.tree.args.get("order")
            yield Suspicion("bare_column", reason, variants, differ_in_order if ordered else differ)


def _bare_columns(block: Block) -> list[Node]:
    """Columns of the select list, HAVING and ORDER BY that are neither aggregated nor determined by the group keys."""
    determined = _determined(block, block.group_keys)
    keys = {write(key).lower() for key in block.group_keys}
    clauses = (block.select.args.get(name) for name in ("having", "order"))
    bare: list[Node] = []
    for root in (*block.select.expressions, *filter(None, clauses)):
        for column in block.own_nodes(root):
            source = block.resolve(column)
            if not isinstance(column, exp.Column) or source is None or source.block is not block:
                continue
            if source.column is None or source.key in determined:
                continue
            is_alias = not column.table and column.name.lower() in block.aliases
            if is_alias and root not in block.select.expressions:
                continue
            if not (column.find_ancestor(exp.AggFunc, exp.Filter, exp.Window) or is_in_key(column, root, keys)):
                bare.append(column)
    return bare


def _aggregate_columns(statement: Statement, columns: Sequence[Node], function: type[Node]) -> str:
    """The query with these columns inside an aggregate function."""
    replacements = {}
    for column in columns:
        call = function(this=column.copy())
        is_result = isinstance(column.parent, exp.Select)  # a result column keeps its name
        replacements[id(column)] = exp.alias_(call, column.name, quoted=True) if is_result else call
    return statement.rewrite(replacements)


def _determined(block: Block, keys: Sequence[Node]) -> set[Key]:
    """The columns whose values follow from those of `keys`: by equality, by constants and by primary keys."""
    sources = [source for source in map(block.resolve, keys) if source and source.block is block]
    determined = {source.key for source in sources}
    pairs = list(_equal_columns(block))
    while True:
        before = len(determined)
        for left, right in pairs:
            if left is None or right is None or left in determined or right in determined:
                determined |= {key for key in (left, right) if key}
        for alias, table in block.tables.items():
            if table and _primary_key(alias, table) and _primary_key(alias, table) <= determined:
                determined |= {(alias, column.name.lower()) for column in table.columns}
        if len(determined) == before:
            return determined


def _equal_columns(block: Block) -> Iterator[tuple[Key | None, Key | None]]:
    """Pairs of columns that are equal in every row of the join; None stands for a constant."""
    for condition in block.conditions:
        if isinstance(condition, exp.EQ):
            sides = (condition.this, condition.expression)
            sources = [block.resolve(side) for side in sides]
            if all(source or isinstance(side, exp.Literal) for source, side in zip(sources, sides, strict=True)):
                left, right = (source.key if source and source.block is block else None for source in sources)
                yield left, right
    for join in block.joins:
        for column in join.args.get("using") or []:
            name = column.name.lower()
            tables = [(alias, table) for alias, table in block.tables.items() if table]
            keys = [(alias, name) for alias, table in tables if name in {c.name.lower() for c in table.columns}]
            yield from itertools.pairwise(keys)


def _primary_key(alias: str, table: Table | None) -> set[Key]:
    """The columns of a source's primary key; empty if it has none."""
    return {(alias, column.name.lower()) for column in table.columns if column.primary_key} if table else set()


def cross_join(statement: Statement) -> Iterator[Suspicion]:
    """Sources of one FROM that no condition links, so every row of one is joined to every row of the other.

    SELECT count(*) FROM clerk JOIN shop has no ON; in JOIN shop T2 ON T2.id = T2.id the condition links nothing.
    These are meant as they are: a source with one row (a total, a row chosen by its primary key, the only row
    that filters leave, if it is read for more than them), a table-valued function (json_each, which reads a column of a
    source before it), and a subquery or CTE after the words CROSS JOIN.
    """
    for block in statement.blocks:
        groups = _unlinked_groups(block)
        if len(groups) > 1:
            names = ", ".join(alias for group in groups[1:] for alias in group)
            reason = f"no condition links {names} to the tables before: every row is joined to every row"
            queries = tuple(filter(None, (_has_several_rows(block, group) for group in groups)))
            yield Suspicion("cross_join", reason, queries, partial(_are_several, len(groups)))


def _unlinked_groups(block: Block) -> list[list[str]]:
    """The aliases of the sources with several rows. Chains of conditions link those of a group.

    Empty if a column's source is unknown, since its condition may link any.
    """
    if len(block.sources) < 2:
        return []
    group = {alias: alias for alias in block.sources}  # sources that conditions link have the same group
    for linked in itertools.chain(_join_links(block), _condition_links(block)):
        if linked is None:
            return []
        merged = {group[alias] for alias in linked}
        group = {alias: linked[0] if name in merged else name for alias, name in group.items()}
    groups: dict[str, list[str]] = {}
    for alias in block.sources:
        if not _has_one_row(block, alias):
            groups.setdefault(group[alias], []).append(alias)
    return list(groups.values())


def _has_several_rows(block: Block, group: Sequence[str]) -> str:
    """A query that returns 0 if filters leave one row of the only source of a group; "" if it has no filters.

    It is "" too if nothing but filters reads the source: then its link was forgotten.
    """
    alias, table = group[0], block.tables[group[0]]
    filters = [condition for condition in block.conditions if {*_linked_sources(block, condition)[0]} == {alias}]
    filtering = {id(node) for condition in filters for node in condition.walk()}
    others = [block.resolve(node) for node in block.own_nodes() if id(node) not in filtering]
    is_read = any(source and source.block is block and source.alias == alias for source in others)
    if len(group) > 1 or not table or not filters or not is_read:
        return ""
    conditions = " AND ".join(f"({write(condition)})" for condition in filters)
    return f"SELECT count(*) > 1 FROM {quote(table.name)} AS {quote(alias)} WHERE {conditions}"


def _are_several(num_groups: int, outcomes: Sequence[Outcome]) -> bool:
    """Whether at least two groups have several rows."""
    return num_groups - sum(outcome.rows[:1] == ((0,),) for outcome in outcomes) > 1


def _join_links(block: Block) -> Iterator[list[str]]:
    """The aliases that each join links by itself: by USING or NATURAL, or because a product is meant."""
    aliases = list(block.sources)
    for i, join in enumerate(block.joins, len(aliases) - len(block.joins)):
        if join.args.get("using") or join.args.get("method"):  # method: NATURAL
            yield aliases[max(i - 1, 0) : i + 1]
    for i, (alias, source) in enumerate(block.sources.items()):
        if _is_function(source):
            found = [block.resolve(column) for column in source.find_all(exp.Column)]
            read = [other.alias for other in found if other and other.block is block]
            yield [alias, *(read or aliases[:1])]
        elif i and block.statement.says_cross_join:
            before = block.sources[aliases[i - 1]]
            if any(block.statement.derived(side) is not None for side in (before, source)):
                yield aliases[i - 1 : i + 1]


def _condition_links(block: Block) -> Iterator[list[str] | None]:
    """The aliases that each condition links; None if the source of a column is unknown."""
    for condition in block.conditions:
        linked, has_unknown = _linked_sources(block, condition)
        if has_unknown or linked:
            yield None if has_unknown else linked


def _linked_sources(block: Block, condition: Node) -> tuple[list[str], bool]:
    """The aliases whose columns are in a condition or its subqueries, and whether the source of some is unknown."""
    aliases, has_unknown = [], False
    for column in condition.find_all(exp.Column):
        select = column.find_ancestor(exp.Select)
        source = block.statement.block(select).resolve(column) if select else None
        has_unknown |= source is None and not column.table
        if source and source.block is block:
            aliases.append(source.alias)
    return aliases, has_unknown


def _is_function(source: Node) -> bool:
    """Whether a source is a table-valued function."""
    return isinstance(source, exp.Table) and isinstance(source.this, exp.Func)


def _has_one_row(block: Block, alias: str, outer: tuple[Node, ...] = ()) -> bool:
    """Whether a source has at most one row: by its query, or because constants determine its primary key.

    outer: the queries that this one is part of, since a recursive CTE is a source of its own query.
    """
    key = _primary_key(alias, block.tables[alias])
    if key:
        return key <= _determined(block, [])
    query = block.statement.derived(block.sources[alias])
    if isinstance(query, exp.Values):
        return len(query.expressions) == 1
    if not isinstance(query, exp.Select) or any(query is other for other in outer):
        return False
    limit, inner = query.args.get("limit"), block.statement.block(query)
    if limit and write(limit.expression) == "1":
        return True
    if inner.group_keys:
        return False
    return bool(inner.aggregates()) or all(_has_one_row(inner, source, (*outer, query)) for source in inner.sources)


def fan_out(statement: Statement) -> Iterator[Suspicion]:
    """A sum, an average or an ungrouped count over a table whose rows a join repeats.

    SELECT sum(T2.seats) FROM clerk T1 JOIN shop T2 ON T1.shop_id = T2.id counts a shop's seats once for each clerk.
    If the question does not name that table, the join only looks a value up and the repeats are intended, as in the
    average ROM of phones, where ROM is a column of their chips.
    """
    for block in statement.blocks:
        for call in block.aggregates() if len(block.tables) > 1 else ():
            alias = _aggregated_source(block, call)
            table = block.tables.get(alias)
            if table:
                reason = f"the join repeats rows of {alias}, so {write(call)} counts some of them more than once"
                query = _repeats_query(block, alias, uneven=isinstance(call, exp.Avg))
                yield Suspicion("fan_out", reason, (query,), is_true, table.name)


def _aggregated_source(block: Block, call: Node) -> str:
    """The alias of the only source whose values an aggregate adds up; "" if there is none or repeats do not matter."""
    is_count = isinstance(call, exp.Count) and not block.group_keys
    if not (is_count or isinstance(call, exp.Sum | exp.Avg)) or isinstance(call.this, exp.Distinct):
        return ""
    sources = [block.resolve(node) for node in call.walk() if isinstance(node, exp.Column)]
    aliases = {source.alias for source in sources if source and source.block is block}
    return aliases.pop() if len(aliases) == 1 and all(sources) else ""


def _repeats_query(block: Block, alias: str, uneven: bool) -> str:
    """A query that returns 1 if a source's rows occur more than once in some group, or, if `uneven`, unequally often.

    An average stays the same if all rows of its group occur equally often.
    """
    select = block.select.copy()
    for clause in ("with_", "with", "distinct", "having", "order", "limit", "offset"):
        select.set(clause, None)
    rowid = exp.column("rowid", table=alias, quoted=True)
    keys = [exp.alias_(key.copy(), f"key_{i}") for i, key in enumerate(block.group_keys)]
    select.set("group", exp.Group(expressions=[key.this.copy() for key in keys] + [rowid.copy()]))
    select.set("expressions", [*keys, exp.alias_(exp.Count(this=rowid), "repeats")])
    group = ", ".join(key.alias for key in keys) or "''"
    fault = "min(repeats) < max(repeats)" if uneven else "max(repeats) > 1"
    rows = f"SELECT 1 FROM ({write(select)}) WHERE repeats > 0 GROUP BY {group} HAVING {fault}"
    return f"SELECT EXISTS({rows})"
