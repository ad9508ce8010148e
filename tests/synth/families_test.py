from __future__ import annotations

import collections
import random
from typing import Any

import pytest
import sqlglot

from sqlr1_jax.synth import databases, words
from sqlr1_jax.synth.families import FAMILIES, Draw
from sqlr1_jax.synth.queries import sql

# Text that a family's SQL must contain.
SNIPPETS = {
    "distinct": ["SELECT DISTINCT"],
    "superlative": ["ORDER BY", "LIMIT 1"],
    "top_k": ["ORDER BY", "LIMIT"],
    "count_distinct": ["count( DISTINCT"],
    "group_count": ["GROUP BY", "count( * )"],
    "having": ["GROUP BY", "HAVING"],
    "join_filter": ["JOIN", "WHERE"],
    "join_count": ["JOIN", "count( * )", "WHERE"],
    "join_distinct": ["SELECT DISTINCT", "JOIN"],
    "join_superlative": ["JOIN", "ORDER BY", "LIMIT 1"],
    "join_group": ["JOIN", "GROUP BY"],
    "nested_average": ["( SELECT avg("],
    "in_subquery": ["IN ( SELECT"],
    "cte": ["WITH totals AS ("],
    "window": ["rank( ) OVER ("],
}


def test_there_are_fifteen_families_and_four_of_each_complexity() -> None:
    assert len(FAMILIES) >= 15
    labels = collections.Counter(family.complexity for family in FAMILIES.values())
    assert set(labels) == {"Simple", "Moderate", "Complex", "Highly Complex"}
    assert min(labels.values()) >= 4


def test_every_family_has_at_least_four_percent_of_the_questions() -> None:
    total = sum(family.share for family in FAMILIES.values())
    assert min(family.share for family in FAMILIES.values()) / total >= 0.04


@pytest.mark.parametrize("name", FAMILIES)
def test_sql_has_the_clauses_of_its_family_and_parses(name: str) -> None:
    drawn = 0
    for seed in range(20):
        rng = random.Random(seed)
        draw = Draw(rng, databases.make(rng, words.COMMON))
        try:
            text = sql(FAMILIES[name].draw(draw).query)
        except IndexError:
            continue
        drawn += 1
        assert [snippet for snippet in SNIPPETS.get(name, []) if snippet not in text] == []
        assert sqlglot.parse_one(text, dialect="sqlite") is not None
    assert drawn >= 8


def test_only_ranking_families_order_their_results(
    records: dict[str, list[dict[str, Any]]],
) -> None:
    ordered = {
        record["family"]
        for record in records["heldout"]
        if sqlglot.parse_one(record["sql"], dialect="sqlite").args.get("order")
    }
    assert ordered == {"superlative", "top_k", "join_superlative"}
