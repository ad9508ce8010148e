from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.report import sql_text

GOLD = "SELECT city FROM owners WHERE income > 3"


def _plain(marked: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", marked))


@given(st.text())
def test_tokens_joined_are_the_text(sql: str) -> None:
    assert "".join(sql_text.tokens(sql)) == sql


@given(st.text())
def test_highlighted_sql_is_the_same_text_with_only_b_and_i_tags(sql: str) -> None:
    marked = sql_text.highlight(sql)
    assert _plain(marked) == sql
    assert set(re.findall(r"<(/?\w+)", marked)) <= {"b", "/b", "i", "/i"}


@given(st.text(alphabet="SELECT aby,'1\n"), st.text(alphabet="SELECT aby,'1\n"))
def test_a_difference_without_its_deletions_is_the_prediction(sql: str, gold: str) -> None:
    marked = sql_text.highlight_difference(sql, gold)
    kept = _plain(re.sub(r"<del>.*?</del>", "", marked, flags=re.DOTALL))
    assert re.sub(r"\s", "", kept) == re.sub(r"\s", "", sql)


def test_keywords_strings_and_numbers_are_highlighted() -> None:
    assert sql_text.highlight("select a from t where b = 'x < y' and c > 1.5") == (
        "<b>select</b> a <b>from</b> t <b>where</b> b = <i>&#39;x &lt; y&#39;</i> <b>and</b> c &gt; <i>1.5</i>"
    )


def test_additions_are_in_ins_and_omissions_in_del() -> None:
    assert "city<ins>, income</ins> <b>FROM</b>" in sql_text.highlight_difference(
        GOLD.replace("city", "city, income"), GOLD
    )
    assert "<b>SELECT</b> <del>DISTINCT</del>" in sql_text.highlight_difference(
        GOLD, GOLD.replace("SELECT", "SELECT DISTINCT")
    )
    assert "<ins>" not in sql_text.highlight_difference(GOLD.lower().replace("city", "city "), GOLD)


@pytest.mark.parametrize(
    ("sql", "extra"),
    [
        (GOLD, False),
        (GOLD.replace("city", "city, income"), True),
        (GOLD.replace("city", "max( city, income )"), False),
        ("SELECT city, (SELECT a, b FROM t) FROM owners", True),
        ("no query", False),
    ],
)
def test_extra_columns_are_counted_in_the_first_select(sql: str, extra: bool) -> None:
    assert sql_text.has_extra_columns(sql, GOLD) is extra


def test_a_dropped_distinct_is_found() -> None:
    gold = "SELECT count( distinct city ) FROM owners"
    assert sql_text.lacks_distinct("SELECT count( city ) FROM owners", gold)
    assert not sql_text.lacks_distinct("SELECT DISTINCT city FROM owners", gold)
    assert not sql_text.lacks_distinct("SELECT city FROM owners", GOLD)
