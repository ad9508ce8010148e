"""SQL as HTML with syntax highlighting, and with a prediction's difference from the gold query marked."""

from __future__ import annotations

import difflib
import re

from markupsafe import Markup, escape

_TOKEN = re.compile(r"\s+|'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|\d+(?:\.\d+)?|\w+|<=|>=|<>|!=|\|\||.", re.DOTALL)
_WORDS = """all and as asc avg between by case cast count cross desc distinct else end except exists from group having
    in inner intersect is join left like limit max min not null on or order outer over partition rank row_number select
    sum then union using when where with"""
_KEYWORDS = frozenset(_WORDS.split())


def tokens(sql: str) -> list[str]:
    """The tokens of a text, white space included; joined they give the text again."""
    return _TOKEN.findall(sql)


def highlight(sql: str) -> Markup:
    """The SQL with keywords in <b>, and strings and numbers in <i>."""
    parts = []
    for token in tokens(sql):
        is_literal = token[0] in "'\"" or token[0].isdigit()
        tag = "b" if token.lower() in _KEYWORDS else "i" if is_literal else ""
        parts.append(Markup("<{0}>{1}</{0}>").format(tag, token) if tag else escape(token))
    return Markup("").join(parts)


def highlight_difference(sql: str, gold: str) -> Markup:
    """The SQL highlighted, with <ins> around what is not in the gold query and <del> around what is missing from it."""
    sql_tokens, gold_tokens = tokens(sql), tokens(gold)
    matcher = difflib.SequenceMatcher(None, [*map(_key, sql_tokens)], [*map(_key, gold_tokens)], autojunk=False)
    marked = Markup("")
    for kind, start, end, gold_start, gold_end in matcher.get_opcodes():
        extra, missing = "".join(sql_tokens[start:end]), "".join(gold_tokens[gold_start:gold_end])
        marked += highlight(extra) if kind == "equal" else _in_tag("ins", extra) + _in_tag("del", missing)
    return marked


def has_extra_columns(sql: str, gold: str) -> bool:
    """Whether the first SELECT lists more expressions than that of the gold query."""
    return _count_selected(sql) > _count_selected(gold)


def lacks_distinct(sql: str, gold: str) -> bool:
    """Whether the gold query has DISTINCT and this one does not."""
    return bool(re.search(r"\bdistinct\b", gold, re.I)) and not re.search(r"\bdistinct\b", sql, re.I)


def _in_tag(tag: str, text: str) -> Markup:
    """The text in a tag; white space at its ends stays outside."""
    inner = text.strip()
    if not inner:
        return escape(text)
    before, after = text[: text.index(inner)], text[text.index(inner) + len(inner) :]
    return Markup("{}<{}>{}</{}>{}").format(before, Markup(tag), inner, Markup(tag), after)


def _key(token: str) -> str:
    """What is compared: white space is all alike, and so is the case of keywords."""
    return " " if token.isspace() else token.lower() if token.lower() in _KEYWORDS else token


def _count_selected(sql: str) -> int:
    """The number of expressions in the list of the first SELECT; 0 without a SELECT."""
    count, depth, inside = 0, 0, False
    for token in (t.lower() for t in tokens(sql) if not t.isspace()):
        if not inside:
            inside, count = token == "select", int(token == "select")
            continue
        depth += (token == "(") - (token == ")")
        if depth == 0 and token == ",":
            count += 1
        if depth < 0 or (depth == 0 and token == "from"):
            break
    return count
