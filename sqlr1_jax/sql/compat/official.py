"""How the official evaluators rewrite SQL text and compare results, quirks included.

Reproduces the verdicts of taoyds/test-suite-sql-eval (commit e97acc54, with sqlparse 0.6.1) and bird-bench/mini_dev
(commit 4d970a9a), not their code: SQL text is tokenized as sqlparse does, but the matching order of columns is found by
refinement instead of trying all n^n. docs/metrics.md lists the effect of each quirk. Pure functions of text and rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql import compare
from sqlr1_jax.sql.compare import Row

# Alternatives are in sqlparse's order, because the first match wins. Only sqlparse's rules that decide whether
# characters form a keyword, a semicolon or a parenthesis are here.
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
# The blocks that each form of END closes; a bare END closes any block.
_CLOSES = {
    "END IF": ("IF",),
    "END FOR": ("FOR",),
    "END WHILE": ("WHILE",),
    "END CASE": ("CASE",),
    "END LOOP": ("LOOP", "FOR", "WHILE"),
}


class OfficialError(Sqlr1Error):
    """The official code raises an exception here, which ends its run. The message is the exception's name."""


def spider_text(sql: str, keep_distinct: bool) -> str:
    """The SQL that Spider's evaluator runs for a query.

    It joins operators written with a space, keeps the first statement, deletes DISTINCT, and replaces the current year
    by 2020.

    Args:
      sql: the query as written.
      keep_distinct: keep DISTINCT and all statements.

    Raises:
      OfficialError: the text is only white space and keep_distinct is False.
    """
    for spaced in ("> =", "< =", "! ="):
        sql = sql.replace(spaced, spaced.replace(" ", ""))
    if not keep_distinct:
        sql = _first_statement(sql)
    return _YEAR_NOW.sub("2020", sql)


def is_ordered(gold_sql: str) -> bool:
    """Whether Spider's evaluator compares the order of rows: it searches the gold SQL for the letters "order by"."""
    return "order by" in gold_sql.lower()


def spider(gold: list[Row], rows: list[Row], ordered: bool) -> bool:
    """`compare.spider`, after the official quick check on rows with sorted cells.

    The check sorts cells by their text, so 1 and 1.0 differ if that changes the order of a row's cells.
    """
    if len(gold) != len(rows) or (gold and len(gold[0]) != len(rows[0])):
        return False
    sorted_gold, sorted_rows = map(_sort_cells, gold), map(_sort_cells, rows)
    equal = list(sorted_gold) == list(sorted_rows) if ordered else set(sorted_gold) == set(sorted_rows)
    return equal and compare.spider(gold, rows, ordered)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A comparison of gold rows and predicted rows, and the treatment of text that is not UTF-8."""

    compare: Callable[[list[Row], list[Row], bool], bool | float]
    ignores_bad_bytes: bool  # drops bytes that are not UTF-8; otherwise the query fails


RULES = {
    "official_spider": Rule(spider, ignores_bad_bytes=True),
    "official_bird": Rule(compare.bird, ignores_bad_bytes=False),
    "official_soft_f1": Rule(compare.soft_f1, ignores_bad_bytes=False),
}


def _sort_cells(row: Row) -> Row:
    return tuple(sorted(row, key=lambda cell: f"{cell}{type(cell)}"))


def _first_statement(sql: str) -> str:
    """The first statement as sqlparse splits a text, without its DISTINCT tokens.

    sqlparse also keeps white space and comments after the semicolon, which change nothing and are left out here.
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
    """The tokens of a text, each with its kind: case, word, mark, name, space or other."""
    position = 0
    while position < len(sql):
        end = sql.find("*/", position + 2) if sql.startswith("/*", position) else -1
        if end >= 0:
            yield sql[position : end + 2], "space"
            position = end + 2
            continue
        match = _TOKEN.match(sql, position)
        assert match is not None
        token = match.group()
        yield token, match.lastgroup or ("space" if token.isspace() or token.startswith(("--", "# ")) else "other")
        position = match.end()


class _Nesting:
    """Decides which semicolon ends a statement, as sqlparse does: with a nesting level and a stack of open blocks."""

    def __init__(self) -> None:
        self._level = 0
        self._blocks: list[str] = []
        self._loop = ""  # a FOR or WHILE whose DO or LOOP has not come yet
        self._creates = False  # the statement has CREATE
        self._began = False  # the last word was BEGIN

    def ends(self, token: str, kind: str) -> bool:
        """Processes the next token and says whether it ends the statement."""
        word = token.upper()
        if kind == "mark":
            self._level += {"(": 1, ")": -1, ";": 0}[token]
        elif kind in ("case", "word"):
            self._level += self._keyword(word)
        if token == ";":
            if self._began and self._blocks[-1:] == ["BEGIN"]:
                self._level += self._close()
            self._loop, self._began = "", False
            return self._level <= 0 and "BEGIN" not in self._blocks
        if kind != "space" and not (kind == "word" and word == "BEGIN"):
            self._began = False
        return kind == "word" and token.split()[0] == "GO"

    def _keyword(self, word: str) -> int:
        """Processes a keyword and returns the change of the nesting level."""
        if word.split()[0] == "CREATE":
            self._creates = True
            return 0
        if word == "DECLARE" and self._creates and not self._blocks:
            return self._open("DECLARE")
        if word == "BEGIN":
            self._began = True
            if self._blocks[-1:] != ["DECLARE"]:
                return self._open("BEGIN")
            self._blocks[-1] = "BEGIN"
            return 0
        if self._began and word in _TRANSACTIONS:
            self._began = False
            return self._close() if self._blocks[-1:] == ["BEGIN"] else 0
        change = self._nested(word) if "BEGIN" in self._blocks else None
        if change is not None:
            return change
        closes = word == "END" or (self._blocks and self._blocks[-1] in _CLOSES.get(word, ()))
        return self._close() if closes else 0

    def _nested(self, word: str) -> int | None:
        if word in ("FOR", "WHILE"):
            self._loop = word
            return 0
        if word in ("LOOP", "DO") and self._loop:
            block, self._loop = self._loop, ""
            return self._open(block)
        return self._open(word) if word in ("LOOP", "IF", "CASE") else None

    def _open(self, block: str) -> int:
        self._blocks.append(block)
        return 1

    def _close(self) -> int:
        if self._blocks:
            self._blocks.pop()
        return -1
