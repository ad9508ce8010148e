from __future__ import annotations

import pytest

from sqlr1_jax.data import schema
from sqlr1_jax.data.schema import Column, Schema
from sqlr1_jax.lint.statement import Statement, StatementError, affinity, write
from testing.databases import make_shop


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    return schema.read_schema(make_shop(tmp_path_factory.mktemp("statement")), sampled=False)


def places(sql: str, tables: Schema) -> list[str]:
    """Where each column of each block comes from, as alias → table.column."""
    found = []
    for block in Statement(sql, tables).blocks:
        for node in block.own():
            place = block.place(node)
            if place:
                column = f"{place.table.name if place.table else '?'}.{place.column.name if place.column else '?'}"
                found.append(f"{place.alias} {column}")
    return found


def test_columns_resolve_in_any_case_through_aliases_and_from_outer_queries(tables: Schema) -> None:
    assert places("SELECT T1.WAGE, city FROM Clerk AS t1 JOIN Shop ON Shop_ID = shop.id", tables) == [
        "t1 clerk.wage", "shop shop.city", "t1 clerk.shop_id", "shop shop.id",
    ]  # fmt: skip
    inner = "SELECT name FROM shop WHERE EXISTS (SELECT 1 FROM sale WHERE amount > seats)"
    assert sorted(places(inner, tables)) == ["sale sale.amount", "shop shop.name", "shop shop.seats"]


def test_columns_of_a_subquery_do_not_resolve_to_a_table(tables: Schema) -> None:
    assert places("SELECT b.n FROM (SELECT name AS n FROM shop) b", tables) == ["b ?.?", "shop shop.name"]
    assert "shop ?.?" in places("WITH shop AS (SELECT 1 AS id) SELECT shop.id FROM shop", tables)


def test_double_quotes_hold_a_string_where_no_column_has_the_name(tables: Schema) -> None:
    sql = 'SELECT "name" FROM shop WHERE city = "Rome"'
    assert Statement(sql, tables).sql == "SELECT \"name\" FROM shop WHERE city = 'Rome'"


def test_group_by_ordinals_and_aliases_resolve_to_expressions(tables: Schema) -> None:
    def keys(sql: str) -> list[str]:
        return [write(key) for block in Statement(sql, tables).blocks for key in block.group_keys]

    assert keys("SELECT city, count(*) FROM shop GROUP BY 1") == ["city"]
    assert keys("SELECT seats / 10 AS size FROM shop GROUP BY size, city") == ["seats / 10", "city"]


def test_tables_are_named_once(tables: Schema) -> None:
    sql = "SELECT a.id FROM shop a JOIN shop b ON a.id = b.id WHERE a.id IN (SELECT shop_id FROM clerk)"
    assert [table.name for table in Statement(sql, tables).tables()] == ["shop", "clerk"]


@pytest.mark.parametrize("sql", ["SELECT FROM WHERE", "DELETE FROM shop", "SELECT 1; SELECT 2"])
def test_anything_but_a_single_query_is_refused(tables: Schema, sql: str) -> None:
    with pytest.raises(StatementError):
        Statement(sql, tables)


@pytest.mark.parametrize(
    ("declared", "meant"),
    [
        ("BIGINT", "integer"), ("varchar(20)", "text"), ("", "none"), ("BLOB", "none"), ("double", "real"),
        ("CHARINT", "integer"), ("DATE", "numeric"), ("decimal(8,2)", "numeric"),
    ],
)  # fmt: skip
def test_type_affinity_follows_sqlites_rules(declared: str, meant: str) -> None:
    assert affinity(Column("c", declared)) == meant
