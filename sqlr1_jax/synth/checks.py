"""Checks a gold query on its database: it must return rows, and each of its clauses must change them."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlr1_jax.synth.queries import Compound, Query, Rank, Select, With, expression, sql, weaker
from sqlr1_jax.synth.teacher import habit, spoil

Row = tuple[Any, ...]


def is_sound(connection: sqlite3.Connection, query: Query) -> bool:
    """Whether a question may ask for this gold query on this database.

    - It returns rows, and the first does not end in NULL or zero, as an aggregate over no rows does.
    - Its result changes without any one of its filters, without its DISTINCT and without its groups.
    - No tie could change which rows its LIMIT keeps or how it ranks them.
    - The teacher's habit that applies to it (teacher.py), if any, changes its result.
    """
    rows = _rows(connection, query)
    if not rows or rows[0][-1] in (None, 0) or not _groups_matter(connection, query, rows):
        return False
    if _has_ties(connection, query):
        return False
    if habit(query) and _rows(connection, spoil(query)) == rows:
        return False
    return all(_rows(connection, weakened) != rows for weakened in weaker(query))


def _rows(connection: sqlite3.Connection, query: Query) -> list[Row]:
    """The result, sorted, so that equal lists are equal multisets."""
    return sorted(connection.execute(sql(query)))


def _groups_matter(connection: sqlite3.Connection, query: Query, rows: list[Row]) -> bool:
    """Whether the query has no GROUP BY, or has several groups, some of them with more than one row."""
    inner = query.inner if isinstance(query, With) else query
    if isinstance(inner, Compound) or not inner.group:
        return True
    if not inner.having and inner is query and len(rows) < 2:
        return False
    ungrouped = inner._replace(group="", having=(), columns=inner.columns[:1], distinct=False)
    return len(_rows(connection, ungrouped)) > len(_rows(connection, ungrouped._replace(distinct=True)))


def _has_ties(connection: sqlite3.Connection, query: Query) -> bool:
    if isinstance(query, Select) and query.limit:
        return _has_ties_at_limit(connection, query)
    select = query.table if isinstance(query, Select) and isinstance(query.table, Select) else query
    if not isinstance(select, Select):
        return False
    for rank in (column for column in select.columns if isinstance(column, Rank)):
        columns = f"{rank.group}, {rank.column}" if rank.group else rank.column
        keys = connection.execute(f"SELECT {columns} FROM {select.table}").fetchall()
        if len(set(keys)) < len(keys):
            return True
    return False


def _has_ties_at_limit(connection: sqlite3.Connection, query: Select) -> bool:
    """Whether two of the first limit + 1 rows tie, or LIMIT keeps every row."""
    columns = ", ".join((query.order, *(expression(c) for c in query.columns)))
    text = sql(query._replace(limit=query.limit + 1)).split(" FROM ", 1)[1]
    keys = [row[0] for row in connection.execute(f"SELECT {columns} FROM {text}")]
    return len(keys) <= query.limit or len(set(keys)) < len(keys)
