"""A gold as a syntax tree whose columns are found in the schema: what the rules read.

SQLite's habits are kept: names are the same in any case, and "text" in double quotes that is no column's name is
a string. A column that comes from a subquery or a common table expression has a source but no declared type.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import sqlglot
from sqlglot import exp

from sqlr1_jax.data.schema import Column, Schema, Table
from sqlr1_jax.errors import Sqlr1Error

if TYPE_CHECKING:
    Node = exp.Expr  # before sqlglot 30 it was called Expression

Key = tuple[str, str]  # (alias, column) in lower case


class StatementError(Sqlr1Error):
    """SQL that sqlglot cannot parse, or that is no single query."""


class Place(NamedTuple):
    """Where a column comes from."""

    block: Block
    alias: str  # of its source in that block, in lower case
    table: Table | None  # None: the source is a subquery
    column: Column | None

    @property
    def key(self) -> Key:
        return self.alias, self.column.name.lower() if self.column else ""


class Block:
    """One SELECT of a statement, with its sources by alias."""

    def __init__(self, statement: Statement, select: exp.Select) -> None:
        self.statement = statement
        self.select = select
        self.joins: list[exp.Join] = select.args.get("joins") or []
        clause = select.args.get("from_") or select.args.get("from")  # sqlglot 28 renamed it
        roots = [root.this for root in ([clause] if clause else []) + self.joins]
        self.nodes = {root.alias_or_name.lower(): root for root in _flat(roots)}
        self.tables = {alias: statement.table(node) for alias, node in self.nodes.items()}

    @functools.cached_property
    def outer(self) -> Block | None:
        """The block that this one is a subquery of."""
        above = self.select.find_ancestor(exp.Select)
        return self.statement.block(above) if above else None

    @functools.cached_property
    def aliases(self) -> dict[str, Node]:
        """What the select list gives names to, by name in lower case."""
        return {p.alias.lower(): p.this for p in self.select.expressions if isinstance(p, exp.Alias)}

    @functools.cached_property
    def group_keys(self) -> list[Node]:
        """What it groups by, with ordinals and aliases replaced by what they stand for."""
        group = self.select.args.get("group")
        return [self._meant(key) for key in group.expressions] if group else []

    @functools.cached_property
    def conditions(self) -> list[Node]:
        """What ON and WHERE demand, conjunct by conjunct."""
        where = self.select.args.get("where")
        roots = [join.args["on"] for join in self.joins if join.args.get("on")] + ([where.this] if where else [])
        roots += [n.args["on"] for s in self.nodes.values() for n in s.args.get("joins") or [] if n.args.get("on")]
        return [part for root in roots for part in (root.flatten() if isinstance(root, exp.And) else [root])]

    def own(self, *roots: Node) -> Iterator[Node]:
        """The nodes of the block, or of parts of it, without those of its subqueries."""
        for root in roots or (self.select,):
            for node in root.walk(prune=lambda n: n is not self.select and isinstance(n, exp.Query)):
                if node is self.select or not isinstance(node, exp.Query):
                    yield node

    def aggregates(self) -> list[Node]:
        """The calls of aggregate functions, windows' apart."""
        return [node for node in self.own() if is_aggregate(node)]

    def place(self, column: Node) -> Place | None:
        """Where a column comes from, None where that cannot be told."""
        if not isinstance(column, exp.Column):
            return None
        name, wanted = column.name.lower(), column.table.lower()
        if wanted:
            found = [wanted] if wanted in self.tables else []
        else:
            found = [alias for alias, table in self.tables.items() if table and _column(table, name)]
        if found:
            table = self.tables[found[0]]
            return Place(self, found[0], table, _column(table, name) if table else None)
        if not wanted and None in self.tables.values():
            return None
        return self.outer.place(column) if self.outer else None

    def _meant(self, key: Node) -> Node:
        if isinstance(key, exp.Literal) and key.is_int and 0 < int(key.name) <= len(self.select.expressions):
            return self.select.expressions[int(key.name) - 1].unalias()
        if isinstance(key, exp.Column) and not key.table and self.place(key) is None:
            return self.aliases.get(key.name.lower(), key)
        return key


class Statement:
    """A parsed query on a schema. Raises `StatementError` where sqlglot cannot read it."""

    def __init__(self, sql: str, schema: Schema) -> None:
        try:
            tree = sqlglot.parse_one(sql, dialect="sqlite")
        except (sqlglot.errors.SqlglotError, RecursionError) as error:
            raise StatementError(f"sqlglot cannot parse it: {str(error).splitlines()[0]}") from error
        if not isinstance(tree, exp.Query):
            raise StatementError(f"it is no query but {type(tree).__name__}")
        self.tree: Node = tree
        self._schema = {table.name.lower(): table for table in schema.tables}
        self._ctes = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
        self._mark_strings()
        self._blocks = {id(select): Block(self, select) for select in tree.find_all(exp.Select)}

    @property
    def blocks(self) -> Iterable[Block]:
        return self._blocks.values()

    @property
    def sql(self) -> str:
        """The statement as sqlglot writes it: what variants of it are compared with."""
        return write(self.tree)

    def block(self, select: exp.Select) -> Block:
        return self._blocks[id(select)]

    def table(self, source: Node) -> Table | None:
        """The table that a source of FROM names; None for a subquery."""
        name = source.name.lower()
        return self._schema.get(name) if isinstance(source, exp.Table) and name not in self._ctes else None

    def tables(self) -> list[Table]:
        """The tables that it reads, each once."""
        found = [self.table(source) for source in self.tree.find_all(exp.Table)]
        return list({table.name: table for table in found if table}.values())

    def changed(self, changes: dict[int, Node]) -> str:
        """The SQL with nodes, named by id(), replaced by others."""
        copies = {id(node): copy for node, copy in _pairs(self.tree)}
        root = copies[id(self.tree)].root()
        for old, new in changes.items():
            copies[old].replace(new)
        return write(root)

    def _mark_strings(self) -> None:
        names = {column.name.lower() for table in self._schema.values() for column in table.columns}
        names |= {node.alias.lower() for node in self.tree.find_all(exp.Alias, exp.TableAlias)}
        for column in list(self.tree.find_all(exp.Column)):
            quoted = isinstance(column.this, exp.Identifier) and column.this.quoted
            if quoted and not column.table and column.name.lower() not in names:
                column.replace(exp.Literal.string(column.name))


def write(tree: Node) -> str:
    """SQL in SQLite's dialect."""
    return tree.sql(dialect="sqlite")


def is_aggregate(node: Node) -> bool:
    """Whether a node calls an aggregate function over rows of a group."""
    return isinstance(node, exp.AggFunc) and not node.find_ancestor(exp.Window)


def affinity(column: Column) -> str:
    """What a column's declared type makes of values: integer, text, none, real or numeric (SQLite's five rules)."""
    declared = column.type.upper()
    if "INT" in declared:
        return "integer"
    if any(word in declared for word in ("CHAR", "CLOB", "TEXT")):
        return "text"
    if "BLOB" in declared or not declared:
        return "none"
    return "real" if any(word in declared for word in ("REAL", "FLOA", "DOUB")) else "numeric"


def _flat(roots: Iterable[Node]) -> Iterator[Node]:
    """The sources of FROM, with those in parentheses and the ones joined to them."""
    for root in roots:
        inner = root.this if isinstance(root, exp.Subquery) and isinstance(root.this, exp.Table) else root
        yield inner
        if isinstance(inner, exp.Table):
            yield from _flat(join.this for join in inner.args.get("joins") or [])


def _column(table: Table, name: str) -> Column | None:
    return next((column for column in table.columns if column.name.lower() == name), None)


def _pairs(tree: Node) -> Iterator[tuple[Node, Node]]:
    return zip(tree.walk(), tree.copy().walk(), strict=True)
