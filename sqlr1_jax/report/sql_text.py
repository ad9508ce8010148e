"""SQL as HTML: keywords, strings and numbers told apart, and a prediction's difference from gold marked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from markupsafe import Markup, escape

_TOKEN = re.compile(r"\s+|'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|\d+(?:\.\d+)?|\w+|<=|>=|<>|!=|\|\||.", re.DOTALL)
_WORDS = """all and as asc avg between by case cast count cross desc distinct else end except exists from group having
    in inner intersect is join left like limit max min not null on or order outer over partition rank row_number select
    sum then union using when where with"""
_KEYWORDS = frozenset(_WORDS.split())


def tokens(sql: str) -> list[str]:
    """The text cut into tokens, white space among them; joined they are the text."""
    return _TOKEN.findall(sql)


def highlight(sql: str) -> Markup:
    """The SQL with its kinds of tokens in spans."""
    return Markup("").join(_span(token) for token in tokens(sql))


def compared(sql: str, gold: str) -> Markup:
    """The SQL highlighted; what gold has not is marked, and what gold has beyond it shown struck out."""
    ours, theirs = tokens(sql), tokens(gold)
    return Markup("").join(_parts(ours, theirs))


def extra_columns(sql: str, gold: str) -> bool:
    """Whether the first SELECT lists more than gold's does."""
    return _selected(sql) > _selected(gold)


def lacks_distinct(sql: str, gold: str) -> bool:
    """Whether gold says DISTINCT and this does not."""
    return bool(re.search(r"\bdistinct\b", gold, re.I)) and not re.search(r"\bdistinct\b", sql, re.I)


def _parts(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[Markup]:
    matcher = difflib.SequenceMatcher(None, [_key(t) for t in ours], [_key(t) for t in theirs], autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            yield highlight("".join(ours[a:b]))
            continue
        extra, missing = "".join(ours[a:b]), "".join(theirs[c:d])
        yield _marked("ins", extra) + _marked("del", missing)


def _marked(tag: str, text: str) -> Markup:
    """The text in a tag, its outer white space outside of it."""
    inner = text.strip()
    if not inner:
        return escape(text)
    before, after = text[: text.index(inner)], text[text.index(inner) + len(inner) :]
    return Markup("{}<{}>{}</{}>{}").format(before, Markup(tag), inner, Markup(tag), after)


def _key(token: str) -> str:
    return " " if token.isspace() else token.lower() if token.lower() in _KEYWORDS else token


def _span(token: str) -> Markup:
    if token.lower() in _KEYWORDS:
        return Markup("<b>{}</b>").format(token)
    if token[0] in "'\"" or token[0].isdigit():
        return Markup("<i>{}</i>").format(token)
    return escape(token)


def _selected(sql: str) -> int:
    """How many things the first SELECT lists."""
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
