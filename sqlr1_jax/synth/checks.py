"""What a gold must stand: it runs, returns something, and every part of it matters on this database."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlr1_jax.synth.queries import Compound, Query, Rank, Select, With, expression, sql, weaker
from sqlr1_jax.synth.teacher import habit, spoil

Row = tuple[Any, ...]


def sound(connection: sqlite3.Connection, query: Query) -> bool:
    """Whether a gold is fit to be asked for on this database.

    It returns rows, changes without any of its filters and without its DISTINCT, and no tie could change what
    its LIMIT or its rank keeps.
    """
    rows = _rows(connection, query)
    if not rows or rows[0][-1] in (None, 0) or not _grouped(connection, query, rows):
        return False
    if _tied(connection, query):
        return False
    if habit(query) and _rows(connection, spoil(query)) == rows:
        return False
    return all(_rows(connection, other) != rows for other in weaker(query))


def _rows(connection: sqlite3.Connection, query: Query) -> list[Row]:
    """The result as a sorted list: a multiset."""
    return sorted(connection.execute(sql(query)))


def _grouped(connection: sqlite3.Connection, query: Query, rows: list[Row]) -> bool:
    """Whether its groups, if any, are several and not each a row."""
    inner = query.inner if isinstance(query, With) else query
    if isinstance(inner, Compound) or not inner.group:
        return True
    if not inner.having and inner is query and len(rows) < 2:
        return False
    plain = inner._replace(group="", having=(), columns=inner.columns[:1], distinct=False)
    return len(_rows(connection, plain)) > len(_rows(connection, plain._replace(distinct=True)))


def _tied(connection: sqlite3.Connection, query: Query) -> bool:
    if isinstance(query, Select) and query.limit:
        return _limit_tied(connection, query)
    select = query.table if isinstance(query, Select) and isinstance(query.table, Select) else query
    if not isinstance(select, Select):
        return False
    return any(_rank_tied(connection, select, c) for c in select.columns if isinstance(c, Rank))


def _limit_tied(connection: sqlite3.Connection, query: Select) -> bool:
    """Ties among the rows kept and the first one left out; or nothing left out."""
    columns = ", ".join((query.order, *(expression(c) for c in query.columns)))
    text = sql(query._replace(limit=query.limit + 1)).split(" FROM ", 1)[1]
    keys = [row[0] for row in connection.execute(f"SELECT {columns} FROM {text}")]
    return len(keys) <= query.limit or len(set(keys)) < len(keys)


def _rank_tied(connection: sqlite3.Connection, select: Select, rank: Rank) -> bool:
    columns = f"{rank.group}, {rank.column}" if rank.group else rank.column
    keys = connection.execute(f"SELECT {columns} FROM {select.table}").fetchall()
    return len(set(keys)) < len(keys)
