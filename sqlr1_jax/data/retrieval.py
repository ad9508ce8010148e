"""Retrieves a database's values that a question mentions, for the `retrieved` schema format.

The steps (docs/method.md, section 10):

1. Values that the question cannot contain are dropped. At most two words of a value may be missing from the question,
   because the value may begin and end inside a word of the question.
2. BM25 ranks the other values for every run of 1 to 8 words of the question. In a script without blanks between words,
   such as Chinese, each character counts as a word, so the runs are its character n-grams.
3. The best values of each run are kept if their longest common substring with the question covers most of the value.

BM25 is a few lines of numpy here, because the package for it (bm25s) starts JAX, and with it the accelerator, in every
process that imports it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sqlr1_jax.data.schema import MAX_VALUE_LENGTH, Schema, open_database, quote, read_values

MAX_RUN_WORDS = 8
MIN_COVERAGE = 0.85  # fraction of a value that its longest common substring with the question must exceed
MAX_VALUES = 20  # per question
CANDIDATES_PER_RUN = 10  # values per run of words: those that BM25 ranks highest
K1, B = 1.5, 0.75  # BM25's saturation and length normalization, their usual values

# Characters of scripts that set no blanks between words: Thai and Lao, Tibetan, Burmese, Khmer, Japanese and Chinese.
_UNSPACED = (
    "\u0e01-\u0eff\u0f40-\u0fbc\u1000-\u109f\u1780-\u17dd\u3005-\u3007\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Bm25:
    """Robertson's BM25, in Lucene's variant, over texts as bags of words."""

    def __init__(self, texts: Sequence[str]) -> None:
        bags = [Counter(words_of(text)) for text in texts]
        self._lengths: Ints = np.array([bag.total() for bag in bags], np.int64)
        self._mean_length = max(1, int(self._lengths.sum())) / max(1, len(bags))  # words per text
        self.distinct_words: Ints = np.array([len(bag) for bag in bags], np.int64)  # of each text
        self._postings: dict[str, tuple[list[int], list[int]]] = {}  # (texts with the word, its count in each)
        for text, bag in enumerate(bags):
            for word, count in bag.items():
                text_indices, counts = self._postings.setdefault(word, ([], []))
                text_indices.append(text)
                counts.append(count)

    def weights(self, word: str) -> tuple[Ints, Floats]:
        """The indices of the texts that contain the word, and what the word adds to the score of each."""
        text_indices, counts = (np.array(part, np.int64) for part in self._postings.get(word, ([], [])))
        rarity = np.log1p((len(self._lengths) - len(text_indices) + 0.5) / (len(text_indices) + 0.5))
        norm = K1 * (1 - B + B * self._lengths[text_indices] / self._mean_length)
        return text_indices, rarity * counts / (counts + norm)


class Index:
    """The short text values of one database, searchable by a question."""

    def __init__(self, database: Path, schema: Schema) -> None:
        self._columns_of = _read_values(database, schema)
        self._values = list(self._columns_of)
        self._bm25 = Bm25(self._values)

    def search(self, question: str) -> dict[tuple[str, str], list[str]]:
        """At most `MAX_VALUES` values by (table, column), best covered by the question first."""
        covered = {value: coverage(value, question) for value in self._candidates(question)}
        matches = [value for value, share in covered.items() if share > MIN_COVERAGE]
        matches.sort(key=lambda value: (-covered[value], -len(value), value))
        by_column: dict[tuple[str, str], list[str]] = {}
        for value in matches[:MAX_VALUES]:
            for column in self._columns_of[value]:
                by_column.setdefault(column, []).append(value)
        return by_column

    def _candidates(self, question: str) -> set[str]:
        """The values that BM25 ranks highest for any of the question's runs of words."""
        words = words_of(question)
        scores_WV, values = self._scores(words)
        chosen: set[int] = set()
        for start in range(len(words)):
            for end in range(start + 1, min(start + MAX_RUN_WORDS, len(words)) + 1):
                run_scores = scores_WV[start:end].sum(axis=0)
                matched = np.flatnonzero(run_scores)
                best = matched[np.argsort(-run_scores[matched], kind="stable")[:CANDIDATES_PER_RUN]]
                chosen.update(values[best].tolist())
        return {self._values[i] for i in chosen}

    def _scores(self, words: Sequence[str]) -> tuple[Floats, Ints]:
        """Scores [word of the question W, value V], and the indices of the V values that the question may contain."""
        weights = {word: self._bm25.weights(word) for word in dict.fromkeys(words)}
        matched_words = np.zeros(len(self._values), np.int64)
        for value_indices, _ in weights.values():
            matched_words[value_indices] += 1
        # Only the first and the last word of a value may be cut off by a word of the question.
        values = np.flatnonzero((matched_words > 0) & (matched_words >= self._bm25.distinct_words - 2))
        column = np.full(len(self._values), -1, np.int64)  # a value's column in the result; -1: dropped
        column[values] = np.arange(len(values))
        scores_WV = np.zeros((len(words), len(values)))
        for i, word in enumerate(words):
            value_indices, added = weights[word]
            remains = column[value_indices] >= 0
            scores_WV[i, column[value_indices[remains]]] = added[remains]
        return scores_WV, values


def words_of(text: str) -> list[str]:
    """The text's words in lower case; a character of a script without blanks is a word of its own."""
    return _WORD.findall(text.lower())


def coverage(value: str, question: str) -> float:
    """The fraction of the value that its longest common substring with the question covers, ignoring case."""
    value, question = value.lower(), question.lower()
    for length in range(len(value), 0, -1):
        if any(value[i : i + length] in question for i in range(len(value) - length + 1)):
            return length / len(value)
    return 0.0


def _read_values(database: Path, schema: Schema) -> dict[str, list[tuple[str, str]]]:
    """Every short text value, with the (table, column) pairs that contain it, in the schema's order."""
    values: dict[str, list[tuple[str, str]]] = {}
    with closing(open_database(database)) as connection:
        for table in schema.tables:
            queries = {column.name: _values_query(table.name, column.name) for column in table.columns}
            for column, rows in read_values(connection, queries, database, table.name):
                for (value,) in rows:
                    if "\n" not in value and "\r" not in value:
                        values.setdefault(value, []).append((table.name, column))
    return values


def _values_query(table: str, column: str) -> str:
    name = quote(column)
    return f"""SELECT DISTINCT {name} FROM {quote(table)} NOT INDEXED
        WHERE typeof({name}) = 'text' AND length({name}) BETWEEN 1 AND {MAX_VALUE_LENGTH}"""
