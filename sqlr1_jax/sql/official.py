"""The official metrics to the letter, quirks and all, for `score --compat` alone: never for rewards.

Copies what taoyds/test-suite-sql-eval (e97acc54, over sqlparse 0.6.1) and bird-bench/mini_dev (4d970a9a) answer, not
how: text is taken apart as there, but an order of the columns is found by refinement, not among n^n. What each quirk
does to a score is told in docs/metrics.md. Pure functions of texts and rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql import compare
from sqlr1_jax.sql.compare import Row

# In sqlparse's order, which decides; only what keeps a word, a semicolon or a parenthesis from being one, or makes one.
_TOKEN = re.compile(
    r"""
    (?:--|\#[ ]).*?(?:\r\n|\r|\n|$)
    | `(?:``|[^`])*` | ´(?:´´|[^´])*´
    | :[:=] | %(?:\(\w+\))?s | (?<!\w)[$:]\w+
    | (?P<case>CASE\b)
    | (?:@|\#\#|\#)[A-ZÀ-Ü]\w+
    | (?P<name>[A-ZÀ-Ü]\w*(?=\s*\.(?!\d)) | (?<=\.)[A-ZÀ-Ü]\w* | [A-ZÀ-Ü]\w*(?=\())
    | -?0x[\dA-F]+ | -?\d+(?:\.\d+)?E-?\d+
    | (?![_A-ZÀ-Ü])-?(?:\d+\.\d*|\.\d+|\d+)(?![_A-ZÀ-Ü])
    | '(?:''|\\'|[^'])*' | "(?:""|\\"|[^"])*"
    | (?<![\w\])])\[[^\]\[]+\]
    | (?P<word>END(?:\s+(?:IF|LOOP|WHILE|FOR|CASE))?\b | IF\s+(?:NOT\s+)?EXISTS\b | CREATE(?:\s+OR\s+REPLACE)?\b
        | HANDLER\s+FOR\b | GO\s\d+\b | \w[$\#\w]*)
    | -
    | [+/@\#%^&|-]+
    | (?P<mark>[;()])
    | (?s:.)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_YEAR_NOW = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)
_TRANSACTIONS = frozenset(("TRANSACTION", "WORK", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"))
# What each END … closes; END alone closes anything.
_CLOSES = {
    "END IF": ("IF",),
    "END FOR": ("FOR",),
    "END WHILE": ("WHILE",),
    "END CASE": ("CASE",),
    "END LOOP": ("LOOP", "FOR", "WHILE"),
}


class OfficialError(Sqlr1Error):
    """Where the official code raises and a run of it stops; its exception's name is the message."""


def spider_text(sql: str, keep_distinct: bool) -> str:
    """What Spider's evaluator runs for a query: operators repaired, one statement, DISTINCT deleted, the year 2020.

    keep_distinct: neither DISTINCT nor further statements are deleted.

    Raises:
      OfficialError: nothing but white space, unless keep_distinct.
    """
    for spaced in ("> =", "< =", "! ="):
        sql = sql.replace(spaced, spaced.replace(" ", ""))
    if not keep_distinct:
        sql = _first_statement(sql)
    return _YEAR_NOW.sub("2020", sql)


def orders(gold: str) -> bool:
    """Whether Spider's evaluator heeds the order of rows: the letters stand anywhere in the gold's text."""
    return "order by" in gold.lower()


def spider(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """compare.spider behind a check that tells 1 from 1.0 where that moves a cell among its row's sorted texts."""
    if len(gold) != len(rows) or (gold and len(gold[0]) != len(rows[0])):
        return False
    sorted_gold, sorted_rows = map(_sorted_cells, gold), map(_sorted_cells, rows)
    alike = list(sorted_gold) == list(sorted_rows) if ordered else set(sorted_gold) == set(sorted_rows)
    return alike and compare.spider(gold, rows, ordered)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A comparison and what becomes of text that is not UTF-8: its bad bytes are dropped, or the query fails."""

    compare: Callable[[list[Row], list[Row], bool], bool | float]
    drops_bytes: bool


RULES = {
    "official_spider": Rule(spider, drops_bytes=True),
    "official_bird": Rule(compare.bird, drops_bytes=False),
    "official_soft_f1": Rule(compare.soft_f1, drops_bytes=False),
}


def _sorted_cells(row: Row) -> Row:
    return tuple(sorted(row, key=lambda cell: f"{cell}{type(cell)}"))


def _first_statement(sql: str) -> str:
    """The first statement as sqlparse splits a text, without the tokens DISTINCT.

    White space and comments behind its semicolon are left out, which run as nothing.
    """
    if not sql.strip():
        raise OfficialError("IndexError")
    kept, nesting = [], _Nesting()
    for token, kind in _tokens(sql):
        if token.lower() != "distinct":
            kept.append(token)
        if nesting.ends(token, kind):
            break
    return "".join(kept)


def _tokens(sql: str) -> Iterator[tuple[str, str]]:
    """Pieces of the text with their kinds: case, word, mark, name, space or other."""
    place = 0
    while place < len(sql):
        end = sql.find("*/", place + 2) if sql.startswith("/*", place) else -1
        if end >= 0:
            yield sql[place : end + 2], "space"
            place = end + 2
            continue
        match = _TOKEN.match(sql, place)
        assert match is not None
        token = match.group()
        yield token, match.lastgroup or ("space" if token.isspace() or token.startswith(("--", "# ")) else "other")
        place = match.end()


class _Nesting:
    """Decides which semicolon ends a statement, as sqlparse does: a count of levels and a stack of open blocks."""

    def __init__(self) -> None:
        self._level = 0
        self._blocks: list[str] = []
        self._loop = ""  # FOR or WHILE that waits for its DO or LOOP
        self._creates = False
        self._began = False  # the last word was BEGIN

    def ends(self, token: str, kind: str) -> bool:
        """Takes the next token; whether it is the statement's last."""
        word = token.upper()
        if kind == "mark":
            self._mark(token)
        elif kind in ("case", "word"):
            self._level += self._keyword(word)
        if token == ";":
            return self._level <= 0 and "BEGIN" not in self._blocks
        if kind != "space" and not (kind == "word" and word == "BEGIN"):
            self._began = False
        return kind == "word" and token.split()[0] == "GO"

    def _mark(self, token: str) -> None:
        self._level += {"(": 1, ")": -1, ";": 0}[token]
        if token == ";":
            self._loop = ""
            if self._began and self._blocks[-1:] == ["BEGIN"]:
                self._level += self._close()
            self._began = False

    def _keyword(self, word: str) -> int:
        """The change of level that a word makes."""
        if word.split()[0] == "CREATE":
            self._creates = True
            return 0
        if word == "DECLARE" and self._creates and not self._blocks:
            return self._open("DECLARE")
        if word == "BEGIN":
            return self._begin()
        if self._began and word in _TRANSACTIONS:
            self._began = False
            return self._close() if self._blocks[-1:] == ["BEGIN"] else 0
        change = self._nested(word) if "BEGIN" in self._blocks else None
        return self._end(word) if change is None else change

    def _begin(self) -> int:
        self._began = True
        if self._blocks[-1:] == ["DECLARE"]:
            self._blocks[-1] = "BEGIN"
            return 0
        return self._open("BEGIN")

    def _nested(self, word: str) -> int | None:
        if word in ("FOR", "WHILE"):
            self._loop = word
            return 0
        if word in ("LOOP", "DO") and self._loop:
            block, self._loop = self._loop, ""
            return self._open(block)
        return self._open(word) if word in ("LOOP", "IF", "CASE") else None

    def _end(self, word: str) -> int:
        if word == "END":
            return self._close()
        return self._close() if self._blocks and self._blocks[-1] in _CLOSES.get(word, ()) else 0

    def _open(self, block: str) -> int:
        self._blocks.append(block)
        return 1

    def _close(self) -> int:
        if self._blocks:
            self._blocks.pop()
        return -1
