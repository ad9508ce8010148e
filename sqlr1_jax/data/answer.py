"""Writes and reads the answers of a model (docs/method.md, section 3).

There are two readings:

- `read` is strict: the reward uses it, and it is exact for what `write` wrote. A reasoning answer is `<think>`, the
  reasoning, `</think>`, `<answer>`, a fenced `sql` block, `</answer>`. A direct answer is one fenced `sql` block.
- `read_lenient` takes the SQL that an answer holds, whatever its form: accuracy and `ask` use it. `well_formed` says
  whether the strict reading succeeds too.

Neither changes the SQL: it is not joined to one line (a `--` comment ends with its line) and not cut at a semicolon.
"""

from __future__ import annotations

import dataclasses
import re

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql.compare import OPAQUE
from sqlr1_jax.sql.outcome import OutcomeKind

FORMATS = ("reasoning", "direct")  # values of the setting data.form

_THINK = ("<think>", "</think>")
_ANSWER = ("<answer>", "</answer>")
# A block ends at a fence at the start of a line, or at a fence that ends the answer.
_SQL_BLOCK = re.compile(r"```sql(?=\s)(.*?)(?:\n[ \t]*```|```\s*\Z)", re.DOTALL)

_FENCE_LINE = re.compile(r"^[ \t]*```", re.MULTILINE)

# The lenient reading. A possessive quantifier keeps a text of many comments from taking exponential time.
_OPENING_FENCE = re.compile(r"```[ \t]*(\w*)")
_ONE_LINE_BLOCK = re.compile(r"[ \t]*([^\s`][^\n]*?)```")
# Ends a block: a fence at the start or end of a line or before a tag, or a tag. A fence with a language is not this
# block's own: it opens the next one.
_BLOCK_END = re.compile(r"\n[ \t]*```(?!\w|[ \t]*sql)|\n(?=[ \t]*```)|```(?=\s|<|\Z)|(?=</?answer>|</think>)|\Z")
_NAME = r"(?:\"[^\"\n]*\"|`[^`\n]*`|\S{1,100}?)"
_STATEMENT = rf"(?:SELECT\b|WITH\s+(?:RECURSIVE\s+)?{_NAME}\s*(?:\([^()]*\)\s*)?AS\b)"
_STARTS_LIKE_SQL = re.compile(rf"(?>\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*+[\s(]*{_STATEMENT}", re.DOTALL | re.IGNORECASE)
_BARE_STATEMENT = re.compile(
    rf"(?:^|(?<=<answer>))[ \t]*({_STATEMENT}.*?(?:;(?=[ \t]*(?:\n|\Z))|(?=\n\s*\n|</?(?:answer|think)>|```|\Z)))",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)

_BLANKS = re.compile(rf"{OPAQUE}|(?P<blanks>(?<=\S)[ \t]+(?P<comma>,)?)", re.DOTALL)

# A line of prose such as "Select the right table first."
_SENTENCE = re.compile(r"^[ \t]*(?:Select|With)\b[^\n]*[.:][ \t]*$", re.MULTILINE)
# Within a line, after a colon or a backtick: "The query is: SELECT a FROM b".
_INLINE_STATEMENT = re.compile(r"[:`*][ \t*]*(SELECT\b[^\n;`]*?\bFROM\b[^\n;`]*)", re.IGNORECASE)


class AnswerError(Sqlr1Error):
    """Reasoning or SQL that the format cannot hold, such as SQL with `</answer>` in it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A parsed completion. `sql` is None if and only if `problem` is set."""

    think: str  # the text between the think tags; "" in the strict reading of the direct format
    answer: str  # the text that holds the SQL: between the answer tags, or after the thinking
    sql: str | None
    # BAD_FORMAT: a tag is missing, repeated or out of order. NO_SQL: there is no SQL block, or it is empty.
    problem: OutcomeKind | None = None
    well_formed: bool = True  # whether the strict reading has no problem


def write(reasoning: str, sql: str, answer_format: str) -> str:
    """The completion with this reasoning and SQL.

    Raises:
      AnswerError: `read` would not return the same reasoning and SQL.
      ValueError: there is no such format.
    """
    block = f"```sql\n{sql}\n```"
    reasoned = f"<think>\n{reasoning}\n</think>\n<answer>\n{block}\n</answer>"
    text = reasoned if answer_format == "reasoning" else block
    parsed = read(text, answer_format)
    if parsed.sql != sql or (answer_format == "reasoning" and parsed.think != reasoning):
        reason = parsed.problem or "it contains a tag or fence of the format"
        raise AnswerError(f"cannot be written as an answer ({reason}): {sql[:80]!r}")
    return text


def without_padding(sql: str) -> str:
    """The query with single blanks between its tokens and none before commas, for a model to learn.

    Spider's queries were joined from tokens, as in `SELECT name ,  count(*) FROM pets WHERE age  >  3`, which no model
    writes by itself. Indentation, line breaks, comments and quoted text stay.
    """
    return _BLANKS.sub(lambda m: m[0] if m["blanks"] is None else m["comma"] or " ", sql)


def block_is_closed(text: str) -> bool:
    """Whether the text has a fenced block and its closing fence: small models often go on to explain their SQL."""
    return len(_FENCE_LINE.findall(text)) > 1


def after_opening(text: str, opening: str) -> str:
    """What a model continues with to give the answer `text`, if the prompt ends with `opening` (`Prompt.opening`)."""
    tag = opening.rfind(_THINK[0])
    return text if tag < 0 else text.removeprefix(opening[tag:])


def read(text: str, answer_format: str, open_answer: bool = False) -> Answer:
    """Reads an answer strictly.

    A reasoning answer has each tag once, in order, and an SQL block between the answer tags. Text outside the tags is
    allowed; if there are several SQL blocks, the first one counts. A direct answer is one SQL block, without tags and
    without any text around it but white space.

    Args:
      text: the completion, after `Prompt.opening`.
      answer_format: a name in FORMATS.
      open_answer: accepts a reasoning answer without `</answer>`: it ends with the text.

    Raises:
      ValueError: there is no such format.
    """
    if answer_format not in FORMATS:
        raise ValueError(f"an answer's format is {' or '.join(FORMATS)}, not {answer_format!r}")
    if answer_format == "direct":
        return _read_direct(text)
    if open_answer and _ANSWER[1] not in text:
        text += _ANSWER[1]
    tags = _THINK + _ANSWER
    positions = [text.find(tag) for tag in tags]
    if any(text.count(tag) != 1 for tag in tags) or positions != sorted(positions):
        return Answer("", "", None, OutcomeKind.BAD_FORMAT, well_formed=False)
    think, answer = _between(text, *_THINK), _between(text, *_ANSWER)
    return _with_sql(think, answer, _SQL_BLOCK.search(answer))


def read_lenient(text: str, answer_format: str) -> Answer:
    """Reads whatever SQL an answer holds; arguments and errors as in `read`.

    `think` is the text before the last `</think>`, `answer` the text after it, `sql` that of `find_sql`. `problem` is
    NO_SQL or None.
    """
    well_formed = read(text, answer_format).well_formed
    think, answer = _split_thinking(text)
    sql = find_sql(text)
    return Answer(think, answer, sql, None if sql else OutcomeKind.NO_SQL, well_formed)


def find_sql(text: str) -> str | None:
    """The SQL that an answer holds, without white space around it; None if there is none.

    It is the last fenced block of SQL after the thinking, else the last bare SELECT or WITH statement there, at the
    start of a line or else within one, else the last fenced block of SQL in the thinking. A block is SQL if its
    language is a kind of SQL, or if it has no language and starts like a query. A block may lack its closing fence.
    """
    answer = _split_thinking(text)[1]
    blocks, rest = _sql_blocks(answer)
    rest = _SENTENCE.sub("", rest)
    statements = [found[1].strip() for found in _BARE_STATEMENT.finditer(rest)]
    inline = [found[1].strip() for found in _INLINE_STATEMENT.finditer(rest)]
    candidates = blocks or statements or inline or _sql_blocks(text)[0]
    return candidates[-1] if candidates else None


def _read_direct(text: str) -> Answer:
    """The strict reading of a direct answer: exactly one block, so exactly two fences."""
    answer = text.strip()
    block = _SQL_BLOCK.fullmatch(answer)
    if not block or answer.count("```") != 2 or any(tag in answer for tag in _THINK + _ANSWER):
        return Answer("", "", None, OutcomeKind.BAD_FORMAT, well_formed=False)
    return _with_sql("", answer, block)


def _with_sql(think: str, answer: str, block: re.Match[str] | None) -> Answer:
    if block is None or not block[1].strip():
        return Answer(think, answer, None, OutcomeKind.NO_SQL, well_formed=False)
    return Answer(think, answer, block[1].removeprefix("\n"))


def _split_thinking(text: str) -> tuple[str, str]:
    """The thinking, and the text after it; an unclosed `<think>` reaches to the end of the text."""
    think, _, answer = text.rpartition(_THINK[1])
    answer, opened, unclosed = answer.partition(_THINK[0])
    think = f"{think}\n{unclosed}" if opened else think
    return think.partition(_THINK[0])[2].strip("\n") if _THINK[0] in think else think.strip("\n"), answer


def _sql_blocks(text: str) -> tuple[list[str], str]:
    """The contents of the fenced blocks that are SQL, and the text without fenced blocks of other languages."""
    blocks, rest, position = [], "", 0
    while fence := _OPENING_FENCE.search(text, position):
        language, begin = fence[1].lower(), fence.end()
        if language in ("select", "with"):  # a block without language whose query stands behind the fence
            language, begin = "", fence.start(1)
        one_line, end = _ONE_LINE_BLOCK.match(text, begin), _BLOCK_END.search(text, begin)
        assert end is not None, "the pattern also matches the end of the text"
        content = (one_line[1] if one_line else text[begin : end.start()]).strip()
        title, newline, below = content.partition("\n")
        if newline and "sql" in language and text[begin] != "\n" and not _STARTS_LIKE_SQL.match(title):
            content = below.strip()  # the rest of a line such as "```sql query"
        if content and ("sql" in language or (not language and _STARTS_LIKE_SQL.match(content))):
            blocks.append(content)
        rest += text[position : fence.start()] + ("" if language else f"\n{content}\n")
        position = one_line.end() if one_line else end.end()
    return blocks, rest + text[position:]


def _between(text: str, opening: str, closing: str) -> str:
    """The text between two tags, without the one newline that `write` puts at each end."""
    inner = text[text.index(opening) + len(opening) : text.index(closing)]
    return inner.removeprefix("\n").removesuffix("\n")
