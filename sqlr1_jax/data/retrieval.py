"""Values of a database that a question mentions, for the `retrieved` form of a schema (sql-r1.md §6).

BM25 finds candidates for every run of 1 to 8 words of the question; kept are those that the question
nearly spells out. Before BM25 ranks anything, values are dropped that the question cannot spell out: all
words of a value but its first and last would have to be words of the question. BM25 is our own few lines
of numpy, since the package for it starts JAX, and with it the accelerator, in whichever process imports
it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sqlr1_jax.data.schema import LONGEST_VALUE, Schema, quoted
from sqlr1_jax.sql import database as sqlite

LONGEST_RUN = 8  # words
COVERED = 0.85  # of a value, by its longest common substring with the question
MOST = 20  # values for a question
CANDIDATES = 10  # of each run of words
K1, B = 1.5, 0.75  # BM25's saturation and length normalization, their usual values

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Bm25:
    """Texts as bags of words, scored against words (Robertson's BM25 in Lucene's form)."""

    def __init__(self, texts: Sequence[str]) -> None:
        found = [Counter(words_of(text)) for text in texts]
        self._lengths = np.array([words.total() for words in found], np.int64)
        self._average = max(1, self._lengths.sum()) / max(1, len(found))  # words a text
        self.distinct = np.array([len(words) for words in found], np.int64)  # words of each text
        self._postings: dict[str, tuple[list[int], list[int]]] = {}
        for text, counts in enumerate(found):
            for word, count in counts.items():
                places, times = self._postings.setdefault(word, ([], []))
                places.append(text)
                times.append(count)

    def weights(self, word: str) -> tuple[Ints, Floats]:
        """The texts that hold the word, and what it adds to each one's score."""
        places, times = (np.array(part, np.int64) for part in self._postings.get(word, ([], [])))
        rarity = np.log1p((len(self._lengths) - len(places) + 0.5) / (len(places) + 0.5))
        norm = K1 * (1 - B + B * self._lengths[places] / self._average)
        return places, rarity * times / (times + norm)


class Index:
    """The short text values of one database, searchable by the words of a question."""

    def __init__(self, database: Path, schema: Schema) -> None:
        self._values = _text_values(database, schema)
        self._texts = list(self._values)
        self._bm25 = Bm25(self._texts)

    def search(self, question: str) -> dict[tuple[str, str], list[str]]:
        """At most `MOST` values by (table, column), those that the question covers best first."""
        covered = {value: coverage(value, question) for value in self._candidates(question)}
        found = [value for value, share in covered.items() if share > COVERED]
        found.sort(key=lambda value: (-covered[value], -len(value), value))
        by_column: dict[tuple[str, str], list[str]] = {}
        for value in found[:MOST]:
            for column in self._values[value]:
                by_column.setdefault(column, []).append(value)
        return by_column

    def _candidates(self, question: str) -> set[str]:
        """What BM25 ranks highest for each of the question's runs of words."""
        words = words_of(question)
        scores, texts = self._scores(words)
        chosen: set[int] = set()
        for start, end in _runs(len(words)):
            run = scores[start:end].sum(axis=0)
            best = np.argsort(-run, kind="stable")[:CANDIDATES]
            chosen.update(texts[best[run[best] > 0]].tolist())
        return {self._texts[text] for text in chosen}

    def _scores(self, words: Sequence[str]) -> tuple[Floats, Ints]:
        """Scores by (word of the question, text), for the texts that the question may spell out."""
        weights = {word: self._bm25.weights(word) for word in dict.fromkeys(words)}
        matched = np.zeros(len(self._texts), np.int64)
        for places, _ in weights.values():
            matched[places] += 1
        texts = np.flatnonzero((matched > 0) & (matched >= self._bm25.distinct - 2))
        column = np.full(len(self._texts), -1, np.int64)
        column[texts] = np.arange(len(texts))
        scores = np.zeros((len(words), len(texts)))
        for i, word in enumerate(words):
            places, added = weights[word]
            here = column[places] >= 0
            scores[i, column[places[here]]] = added[here]
        return scores, texts


def words_of(text: str) -> list[str]:
    """The text's words in lower case."""
    return re.findall(r"\w+", text.lower())


def coverage(value: str, question: str) -> float:
    """The share of the value that its longest common substring with the question covers, case aside."""
    value, question = value.lower(), question.lower()
    for length in range(len(value), 0, -1):
        if any(value[i : i + length] in question for i in range(len(value) - length + 1)):
            return length / len(value)
    return 0.0


def _runs(count: int) -> Iterator[tuple[int, int]]:
    for start in range(count):
        yield from ((start, end) for end in range(start + 1, min(start + LONGEST_RUN, count) + 1))


def _text_values(database: Path, schema: Schema) -> dict[str, list[tuple[str, str]]]:
    """Every short text in the database and the columns that hold it, in the schema's order."""
    values: dict[str, list[tuple[str, str]]] = {}
    with closing(sqlite.open_readonly(database)) as connection:
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        for table in schema.tables:
            for column in table.columns:
                name, source = quoted(column.name), quoted(table.name)
                rows = connection.execute(
                    f"""SELECT DISTINCT {name} FROM {source} NOT INDEXED
                    WHERE typeof({name}) = 'text' AND length({name}) BETWEEN 1 AND {LONGEST_VALUE}"""
                )
                for (value,) in rows:
                    if "\n" not in value and "\r" not in value:
                        values.setdefault(value, []).append((table.name, column.name))
    return values
