"""Agreement of two queries, clause by clause: partial credit for SQL that is wrong but close to the gold SQL.

A query becomes a multiset of parts for each of its clauses. They are written so that spellings of one query are equal:

    SELECT T1.name FROM dogs AS T1 JOIN owners AS T2 ON T2.id = T1.owner WHERE T2.age > 3 ORDER BY 1 DESC

    select  dogs.name
    from    dogs · owners · eq(dogs.owner, owners.id)
    where   lt(3, owners.age)
    order   1: dogs.name desc

A nested query is the word `query` in the part that holds it; its own parts are added to the same clause, each after the
name of its clause, as in `select: dogs.age`. So a right subquery earns credit in a wrong condition.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlglot
from sqlglot import exp

if TYPE_CHECKING:
    Node = exp.Expr  # before sqlglot 30 it was called Expression

Clauses = dict[str, Counter[str]]  # the parts of a query by clause; a clause that it lacks is absent

# Longer SQL counts as not parsed, which limits the time: a query of this length takes up to a quarter of a second.
MAX_CHARACTERS = 5_000

_NODE = getattr(exp, "Expr", exp.Expression)
_COMMUTATIVE = (exp.And, exp.Or, exp.Add, exp.Mul)
_SYMMETRIC = (exp.EQ, exp.NEQ)
_REVERSED: Mapping[type, str] = {exp.GT: exp.LT.key, exp.GTE: exp.LTE.key}  # a > b is written as b < a


def clause_agreement(sql: str, gold_sql: str) -> float:
    """The mean F1 of the parts of each clause that at least one of both queries has, 0 to 1; symmetric.

    0 if either cannot be parsed, is not one query, is nested too deeply or is longer than `MAX_CHARACTERS`. Equal
    queries have 1, whatever their aliases, order of conditions, sides of `=`, and upper and lower case of names.

    The schema is unknown. So a column without its table agrees with the same column with it only if FROM has one table,
    and "text" in double quotes is a string only as the right side of a comparison. sqlglot takes some SQL that SQLite
    does not, such as a comma too many before FROM.

    Source: the component matching of Spider (Yu et al., arXiv 1809.08887), here with values, joins and nested queries.
    """
    clauses, gold_clauses = query_clauses(sql), query_clauses(gold_sql)
    if not clauses or not gold_clauses:
        return 0.0
    names = clauses.keys() | gold_clauses.keys()
    return sum(_f1(clauses.get(name, Counter()), gold_clauses.get(name, Counter())) for name in names) / len(names)


def _f1(parts: Counter[str], others: Counter[str]) -> float:
    return 2 * (parts & others).total() / (parts.total() + others.total())


@functools.lru_cache(maxsize=4096)
def query_clauses(sql: str) -> Clauses:
    """The parts of each clause of a query; empty if `clause_agreement` is 0 with every query. Do not change the result.

    Clauses are select, from, where, group, having, order, limit, set (the operator and the right query of UNION, EXCEPT
    or INTERSECT), with, values and window.
    """
    if len(sql) > MAX_CHARACTERS:
        return {}
    try:
        # A comment after the last semicolon is parsed as a statement of its own.
        trees = [tree for tree in sqlglot.parse(sql, read="sqlite") if not isinstance(tree, exp.Semicolon | None)]
        return _clauses(trees[0], _Names()) if len(trees) == 1 and isinstance(trees[0], exp.Query) else {}
    except (sqlglot.errors.SqlglotError, RecursionError):
        return {}
    except (AttributeError, TypeError, ValueError):  # sqlglot takes some broken SQL, with nodes missing from the tree
        return {}


@dataclasses.dataclass(frozen=True)
class _Names:
    """What the names in a query stand for; all in lower case."""

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by alias, the name that parts have
    ctes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by name, the name that parts have
    only_source: str = ""  # the only source of FROM; "" if there are several

    def inner(self) -> _Names:
        """The names for a nested query, in which this query's sources are marked as outer ones."""
        return _Names({alias: f"outer {name}" for alias, name in self.sources.items()}, self.ctes)


def _clauses(query: Node, names: _Names) -> Clauses:
    clauses: Clauses = {}
    with_ = query.args.get("with_") or query.args.get("with")  # sqlglot 28 renamed it
    if with_:
        numbered = enumerate(with_.expressions, len(names.ctes) + 1)
        names = dataclasses.replace(names, ctes={**names.ctes, **{c.alias.lower(): f"cte{i}" for i, c in numbered}})
        clauses["with"] = sum((_nested_parts(cte.this, names) for cte in with_.expressions), Counter())
    if isinstance(query, exp.Select):
        _add(clauses, _select_clauses(query, names))
        return clauses
    writer = _Writer(names)
    if isinstance(query, exp.SetOperation):
        operator = Counter([query.key if query.args.get("distinct") else f"{query.key} all"])
        _add(clauses, _clauses(query.this, names))
        _add(clauses, {"set": operator + _nested_parts(query.expression, names)})
    elif isinstance(query, exp.Subquery):  # a query in parentheses
        _add(clauses, _clauses(query.this, names))
    elif isinstance(query, exp.Values):
        _add(clauses, {"values": writer.parts(map(writer.text, query.expressions))})
    else:
        raise sqlglot.errors.ParseError("This is no query.")  # sqlglot takes `WITH t` for one
    _add(clauses, _last_clauses(query, writer, {}))
    return clauses


def _add(clauses: Clauses, more: Clauses) -> None:
    for name, parts in more.items():
        if parts:
            clauses[name] = clauses.get(name, Counter()) + parts


def _nested_parts(query: Node, names: _Names) -> Counter[str]:
    """All parts of a query inside another, each after the name of its clause."""
    clauses = _clauses(query, names)
    return Counter({f"{name}: {part}": n for name, parts in clauses.items() for part, n in parts.items()})


def _select_clauses(select: exp.Select, names: _Names) -> Clauses:
    sources = list(_sources(select))
    source_names = _source_names(sources, names)
    aliases = {source.alias_or_name.lower(): name for (source, _), name in zip(sources, source_names, strict=True)}
    only_source = source_names[0] if len(source_names) == 1 else ""
    writer = _Writer(_Names({**names.sources, **aliases}, names.ctes, only_source))
    joins = [join for _, join in sources if join]
    conditions, links = _conditions(select, joins)
    links += filter(writer.is_link, conditions)
    using = [f"using {name.name.lower()}" for join in joins for name in join.args.get("using") or ()]
    columns = writer.result_columns(select)
    group, having = select.args.get("group"), select.args.get("having")
    havings = _operands(_expand(having.this, columns), exp.And) if having else []
    distinct = ["distinct"] if select.args.get("distinct") else []
    clauses = {
        "select": writer.parts(itertools.chain(distinct, map(writer.text, select.expressions))),
        "from": writer.parts(
            itertools.chain(map(writer.source, sources, source_names), using, map(writer.text, links))
        ),
        "where": writer.parts(writer.text(c) for c in conditions if not writer.is_link(c)),
        "group": writer.parts(writer.text(_expand(term, columns)) for term in (group.expressions if group else ())),
        "having": writer.parts(map(writer.text, havings)),
        "window": writer.parts(map(writer.text, select.args.get("windows") or ())),
    }
    _add(clauses, _last_clauses(select, writer, columns))
    return {name: parts for name, parts in clauses.items() if parts}


def _last_clauses(query: Node, writer: _Writer, columns: Columns) -> Clauses:
    """ORDER BY and LIMIT."""
    order, limit, offset = (query.args.get(name) for name in ("order", "limit", "offset"))
    terms = enumerate(order.expressions if order else (), 1)
    limits = [writer.text(limit.expression)] if limit else []
    limits += [f"offset {writer.text(offset.expression)}"] if offset else []
    return {
        "order": writer.parts(f"{i}: {writer.text(_expand(term, columns))}" for i, term in terms),
        "limit": writer.parts(limits),
    }


# Result columns as text, by position and by alias, under which GROUP BY, HAVING and ORDER BY may name them.
Columns = Mapping[int | str, str]
Source = tuple["Node", exp.Join | None]  # a table or query of FROM, and the JOIN that adds it; None: the first


def _sources(select: exp.Select) -> Iterator[Source]:
    first = select.args.get("from_") or select.args.get("from")  # sqlglot 28 renamed it
    if first:
        yield from _flatten(first.this, None)
    for join in select.args.get("joins") or ():
        yield from _flatten(join.this, join)


def _flatten(source: Node, join: exp.Join | None) -> Iterator[Source]:
    """The source, and those joined to it inside its parentheses."""
    if isinstance(source, exp.Subquery) and isinstance(source.this, exp.Table):
        source = source.this
    yield source, join
    for inner in source.args.get("joins") or ():
        yield from _flatten(inner.this, inner)


def _source_names(sources: Sequence[Source], names: _Names) -> list[str]:
    """Each source's name in parts: the table's, `cte1`, or `query`; the second of the same name ends in #2."""
    counts: Counter[str] = Counter()
    found = []
    for source, _ in sources:
        name = source.name.lower()
        name = "query" if isinstance(source, exp.Query) else names.ctes.get(name, name)
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return found


def _conditions(select: exp.Select, joins: Sequence[exp.Join]) -> tuple[list[Node], list[Node]]:
    """The conditions of the query, and those of its outer joins.

    For an inner join it does not matter whether a condition is after ON or WHERE.
    """
    where = select.args.get("where")
    conditions = _operands(where.this, exp.And) if where else []
    of_outer_joins: list[Node] = []
    for join in joins:
        on = join.args.get("on")
        if on is not None and not isinstance(on, exp.Boolean):  # sqlglot adds ON TRUE
            (of_outer_joins if join.side else conditions).extend(_operands(on, exp.And))
    return conditions, of_outer_joins


def _operands(node: Node, operator: type[Node]) -> list[Node]:
    """The operands of a chain of one operator, without parentheses: A, B and C of `A AND (B AND C)`."""
    node = node.unnest()
    if not isinstance(node, operator):
        return [node]
    return _operands(node.this, operator) + _operands(node.expression, operator)


def _expand(node: Node, columns: Columns) -> Node:
    """A copy of a term of GROUP BY, HAVING or ORDER BY, with result columns in place of their positions and aliases."""
    if isinstance(node, exp.Ordered):
        return exp.Ordered(**{**node.args, "this": _expand(node.this, columns)})
    if isinstance(node, exp.Literal) and node.is_int and int(node.this) in columns:
        return _as_written(columns[int(node.this)])

    def replaced(inner: Node) -> Node:
        is_name = isinstance(inner, exp.Column) and not inner.table
        return _as_written(columns[name]) if is_name and (name := inner.name.lower()) in columns else inner

    return node.transform(replaced)


def _as_written(text: str) -> Node:
    """A node that has this text. Copies of the tree would take time in proportion to its size times their number."""
    return exp.Literal(this=text, is_string=False)


class _Writer:
    """Writes the expressions of one query as text, and keeps the queries nested in them."""

    def __init__(self, names: _Names) -> None:
        self._names = names
        self._queries: list[Node] = []

    def parts(self, texts: Iterable[str]) -> Counter[str]:
        """The texts, and the parts of the queries that were nested in the expressions written since the last call."""
        parts = Counter(texts)
        queries, self._queries = self._queries, []
        for query in queries:
            parts += _nested_parts(query, self._names.inner())
        return parts

    def result_columns(self, select: exp.Select) -> Columns:
        """The result columns of the query; parts of queries nested in them belong to the clause select alone."""
        texts = {i: self.text(result) for i, result in enumerate(select.expressions, 1)}
        self._queries = []
        aliases = {result.alias.lower(): texts[i] for i, result in enumerate(select.expressions, 1) if result.alias}
        return {**texts, **aliases}

    def source(self, source: Source, name: str) -> str:
        """A source of FROM after the kind of its join, which is empty for an inner one."""
        node, join = source
        if not isinstance(node, exp.Table):
            name = self.text(node)  # a query, or VALUES
        elif not isinstance(node.this, exp.Identifier):
            name = self.text(node.this)  # a function with its arguments
        return f"{join.method} {join.side} {name}".strip().lower() if join else name

    def is_link(self, condition: Node) -> bool:
        """Whether a condition equates columns of two sources."""
        if not isinstance(condition, exp.EQ):
            return False
        sides = [side.unnest() for side in (condition.this, condition.expression)]
        sources = {self._source_of(side) for side in sides if isinstance(side, exp.Column)}
        return len(sources) == 2 and "" not in sources

    def text(self, node: Node) -> str:
        """An expression as text; what may be spelled in several ways has one text."""
        if isinstance(node, exp.Paren | exp.Alias):
            return self.text(node.this)
        if isinstance(node, exp.Query):
            self._queries.append(node)
            return "query"
        if isinstance(node, exp.Column):
            return self._column(node)
        if isinstance(node, exp.Literal):
            return f"'{node.this}'" if node.is_string else node.this
        if isinstance(node, exp.Identifier | exp.Var):
            return node.name.lower()
        if isinstance(node, exp.Star):
            return "*"
        if isinstance(node, exp.Boolean):
            return str(node.this).lower()
        if isinstance(node, exp.Ordered):
            return self._ordered(node)
        return self._call(node)

    def _call(self, node: Node) -> str:
        """An operator or function with its operands."""
        for operator in _COMMUTATIVE:
            if isinstance(node, operator):
                return f"{node.key}({', '.join(sorted(map(self.text, _operands(node, operator))))})"
        skipped = bool | exp.TableAlias
        values = [self._value(value) for value in node.args.values() if value and not isinstance(value, skipped)]
        if type(node) in _REVERSED:
            return f"{_REVERSED[type(node)]}({', '.join(reversed(values))})"
        if isinstance(node, exp.In) and node.expressions:
            values = [self.text(node.this), *sorted(map(self.text, node.expressions))]
        if isinstance(node, _SYMMETRIC):
            values.sort()
        return f"{node.key}({', '.join(values)})" if values else node.key

    def _value(self, value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(map(self._value, value))
        return self.text(value) if isinstance(value, _NODE) else str(value).lower()

    def _ordered(self, term: exp.Ordered) -> str:
        desc, nulls_first = bool(term.args.get("desc")), bool(term.args.get("nulls_first"))
        nulls = "" if nulls_first != desc else " nulls first" if nulls_first else " nulls last"  # SQLite: NULL is least
        return f"{self.text(term.this)}{' desc' if desc else ''}{nulls}"

    def _column(self, column: exp.Column) -> str:
        if _is_string(column):
            return f"'{column.name}'"
        source = self._source_of(column)
        if isinstance(column.this, exp.Star):
            return "*" if source == self._names.only_source else f"{source}.*"
        return f"{source}.{column.name.lower()}" if source else column.name.lower()

    def _source_of(self, column: exp.Column) -> str:
        """The name of a column's source; "" if it is unknown."""
        alias = column.table.lower()
        return self._names.sources.get(alias, alias) if alias else self._names.only_source


def _is_string(column: exp.Column) -> bool:
    """Whether a name in double quotes is probably a string, which SQLite takes it for if no column has that name."""
    quoted = isinstance(column.this, exp.Identifier) and column.this.quoted and not column.table
    return bool(quoted and isinstance(column.parent, exp.Predicate) and column.arg_key != "this")
