"""Rules about the values that a gold query compares, divides and orders by, and about the clock.

They work as those in rows.py. A column's type is its type affinity in SQLite: with text affinity '9' is greater than
'10'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sqlglot import exp

from sqlr1_jax.data.schema import quote
from sqlr1_jax.lint.statement import Block, ColumnSource, Statement, affinity, is_in_key, write
from sqlr1_jax.lint.suspicion import Suspicion, differ, differ_in_order, is_true
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from sqlr1_jax.lint.statement import Node

_ORDERINGS = (exp.GT, exp.GTE, exp.LT, exp.LTE)
_COMPARISONS = (exp.EQ, exp.NEQ, *_ORDERINGS)
_CLOCKS = (exp.CurrentDate, exp.CurrentTime, exp.CurrentTimestamp)
_DATE_FUNCTIONS = frozenset(("date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"))
MIN_ROWS_PER_WORD = 10  # a text column holds numbers if at most one value in this many is not a number
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*\Z")


def clock(statement: Statement) -> Iterator[Suspicion]:
    """A use of the current date or time, which makes the result change with time.

    SELECT count(*) FROM sale WHERE day > date('now', '-1 year')
    """
    for node in statement.tree.walk():
        if isinstance(node, _CLOCKS) or _reads_clock(node):
            reason = f"{write(node)} is the time at which the query runs, so the result changes with time"
            yield Suspicion("clock", reason)
            return


def _reads_clock(node: Node) -> bool:
    """Whether a node is a date function without arguments, or the text 'now' that is passed to one in some way."""
    if isinstance(node, exp.Func):
        return _is_date_function(node) and not any(node.iter_expressions())
    if not (isinstance(node, exp.Literal) and node.is_string and node.name.lower() == "now"):
        return False
    parent = node.parent
    while not isinstance(parent, exp.Query | exp.Predicate | None) and not _is_date_function(parent):
        parent = parent.parent
    return _is_date_function(parent)


def _is_date_function(node: Node | None) -> bool:
    return isinstance(node, exp.Func) and write(node).partition("(")[0].lower() in _DATE_FUNCTIONS


def null_comparison(statement: Statement) -> Iterator[Suspicion]:
    """A comparison with NULL, or NOT IN a subquery that returns NULL: neither is ever true.

    SELECT name FROM clerk WHERE boss = NULL
    SELECT name FROM clerk WHERE id NOT IN (SELECT boss FROM clerk)
    """
    for node in statement.tree.find_all(*_COMPARISONS, exp.In):
        operands = node.expressions if isinstance(node, exp.In) else [node.this, node.expression]
        if any(isinstance(operand, exp.Null) for operand in operands):
            yield Suspicion("null_comparison", f"{write(node)} is never true: only IS NULL finds NULL")
        query = node.args.get("query") if isinstance(node, exp.In) else None
        if query is not None and isinstance(node.parent, exp.Not):
            values = f"SELECT * FROM ({write(query.unnest() if isinstance(query, exp.Subquery) else query)})"
            # The empty SELECT gives the subquery's column the name c.
            has_null = f"SELECT EXISTS(SELECT 1 FROM (SELECT NULL AS c WHERE 0 UNION ALL {values}) WHERE c IS NULL)"
            reason = f"{write(node.parent)} is never true: the subquery returns NULL"
            yield Suspicion("null_comparison", reason, (has_null,), is_true)


def text_number(statement: Statement) -> Iterator[Suspicion]:
    """A text column compared with a number as text, or a number column compared with a word.

    SELECT name FROM clerk WHERE weeks > 20, where weeks is TEXT: '9' passes, '100' does not.
    The variants compare as text and as numbers, if the column holds numbers.
    """
    for block, node, column, literals in _comparisons(statement):
        source = block.resolve(column)
        if source is None or source.column is None:
            continue
        column_type, text = affinity(source.column), write(node)
        is_number = all(not literal.is_string or _NUMBER.match(literal.name) for literal in literals)
        orders = isinstance(node, (*_ORDERINGS, exp.Between))
        by_size = orders or not literals[0].is_string  # = '20' is a comparison of texts
        if column_type in ("text", "none") and is_number and by_size:
            reason = f"{text} compares text, where '9' > '10': as numbers the result is different"
            numbers = {id(literal): exp.Literal.number(literal.name.strip()) for literal in literals}
            by_number = statement.rewrite({id(column): _to_real(column), **numbers})
            queries = (_holds_numbers(source), statement.sql, by_number)
            yield Suspicion("text_number", reason, queries, lambda o: is_true(o[:1]) and differ(o[1:]))
        if column_type in ("integer", "real") and not is_number and orders:
            reason = f"{text} compares numbers with a word, and every number is less than any text"
            name, table = _sql_names(source)
            has_no_text = f"SELECT NOT EXISTS(SELECT 1 FROM {table} WHERE typeof({name}) = 'text')"
            yield Suspicion("text_number", reason, (has_no_text,), is_true)


def _comparisons(statement: Statement) -> Iterator[tuple[Block, Node, exp.Column, list[exp.Literal]]]:
    """Comparisons of a column with a literal, or BETWEEN two: (block, comparison, column, literals)."""
    for block in statement.blocks:
        for node in block.own_nodes():
            sides = [node.this, node.expression] if isinstance(node, _COMPARISONS) else []
            if isinstance(node, exp.Between):
                sides = [node.this, node.args["low"], node.args["high"]]
            columns = [side for side in sides if isinstance(side, exp.Column)]
            literals = [side for side in sides if isinstance(side, exp.Literal)]
            if columns and literals and len(columns) + len(literals) == len(sides):
                yield block, node, columns[0], literals


def _to_real(node: Node) -> Node:
    # Not exp.cast: it takes a cast to DECIMAL, which in SQLite keeps integers, for one to REAL.
    return exp.Cast(this=node.copy(), to=exp.DataType.build("DOUBLE"))


def text_order(statement: Statement) -> Iterator[Suspicion]:
    """ORDER BY, max() or min() of numbers that are stored as text.

    SELECT name FROM clerk ORDER BY weeks DESC LIMIT 1, where weeks is TEXT: '9' comes before '100'.
    The variants order as text and as numbers, if the column holds numbers.
    """
    for block in statement.blocks:
        for node in block.own_nodes():
            if isinstance(node, exp.Max | exp.Min) and (source := _text_column(block, node.this)):
                # Both variants give a real number. If their types differed, SQLite would convert the other side of a
                # comparison differently in each.
                exact = type(node)(this=_to_real(node.this))
                variants = tuple(statement.rewrite({id(node): _to_real(value)}) for value in (node, exact))
                yield _text_order(source, node, variants)
            elif isinstance(node, exp.Ordered):
                term = block.aliases.get(node.this.name.lower(), node.this) if _is_bare_name(node.this) else node.this
                column = term.this if isinstance(term, exp.Max | exp.Min) else term
                if source := _text_column(block, column):
                    number = _to_real(column) if term is column else type(term)(this=_to_real(column))
                    yield _text_order(source, node, (statement.sql, statement.rewrite({id(node.this): number})))


def _is_bare_name(node: Node) -> bool:
    return isinstance(node, exp.Column) and not node.table


def _text_column(block: Block, node: Node) -> ColumnSource | None:
    """The source of a node, if it is a column that is declared as text."""
    source = block.resolve(node)
    return source if source and source.column and affinity(source.column) == "text" else None


def _text_order(source: ColumnSource, node: Node, variants: tuple[str, ...]) -> Suspicion:
    reason = f"{write(node)} orders numbers as text, where '9' is greater than '10'"
    queries = (_holds_numbers(source), *variants)
    return Suspicion("text_order", reason, queries, lambda o: is_true(o[:1]) and differ_in_order(o[1:]))


def _holds_numbers(source: ColumnSource) -> str:
    """A query that returns 1 if all but a few of a column's values are numbers; blank values do not count."""
    column, table = _sql_names(source)
    wrong = f"trim({column}) GLOB '*[^0-9.+-]*' OR trim({column}) NOT GLOB '*[0-9]*' OR trim({column}) GLOB '?*-*'"
    return f"SELECT {MIN_ROWS_PER_WORD} * sum({wrong}) <= count(*) FROM {table} WHERE trim({column}) != ''"


def integer_division(statement: Statement) -> Iterator[Suspicion]:
    """A quotient of integers, whose fraction SQLite drops.

    SELECT sum(wage) / count(*) FROM clerk: a mean wage of 7.5 becomes 7.
    The variants are real numbers, one after the division and one before it, so they differ only by the fraction: types
    need not be known. SELECT year / 10 * 10 and other idioms that drop it on purpose are no suspicion.
    """
    for block in statement.blocks:
        for node in block.own_nodes():
            if isinstance(node, exp.Div) and not _is_real(node) and not _drops_on_purpose(block, node):
                exact = node.copy()
                exact.set("this", _to_real(node.this))
                variants = tuple(statement.rewrite({id(node): _real(quotient)}) for quotient in (node, exact))
                yield Suspicion("integer_division", f"{write(node)} drops the fraction", variants, differ)


def _real(quotient: Node) -> Node:
    return exp.paren(_to_real(quotient), copy=False)


def _is_real(node: Node) -> bool:
    """Whether an expression is real, or NULL, whatever the data."""
    if isinstance(node, exp.Literal):
        return node.is_number and not node.is_int
    if isinstance(node, exp.Paren | exp.Neg | exp.Sum | exp.Max | exp.Min):
        return _is_real(node.this)
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Div):
        return _is_real(node.this) or _is_real(node.expression)
    if isinstance(node, exp.Cast):
        return any(word in node.to.sql().upper() for word in ("REAL", "FLOA", "DOUB"))
    return isinstance(node, exp.Avg | exp.Round)


def _drops_on_purpose(block: Block, division: Node) -> bool:
    """Whether a quotient's place shows that a whole number is wanted.

    It is cast to an integer, part of a key of GROUP BY, multiplied by its divisor again, halved for a position that is
    compared with =, IN or BETWEEN (a median), or next to the remainder of the same division.
    """
    node = division
    while isinstance(node.parent, exp.Paren):
        node = node.parent
    parent, divisor = node.parent, write(division.expression)
    if isinstance(parent, exp.Cast) and "INT" in write(parent.to).upper():
        return True
    if isinstance(parent, exp.Mul) and divisor in (write(parent.this), write(parent.expression)):
        return True
    if divisor == "2" and division.find_ancestor(exp.EQ, exp.In, exp.Between, exp.Select) is not block.select:
        return True
    remainder = write(exp.Mod(this=division.this.copy(), expression=division.expression.copy()))
    if any(isinstance(other, exp.Mod) and write(other) == remainder for other in block.own_nodes()):
        return True
    keys = {write(key).lower() for key in block.group_keys}
    return bool(keys) and is_in_key(division, block.select, keys)


def absent_value(statement: Statement) -> Iterator[Suspicion]:
    """A filter value that no row has.

    SELECT count(*) FROM shop WHERE city = 'rome', where the rows have 'Rome'
    """
    for block in statement.blocks:
        for node in block.own_nodes():
            for column, operator, value in _filter_values(node):
                source = block.resolve(column)
                if source and source.table and source.column and value.name:
                    yield _absent_value(source, operator, value)


def _filter_values(node: Node) -> Iterator[tuple[Node, str, Node]]:
    """The values that =, !=, LIKE or IN compare a column with: (column, operator, literal)."""
    if isinstance(node, exp.EQ | exp.NEQ | exp.Like):
        operator = "LIKE" if isinstance(node, exp.Like) else "="
        for column, value in ((node.this, node.expression), (node.expression, node.this)):
            if isinstance(column, exp.Column) and isinstance(value, exp.Literal):
                yield column, operator, value
    if isinstance(node, exp.In) and isinstance(node.this, exp.Column):
        yield from ((node.this, "=", value) for value in node.expressions if isinstance(value, exp.Literal))


def _absent_value(source: ColumnSource, operator: str, value: Node) -> Suspicion:
    column, table = _sql_names(source)
    text = write(value)
    query = (  # whether the value is absent, and a value that differs from it only in case or blanks
        f"SELECT EXISTS(SELECT 1 FROM {table}) AND NOT EXISTS(SELECT 1 FROM {table} WHERE {column} {operator} {text}), "
        f"(SELECT {column} FROM {table} WHERE lower(trim({column})) = lower(trim({text})) LIMIT 1)"
    )
    return Suspicion("absent_value", f"no row of {table} has {column} {operator} {text}", (query,), _is_absent)


def _is_absent(outcomes: Sequence[Outcome]) -> bool | str:
    """Whether the value is absent; if a similar value exists, a text that names it."""
    if outcomes[0].kind != OutcomeKind.OK or not outcomes[0].rows[0][0]:
        return False
    similar = outcomes[0].rows[0][1]
    return True if similar is None else f", but one has {similar!r}"


def _sql_names(source: ColumnSource) -> tuple[str, str]:
    """The names of the column and its table, quoted if SQL needs it."""
    assert source.table is not None
    assert source.column is not None
    return quote(source.column.name), quote(source.table.name)
