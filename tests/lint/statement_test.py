from __future__ import annotations

import pytest

from sqlr1_jax.data import schema
from sqlr1_jax.data.schema import Column, Schema
from sqlr1_jax.lint.statement import Statement, StatementError, affinity, write
from testing.databases import make_shop


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    return schema.read_schema(make_shop(tmp_path_factory.mktemp("statement")), sampled=False)


def resolve(sql: str, tables: Schema) -> list[str]:
    """The source of each column of each block, as "alias table.column"."""
    sources = []
    for block in Statement(sql, tables).blocks:
        for node in block.own_nodes():
            source = block.resolve(node)
            if source:
                column = f"{source.table.name if source.table else '?'}.{source.column.name if source.column else '?'}"
                sources.append(f"{source.alias} {column}")
    return sources


def test_columns_are_resolved_in_any_case_by_alias_and_in_outer_queries(tables: Schema) -> None:
    assert resolve("SELECT T1.WAGE, city FROM Clerk AS t1 JOIN Shop ON Shop_ID = shop.id", tables) == [
        "t1 clerk.wage", "shop shop.city", "t1 clerk.shop_id", "shop shop.id",
    ]  # fmt: skip
    inner = "SELECT name FROM shop WHERE EXISTS (SELECT 1 FROM sale WHERE amount > seats)"
    assert sorted(resolve(inner, tables)) == ["sale sale.amount", "shop shop.name", "shop shop.seats"]


def test_columns_of_a_subquery_have_no_table(tables: Schema) -> None:
    assert resolve("SELECT b.n FROM (SELECT name AS n FROM shop) b", tables) == ["b ?.?", "shop shop.name"]
    assert "shop ?.?" in resolve("WITH shop AS (SELECT 1 AS id) SELECT shop.id FROM shop", tables)


def test_double_quotes_mean_a_string_if_no_column_has_that_name(tables: Schema) -> None:
    sql = 'SELECT "name" FROM shop WHERE city = "Rome"'
    assert Statement(sql, tables).sql == "SELECT \"name\" FROM shop WHERE city = 'Rome'"


@pytest.mark.parametrize(
    "declared",
    ["DATE", "DATETIME", "TIMESTAMP", "DECIMAL", "DECIMAL(5, 2)", "INT", "TEXT", "BLOB", "UNSIGNED", "BOOLEAN"],
)
def test_a_cast_keeps_its_type(tables: Schema, declared: str) -> None:
    """In SQLite, CAST(x AS DATE) is a number, the year; DATE(x) is a date."""
    sql = f"SELECT CAST(day AS {declared}) FROM sale"
    assert Statement(sql, tables).sql.upper() == sql.upper()


def test_sources_without_a_name_are_told_apart(tables: Schema) -> None:
    (block,) = Statement("SELECT 1 FROM (VALUES (1)), (VALUES (2)), json_each('[]')", tables).blocks
    assert list(block.sources) == ["source 1", "source 2", "json_each"]


def test_group_keys_replace_ordinals_and_aliases(tables: Schema) -> None:
    def keys(sql: str) -> list[str]:
        return [write(key) for block in Statement(sql, tables).blocks for key in block.group_keys]

    assert keys("SELECT city, count(*) FROM shop GROUP BY 1") == ["city"]
    assert keys("SELECT seats / 10 AS size FROM shop GROUP BY size, city") == ["seats / 10", "city"]


def test_tables_lists_each_table_once(tables: Schema) -> None:
    sql = "SELECT a.id FROM shop a JOIN shop b ON a.id = b.id WHERE a.id IN (SELECT shop_id FROM clerk)"
    assert [table.name for table in Statement(sql, tables).tables()] == ["shop", "clerk"]


@pytest.mark.parametrize("sql", ["SELECT FROM WHERE", "DELETE FROM shop", "SELECT 1; SELECT 2"])
def test_text_that_is_not_one_query_is_refused(tables: Schema, sql: str) -> None:
    with pytest.raises(StatementError):
        Statement(sql, tables)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("BIGINT", "integer"), ("varchar(20)", "text"), ("", "none"), ("BLOB", "none"), ("double", "real"),
        ("CHARINT", "integer"), ("DATE", "numeric"), ("decimal(8,2)", "numeric"),
    ],
)  # fmt: skip
def test_affinity_follows_the_rules_of_sqlite(declared: str, expected: str) -> None:
    assert affinity(Column("c", declared)) == expected
