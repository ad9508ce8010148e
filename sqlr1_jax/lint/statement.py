"""A parsed query whose columns are resolved in a schema: the input of the rules.

It follows SQLite: names are compared without case, and "text" in double quotes is a string if no column has that name.
A column of a subquery or of a common table expression has a source but no declared type.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import sqlglot
from sqlglot import exp
from sqlglot.dialects.sqlite import SQLite

from sqlr1_jax.data.schema import Column, Schema, Table
from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql.compare import OPAQUE

if TYPE_CHECKING:
    Node = exp.Expr  # before sqlglot 30 it was called Expression

Key = tuple[str, str]  # (alias, column) in lower case
_CROSS_JOIN = re.compile(rf"{OPAQUE}|\b(?P<cross>CROSS\s+JOIN)\b", re.IGNORECASE | re.DOTALL)


class _Sqlite(SQLite):
    """sqlglot's dialect, except that CAST(x AS DATE) stays a cast: in SQLite it keeps the leading number, the year."""

    class Generator(SQLite.Generator):  # type: ignore[misc, valid-type]  # sqlglot assigns it in a metaclass
        """Writes SQL."""

        def cast_sql(self, expression: exp.Cast, safe_prefix: str | None = None) -> str:
            """A cast to the type as it was written, or to one of the same affinity."""
            del safe_prefix
            binary = expression.to.this in (exp.DataType.Type.BINARY, exp.DataType.Type.VARBINARY)
            return f"CAST({self.sql(expression, 'this')} AS {'BLOB' if binary else expression.to.sql()})"


class StatementError(Sqlr1Error):
    """SQL that sqlglot cannot parse, or that is not one query."""


class ColumnSource(NamedTuple):
    """The source of FROM that a column comes from."""

    block: Block
    alias: str  # of the source in that block, in lower case
    table: Table | None  # None: the source is a subquery
    column: Column | None

    @property
    def key(self) -> Key:
        """Identifies the column in its block."""
        return self.alias, self.column.name.lower() if self.column else ""


class Block:
    """One SELECT of a statement, with the sources of its FROM by alias."""

    def __init__(self, statement: Statement, select: exp.Select) -> None:
        self.statement = statement
        self.select = select
        self.joins: list[exp.Join] = select.args.get("joins") or []
        clause = select.args.get("from_") or select.args.get("from")  # sqlglot 28 renamed it
        roots = [root.this for root in ([clause] if clause else []) + self.joins]
        self.sources = {_source_name(i, source): source for i, source in enumerate(_flatten(roots))}
        self.tables = {alias: statement.table(source) for alias, source in self.sources.items()}

    @functools.cached_property
    def outer(self) -> Block | None:
        """The block that contains this one as a subquery."""
        select = self.select.find_ancestor(exp.Select)
        return self.statement.block(select) if select else None

    @functools.cached_property
    def aliases(self) -> dict[str, Node]:
        """The expressions that the select list names, by lower-case name."""
        return {p.alias.lower(): p.this for p in self.select.expressions if isinstance(p, exp.Alias)}

    @functools.cached_property
    def group_keys(self) -> list[Node]:
        """The expressions of GROUP BY, with ordinals and aliases replaced by the expressions that they refer to."""
        group = self.select.args.get("group")
        keys: list[Node] = []
        for key in group.expressions if group else []:
            if isinstance(key, exp.Literal) and key.is_int and 0 < int(key.name) <= len(self.select.expressions):
                keys.append(self.select.expressions[int(key.name) - 1].unalias())
            elif isinstance(key, exp.Column) and not key.table and self.resolve(key) is None:
                keys.append(self.aliases.get(key.name.lower(), key))
            else:
                keys.append(key)
        return keys

    @functools.cached_property
    def conditions(self) -> list[Node]:
        """The conjuncts of every ON and of WHERE."""
        where = self.select.args.get("where")
        roots = [join.args["on"] for join in self.joins if join.args.get("on")] + ([where.this] if where else [])
        roots += [n.args["on"] for s in self.sources.values() for n in s.args.get("joins") or [] if n.args.get("on")]
        return [part for root in roots for part in (root.flatten() if isinstance(root, exp.And) else [root])]

    def own_nodes(self, *roots: Node) -> Iterator[Node]:
        """The nodes of the block, or of the given parts of it, without those of its subqueries."""
        for root in roots or (self.select,):
            for node in root.walk(prune=lambda n: n is not self.select and isinstance(n, exp.Query)):
                if node is self.select or not isinstance(node, exp.Query):
                    yield node

    def aggregates(self) -> list[Node]:
        """The calls of aggregate functions, except those over a window."""
        return [node for node in self.own_nodes() if is_aggregate(node)]

    def resolve(self, column: Node) -> ColumnSource | None:
        """The source of a column, in this block or in one around it; None for other nodes, and if it is unknown."""
        if not isinstance(column, exp.Column):
            return None
        name, qualifier = column.name.lower(), column.table.lower()
        if qualifier:
            aliases = [qualifier] if qualifier in self.tables else []
        else:
            aliases = [alias for alias, table in self.tables.items() if table and _find_column(table, name)]
        if aliases:
            table = self.tables[aliases[0]]
            return ColumnSource(self, aliases[0], table, _find_column(table, name) if table else None)
        if not qualifier and None in self.tables.values():  # it may be a column of that subquery
            return None
        return self.outer.resolve(column) if self.outer else None


class Statement:
    """A parsed query on a schema."""

    def __init__(self, sql: str, schema: Schema) -> None:
        """Parses the query.

        Raises:
          StatementError: sqlglot cannot parse it, or it is not one query.
        """
        try:
            # A comment after the last semicolon is parsed as a statement of its own.
            trees = [t for t in sqlglot.parse(sql, dialect="sqlite") if not isinstance(t, exp.Semicolon | None)]
        except (sqlglot.errors.SqlglotError, RecursionError) as error:
            raise StatementError(f"sqlglot cannot parse it: {str(error).splitlines()[0]}") from error
        if len(trees) != 1 or not isinstance(trees[0], exp.Query):
            found = " and ".join(type(tree).__name__ for tree in trees) or "empty"
            raise StatementError(f"it is not one query but {found}")
        tree = self.tree = trees[0]
        self._text = sql
        self._schema = {table.name.lower(): table for table in schema.tables}
        self._ctes = {cte.alias.lower(): cte.this for cte in tree.find_all(exp.CTE)}
        self._convert_quoted_strings()
        self._blocks = {id(select): Block(self, select) for select in tree.find_all(exp.Select)}

    @property
    def blocks(self) -> Iterable[Block]:
        """Every SELECT of the statement."""
        return self._blocks.values()

    @property
    def sql(self) -> str:
        """The statement as sqlglot writes it, with which its variants are compared."""
        return write(self.tree)

    @functools.cached_property
    def says_cross_join(self) -> bool:
        """Whether its text has the words CROSS JOIN; sqlglot writes a comma before a subquery as such."""
        return any(match["cross"] for match in _CROSS_JOIN.finditer(self._text))

    def block(self, select: exp.Select) -> Block:
        """The block of a SELECT of this statement."""
        return self._blocks[id(select)]

    def table(self, source: Node) -> Table | None:
        """The table that a source of FROM names; None for a subquery."""
        name = source.name.lower()
        return self._schema.get(name) if isinstance(source, exp.Table) and name not in self._ctes else None

    def derived(self, source: Node) -> Node | None:
        """The query, or VALUES, whose rows a source of FROM has: a subquery or a CTE; None for tables and functions."""
        if isinstance(source, exp.Subquery):
            return source.unnest()
        if isinstance(source, exp.Values):
            return source
        return self._ctes.get(source.name.lower()) if isinstance(source, exp.Table) else None

    def tables(self) -> list[Table]:
        """The tables that the statement reads, each once."""
        tables = [self.table(source) for source in self.tree.find_all(exp.Table)]
        return list({table.name: table for table in tables if table}.values())

    def copy_nodes(self) -> dict[int, Node]:
        """A copy of the tree: the copy of each node, by the node's id()."""
        return {id(node): copy for node, copy in zip(self.tree.walk(), self.tree.copy().walk(), strict=True)}

    def rewrite(self, replacements: dict[int, Node]) -> str:
        """The SQL with some nodes replaced; the keys are their id()."""
        copies = self.copy_nodes()
        root = copies[id(self.tree)].root()
        for old, new in replacements.items():
            copies[old].replace(new)
        return write(root)

    def _convert_quoted_strings(self) -> None:
        """Turns "text" in double quotes into a string if no column or alias has that name, as SQLite does."""
        names = {column.name.lower() for table in self._schema.values() for column in table.columns}
        names |= {node.alias.lower() for node in self.tree.find_all(exp.Alias, exp.TableAlias)}
        for column in list(self.tree.find_all(exp.Column)):
            quoted = isinstance(column.this, exp.Identifier) and column.this.quoted
            if quoted and not column.table and column.name.lower() not in names:
                column.replace(exp.Literal.string(column.name))


def write(tree: Node) -> str:
    """The tree as SQL in SQLite's dialect."""
    return tree.sql(dialect=_Sqlite)


def is_aggregate(node: Node) -> bool:
    """Whether a node calls an aggregate function, and not over a window."""
    return isinstance(node, exp.AggFunc) and not node.find_ancestor(exp.Window)


def is_in_key(column: Node, root: Node, keys: set[str]) -> bool:
    """Whether the column is part of an expression, below `root`, that the query groups by."""
    node: Node | None = column
    while node is not None and node is not root.parent:
        if write(node).lower() in keys:
            return True
        node = node.parent
    return False


def affinity(column: Column) -> str:
    """A column's type affinity by SQLite's five rules: integer, text, none, real or numeric."""
    declared = column.type.upper()
    if "INT" in declared:
        return "integer"
    if any(word in declared for word in ("CHAR", "CLOB", "TEXT")):
        return "text"
    if "BLOB" in declared or not declared:
        return "none"
    return "real" if any(word in declared for word in ("REAL", "FLOA", "DOUB")) else "numeric"


def _flatten(roots: Iterable[Node]) -> Iterator[Node]:
    """The sources of FROM, including those in parentheses and those joined inside the parentheses."""
    for root in roots:
        inner = root.this if isinstance(root, exp.Subquery) and isinstance(root.this, exp.Table) else root
        yield inner
        if isinstance(inner, exp.Table):
            yield from _flatten(join.this for join in inner.args.get("joins") or [])


def _source_name(index: int, source: Node) -> str:
    """The name by which columns refer to a source of FROM; for one without any, a text that no query contains."""
    function = source.this.name if isinstance(source.this, exp.Anonymous) else ""
    return source.alias_or_name.lower() or function.lower() or f"source {index + 1}"


def _find_column(table: Table, name: str) -> Column | None:
    return next((column for column in table.columns if column.name.lower() == name), None)
