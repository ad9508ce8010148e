"""Rules about the values that a gold compares, divides and orders by, and about the clock.

Rules of the same kind as in `rows.py`. Types are those that SQLite gives a column by its declaration: they decide
whether '9' stands before or behind '10'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sqlglot import exp

from sqlr1_jax.data.schema import quote
from sqlr1_jax.lint.statement import Block, Place, Statement, affinity, write
from sqlr1_jax.lint.suspicion import Suspicion, differ, differ_in_order, yes
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from sqlr1_jax.lint.statement import Node

_ORDERINGS = (exp.GT, exp.GTE, exp.LT, exp.LTE)
_COMPARISONS = (exp.EQ, exp.NEQ, *_ORDERINGS)
_CLOCKS = (exp.CurrentDate, exp.CurrentTime, exp.CurrentTimestamp)
_DATE_FUNCTIONS = frozenset(("date", "time", "datetime", "julianday", "unixepoch"))
FEW = 10  # of a column of numbers at most one value in so many is none
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*\Z")


def clock(statement: Statement) -> Iterator[Suspicion]:
    """It asks for the current date or time."""
    for node in statement.tree.walk():
        now = isinstance(node, exp.Literal) and node.is_string and node.name.lower() == "now"
        told = now and isinstance(node.parent, exp.Func)
        bare = isinstance(node, exp.Anonymous) and node.name.lower() in _DATE_FUNCTIONS and not node.expressions
        if isinstance(node, _CLOCKS) or told or bare:
            yield Suspicion("clock", f"{write(node)} is the moment at which it runs, so its result changes with time")
            return


def null_comparison(statement: Statement) -> Iterator[Suspicion]:
    """A comparison with NULL, which is never true; NOT IN a subquery that returns NULL."""
    for node in statement.tree.find_all(*_COMPARISONS, exp.In):
        listed = node.expressions if isinstance(node, exp.In) else [node.this, node.expression]
        if any(isinstance(side, exp.Null) for side in listed):
            yield Suspicion("null_comparison", f"{write(node)} is never true: NULL is found by IS NULL alone")
        query = node.args.get("query") if isinstance(node, exp.In) else None
        if query is not None and isinstance(node.parent, exp.Not):
            probe = f"SELECT EXISTS(SELECT 1 FROM (SELECT NULL AS c WHERE 0 UNION ALL {_inner(query)}) WHERE c IS NULL)"
            reason = f"{write(node.parent)} is never true: the list holds NULL"
            yield Suspicion("null_comparison", reason, (probe,), yes)


def _inner(query: Node) -> str:
    return f"SELECT * FROM ({write(query.unnest() if isinstance(query, exp.Subquery) else query)})"


def text_number(statement: Statement) -> Iterator[Suspicion]:
    """A column compared with a number as text, or a column of numbers with a word."""
    for block, node, column, literal in _comparisons(statement):
        place = block.place(column)
        if place is None or place.column is None:
            continue
        kind, text = affinity(place.column), write(node)
        is_number = not literal.is_string or bool(_NUMBER.match(literal.name))
        meant = not literal.is_string or isinstance(node, _ORDERINGS)  # equality of texts is what it says
        if kind in ("text", "none") and is_number and meant:
            reason = f"{text} compares text, where '9' > '10': by number it gives another result"
            queries = _holds_numbers(place), statement.sql, _by_number(statement, column, literal)
            yield Suspicion("text_number", reason, queries, _numbers_differ)
        if kind in ("integer", "real") and not is_number and isinstance(node, _ORDERINGS):
            reason = f"{text} compares numbers with a word, and every number is less than any text"
            yield Suspicion("text_number", reason, (_holds_no_text(place),), yes)


def _comparisons(statement: Statement) -> Iterator[tuple[Block, Node, Node, Node]]:
    """Comparisons of a column with a literal: (block, comparison, column, literal)."""
    for block in statement.blocks:
        for node in block.own():
            sides = [node.this, node.expression] if isinstance(node, _COMPARISONS) else []
            columns = [side for side in sides if isinstance(side, exp.Column)]
            literals = [side for side in sides if isinstance(side, exp.Literal)]
            if columns and literals:
                yield block, node, columns[0], literals[0]


def _by_number(statement: Statement, column: Node, literal: Node) -> str:
    number = exp.Literal.number(literal.name.strip())
    return statement.changed({id(column): _real(column), id(literal): number})


def _real(node: Node) -> Node:
    return exp.cast(node.copy(), "REAL", dialect="sqlite")


def _holds_no_text(place: Place) -> str:
    column, table = _names(place)
    return f"SELECT NOT EXISTS(SELECT 1 FROM {table} WHERE typeof({column}) = 'text')"


def text_order(statement: Statement) -> Iterator[Suspicion]:
    """Numbers that are kept as text and ordered as text, or whose greatest or least is taken."""
    for block in statement.blocks:
        for node in block.own():
            if isinstance(node, exp.Ordered | exp.Max | exp.Min) and _is_text(block, node.this):
                yield from _text_order(statement, block, node)


def _is_text(block: Block, column: Node) -> bool:
    place = block.place(column)
    return place is not None and place.column is not None and affinity(place.column) == "text"


def _text_order(statement: Statement, block: Block, node: Node) -> Iterator[Suspicion]:
    place = block.place(node.this)
    assert place is not None
    if isinstance(node, exp.Ordered):
        variants = statement.sql, statement.changed({id(node.this): _real(node.this)})
    else:  # both are reals, since what the result is compared with is converted by its type
        by_number = type(node)(this=_real(node.this))
        variants = statement.changed({id(node): _real(node)}), statement.changed({id(node): _real(by_number)})
    reason = f"{write(node)} orders numbers as text, where '9' is greater than '10'"
    yield Suspicion("text_order", reason, (_holds_numbers(place), *variants), _numbers_differ_in_order)


def _numbers_differ(outcomes: Sequence[Outcome]) -> bool:
    return yes(outcomes[:1]) and differ(outcomes[1:])


def _numbers_differ_in_order(outcomes: Sequence[Outcome]) -> bool:
    return yes(outcomes[:1]) and differ_in_order(outcomes[1:])


def _holds_numbers(place: Place) -> str:
    """A query that answers 1 where a column's values are numbers, but for a few; blank ones are missing."""
    column, table = _names(place)
    wrong = f"trim({column}) GLOB '*[^0-9.+-]*' OR trim({column}) NOT GLOB '*[0-9]*' OR trim({column}) GLOB '?*-*'"
    return f"SELECT {FEW} * sum({wrong}) <= count(*) FROM {table} WHERE trim({column}) != ''"


def integer_division(statement: Statement) -> Iterator[Suspicion]:
    """A quotient of integers, whose fraction SQLite drops."""
    for block in statement.blocks:
        for node in block.own():
            if isinstance(node, exp.Div) and _is_integer(block, node.this) and _is_integer(block, node.expression):
                variants = statement.sql, statement.changed({id(node.this): _real(node.this)})
                yield Suspicion("integer_division", f"{write(node)} drops the fraction", variants, differ)


def _is_integer(block: Block, node: Node) -> bool:
    """Whether an expression's value is an integer by what is declared."""
    if isinstance(node, exp.Paren | exp.Neg | exp.Sum | exp.Max | exp.Min | exp.Distinct):
        return all(_is_integer(block, part) for part in (node.expressions or [node.this]))
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Div | exp.Mod):
        return _is_integer(block, node.this) and _is_integer(block, node.expression)
    if isinstance(node, exp.Cast):
        return "INT" in write(node.to).upper()
    if isinstance(node, exp.Literal):
        return bool(node.is_int)
    if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Select):
        inner = block.statement.block(node.this)
        return len(node.this.expressions) == 1 and _is_integer(inner, node.this.expressions[0].unalias())
    place = block.place(node)
    return isinstance(node, exp.Count | exp.Length) or bool(
        place and place.column and affinity(place.column) == "integer"
    )


def absent_value(statement: Statement) -> Iterator[Suspicion]:
    """A value that is filtered by and that no row has."""
    for block in statement.blocks:
        for node in block.own():
            for column, test, value in _tests(node):
                place = block.place(column)
                if place and place.table and place.column and value.name:
                    yield _absence(place, test, value)


def _tests(node: Node) -> Iterator[tuple[Node, str, Node]]:
    """Values that a filter wants a column to have: (column, operator, literal)."""
    if isinstance(node, exp.EQ | exp.NEQ | exp.Like):
        operator = "LIKE" if isinstance(node, exp.Like) else "="
        for column, value in ((node.this, node.expression), (node.expression, node.this)):
            if isinstance(column, exp.Column) and isinstance(value, exp.Literal):
                yield column, operator, value
    if isinstance(node, exp.In) and isinstance(node.this, exp.Column):
        yield from ((node.this, "=", value) for value in node.expressions if isinstance(value, exp.Literal))


def _absence(place: Place, operator: str, value: Node) -> Suspicion:
    column, table = _names(place)
    text = write(value)
    probe = (
        f"SELECT EXISTS(SELECT 1 FROM {table}) AND NOT EXISTS(SELECT 1 FROM {table} WHERE {column} {operator} {text}), "
        f"(SELECT {column} FROM {table} WHERE lower(trim({column})) = lower(trim({text})) LIMIT 1)"
    )
    return Suspicion("absent_value", f"no row of {table} has {column} {operator} {text}", (probe,), _absent)


def _absent(outcomes: Sequence[Outcome]) -> bool | str:
    """Whether the value is absent; then, where one is spelled almost so, which."""
    if outcomes[0].kind != OutcomeKind.OK or not outcomes[0].rows[0][0]:
        return False
    similar = outcomes[0].rows[0][1]
    return True if similar is None else f", but one has {similar!r}"


def _names(place: Place) -> tuple[str, str]:
    """Column and table as SQL takes them."""
    assert place.table is not None
    assert place.column is not None
    return quote(place.column.name), quote(place.table.name)
