from __future__ import annotations

import re
import sqlite3

import pytest

from sqlr1_jax.synth import phrasings, words


@pytest.fixture(scope="module")
def all_names() -> list[str]:
    return [*words.names(words.COMMON), *words.names(words.RESERVED)]


def test_pools_have_enough_words(all_names: list[str]) -> None:
    assert len(words.names(words.COMMON)) >= 400
    assert len(words.names(words.RESERVED)) >= 80
    assert len(words.values()) >= 140


def test_a_word_has_one_role(all_names: list[str]) -> None:
    all_words = [*all_names, *words.values()]
    assert sorted({word for word in all_words if all_words.count(word) > 1}) == []


def test_names_are_single_lower_case_words(all_names: list[str]) -> None:
    assert [word for word in (*all_names, *words.values()) if not re.fullmatch("[a-z]+", word)] == []


def test_sqlite_takes_names_without_quotes(all_names: list[str]) -> None:
    connection = sqlite3.connect(":memory:")
    for name in all_names:
        connection.execute(f"CREATE TABLE {name} ({name} TEXT)")
        assert connection.execute(f"SELECT {name} FROM {name} ORDER BY {name}").fetchall() == []


def test_no_name_is_a_word_of_a_question_or_of_sql(all_names: list[str]) -> None:
    questions = " ".join(text for family in phrasings.TEMPLATES.values() for _, text in family)
    question_words = set(re.findall("[a-z]+", re.sub("{.*?}", "", questions).lower()))
    steps = "show distinct where group having sort first join on among not in desc asc rank per totals total"
    functions = "count max min avg sum rank over partition intersect except with select from as limit place"
    assert sorted(set(all_names) & {*question_words, *steps.split(), *functions.split()}) == []
