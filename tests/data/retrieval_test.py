from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.data import retrieval, schema
from sqlr1_jax.data.retrieval import Bm25, Index
from testing.databases import make_broken_parts


def index(path: Path) -> Index:
    return Index(path, schema.read_schema(path, sampled=False))


def test_search_finds_values_that_the_question_contains(pets: Path) -> None:
    found = index(pets)
    assert found.search("How old is the dog of lise meitner in Rome?") == {
        ("owners", "full name"): ["Lise Meitner"],
        ("owners", "city"): ["rome"],
    }
    assert found.search("dogs that are RED or white") == {("dogs", "color"): ["white", "red"]}
    assert found.search("How many reddish dogs, lise?") == {}
    assert found.search("") == {}
    assert found.search("???") == {}


def test_only_short_texts_of_one_line_are_values(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"""CREATE TABLE t (a, "b c");
            INSERT INTO t VALUES ('same', 'same'), (12, x'61'), ('{"long " * 9}', 'two
lines'), ('it''s', NULL), ('', 'same')""")
    question = f"same 12 a {'long ' * 9} two lines it's"
    assert index(path).search(question) == {("t", "a"): ["it's", "same"], ("t", "b c"): ["same"]}


@pytest.mark.filterwarnings("error")
def test_a_database_without_texts_has_no_values(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER)")
    assert index(path).search("How many?") == {}


def test_search_returns_at_most_twenty_values_best_covered_first(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    names = [f"name{i:02d} and more" for i in range(40)]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", [(name,) for name in names])
        connection.commit()
    question = ", ".join([name[:-1] for name in names[:30]] + names[30:])
    found = index(path).search(question)[("t", "a")]
    assert len(found) == retrieval.MAX_VALUES
    assert set(found[:10]) == set(names[30:])


texts = st.lists(st.text("ab c", min_size=1, max_size=8), min_size=1, max_size=20)


@given(texts, st.text("abc d", max_size=10))
def test_scores_equal_those_of_bm25s(given_texts: list[str], question: str) -> None:
    bm25s = pytest.importorskip("bm25s")
    words = [retrieval.words_of(text) for text in given_texts]
    question_words = list(dict.fromkeys(retrieval.words_of(question)))
    if not any(words):
        return
    package = bm25s.BM25(k1=retrieval.K1, b=retrieval.B)
    package.index(words, show_progress=False)
    ours = Bm25(given_texts)
    scores = np.zeros(len(given_texts))
    for word in question_words:
        texts_with_word, added = ours.weights(word)
        scores[texts_with_word] += added
    known = [word for word in question_words if any(word in text for text in words)]
    theirs = package.get_scores(known) if known else np.zeros(len(given_texts))
    np.testing.assert_allclose(scores, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("question", "values"),
    [
        ("北京有多少家店?", ["北京"]),
        ("全聚德在北京吗", ["全聚德", "北京"]),
        ("店在 北京 多少", ["北京"]),
        ("東京の店はいくつありますか", ["東京"]),
        ("スターバックスは東京に何店ありますか", ["スターバックス", "東京"]),
        ("มีร้านกี่แห่งในกรุงเทพมหานคร", ["กรุงเทพมหานคร"]),
        ("有多少女店员", ["女"]),
        ("iPhone手机多少钱", ["iPhone手机"]),
        ("How many stores in Zürich?", ["Zürich"]),
        ("how many stores are in são paulo", ["São Paulo"]),
        ("南京有多少家店", []),
    ],
)
def test_values_are_found_in_scripts_without_blanks(tmp_path: Path, question: str, values: list[str]) -> None:
    path = tmp_path / "v.sqlite"
    names = [
        "北京",
        "全聚德",
        "東京",
        "スターバックス",
        "กรุงเทพมหานคร",
        "女",
        "iPhone手机",
        "Zürich",
        "São Paulo",
        "北海道大学",
    ]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE store (name)")
        connection.executemany("INSERT INTO store VALUES (?)", [(name,) for name in names])
        connection.commit()
    assert sorted(index(path).search(question).get(("store", "name"), [])) == sorted(values)


@given(st.text(st.characters(max_codepoint=0xDFF)))
def test_words_between_blanks_are_runs_of_word_characters(text: str) -> None:
    assert retrieval.words_of(text) == re.findall(r"\w+", text.lower())


@given(st.text("abAB ", max_size=8), st.text("abAB ", max_size=20))
def test_coverage_is_the_longest_common_substring(value: str, question: str) -> None:
    value_, question_ = value.lower(), question.lower()
    parts = [value_[i:j] for i in range(len(value_)) for j in range(i, len(value_) + 1)]
    longest = max((len(part) for part in parts if part in question_), default=0)
    assert retrieval.coverage(value, question) == (longest / len(value) if value else 0.0)


def test_search_finds_every_value_that_comparing_each_of_them_finds(shared_data: Path) -> None:
    """Compares the question with every value of a real database."""
    path = shared_data / "classic" / "Chinook_Sqlite.sqlite"
    found, values = index(path), _short_texts(path)
    assert len(values) > 5000
    for question in (
        "Who composed For Those About To Rock by AC/DC?",
        "customers in Sao Paulo, Brazil or Berlin",
        "Who sells lays Metallica By Four Cello, cut at both ends?",
    ):
        covered = {v for v in values if retrieval.coverage(v, question) > retrieval.MIN_COVERAGE}
        whole_words = {v for v in covered if set(retrieval.words_of(v)) & set(retrieval.words_of(question))}
        shown = {value for part in found.search(question).values() for value in part}
        assert 0 < len(whole_words) <= retrieval.MAX_VALUES
        assert shown == whole_words


def _short_texts(path: Path) -> set[str]:
    """Every text of a database on one line of at most MAX_VALUE_LENGTH characters."""
    found: set[str] = set()
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                found.update(value for value in row if isinstance(value, str) and value)
    return {value for value in found if len(value) <= schema.MAX_VALUE_LENGTH and len(value.splitlines()) == 1}


def test_a_column_that_cannot_be_read_has_no_values(tmp_path: Path) -> None:
    path = make_broken_parts(tmp_path / "parts.sqlite")
    assert index(path).search("Is Via Appia in Rome?") == {("city", "name"): ["Rome"]}
