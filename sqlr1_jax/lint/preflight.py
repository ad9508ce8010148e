"""Checks a data set before training: runs every gold query and applies the rules of `lint` to it.

For each database it counts the rows of the tables, runs the gold queries, then the queries that decide suspicions. All
SQL runs in the sandbox, which may keep results on disk (config.execute.gold_cache_dir), so a second check is fast.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sqlr1_jax import lint
from sqlr1_jax.data import schema
from sqlr1_jax.data.example import NO_DATABASE, UNREADABLE_DATABASE
from sqlr1_jax.lint.statement import Statement, StatementError
from sqlr1_jax.sql.database import DatabaseError
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from sqlr1_jax.data.example import Example, SetAside
    from sqlr1_jax.data.prompt import PromptRenderer


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule as users see it."""

    meaning: str  # what it finds
    left_out: bool  # whether training leaves its findings out by default


RULES: Mapping[str, Rule] = {
    "missing_database": Rule("no SQLite file for its db_id", True),
    "broken_database": Rule("a database whose tables cannot be read", True),
    "bad_record": Rule("a record without question or SQL, or with an id seen before; readers skip it", False),
    "fails": Rule("the gold query does not run, or its result is too large", True),
    "timeout": Rule("the gold query exceeds its step limit", True),
    "empty": Rule("the gold query returns no rows", True),
    "null_result": Rule("the gold query returns only NULL", True),
    "empty_table": Rule("the gold query reads a table without rows", True),
    "over_budget": Rule("the prompt is too long in every schema format", True),
    "clock": Rule("the result depends on the current date or time", True),
    "ties": Rule("LIMIT keeps some of several rows that tie", True),
    "null_comparison": Rule("a comparison with NULL, which is never true", True),
    "cross_join": Rule("a join without a condition", True),
    "bare_column": Rule("a column that its group does not determine", True),
    "text_number": Rule("text compared with a number", True),
    "text_order": Rule("numbers ordered as text", True),
    "integer_division": Rule("a quotient whose fraction is dropped", False),
    "fan_out": Rule("an aggregate over rows that a join repeats", False),
    "absent_value": Rule("a filter value that no row has", False),
    "partial_order": Rule("LIMIT without a total order, but no ties on this data", False),
    "unparsed": Rule("sqlglot cannot parse the gold query, so no other rule applies", False),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a rule found in one example."""

    id: str
    db_id: str
    rule: str
    reason: str


class Reason(NamedTuple):
    """Why a rule applies."""

    text: str
    table: str = ""  # if set, the reason counts only for questions that name this table


Reasons = dict[str, list[Reason]]  # of one gold query, by rule

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class QueryRunner:
    """Runs queries on one database, each once."""

    def __init__(self, executor: Executor, database: Path) -> None:
        self._executor = executor
        self._database = database
        self._outcomes: dict[str, Outcome] = {}

    @property
    def num_queries(self) -> int:
        """How many different queries it has run."""
        return len(self._outcomes)

    def run(self, queries: Iterable[str]) -> dict[str, Outcome]:
        """The outcome of each query."""
        distinct = list(dict.fromkeys(queries))
        pending = {sql: self._executor.run(self._database, sql) for sql in distinct if sql not in self._outcomes}
        self._outcomes |= {sql: future.result() for sql, future in pending.items()}
        return {sql: self._outcomes[sql] for sql in distinct}


class Preflight:
    """Checks examples with one executor."""

    def __init__(self, executor: Executor, prompts: PromptRenderer | None = None) -> None:
        """prompts: renders prompts to check their lengths; None: lengths are not checked."""
        self._executor = executor
        self._prompts = prompts
        self._num_queries = 0

    @property
    def from_disk(self) -> float:
        """The fraction of all queries whose outcome was known from disk."""
        return self._executor.from_disk / max(self._num_queries, 1)

    def findings(self, examples: Sequence[Example]) -> Iterator[tuple[int, list[Finding]]]:
        """Yields the number of examples and the findings of each database: at most one for each example and rule."""
        by_database: dict[Path, list[Example]] = {}
        for example in examples:
            by_database.setdefault(example.database, []).append(example)
        for database, of_database in by_database.items():
            yield len(of_database), self._check_database(database, of_database)

    def _check_database(self, database: Path, examples: Sequence[Example]) -> list[Finding]:
        queries = list(dict.fromkeys(example.sql for example in examples))
        reasons = self._query_reasons(database, queries)
        readable = [example for example in examples if "broken_database" not in reasons[example.sql]]
        prompts = self._prompts.render_many(readable) if self._prompts and readable else []
        too_long = {p.example_id: {"over_budget": [Reason(f"{len(p.ids)} tokens")]} for p in prompts if p.over_budget}
        return [
            Finding(example.id, example.db_id, rule, "; ".join(texts))
            for example in examples
            for rule, found in {**reasons[example.sql], **too_long.get(example.id, {})}.items()
            if (texts := dict.fromkeys(r.text for r in found if _names_table(example.question, r.table)))
        ]

    def _query_reasons(self, database: Path, queries: Sequence[str]) -> dict[str, Reasons]:
        """Reasons by gold query of a database."""
        try:
            tables = schema.read_schema(database, sampled=False)
        except DatabaseError as error:
            return {sql: {"broken_database": [Reason(str(error))]} for sql in queries}
        runner = QueryRunner(self._executor, database)
        reasons = _run_and_apply_rules(runner, tables, queries)
        self._num_queries += runner.num_queries
        return reasons


def record_findings(set_aside: Sequence[SetAside]) -> list[Finding]:
    """Findings for the records that could not become examples."""
    rules = {NO_DATABASE: "missing_database", UNREADABLE_DATABASE: "broken_database"}
    return [Finding(r.id, r.db_id, rules.get(r.reason.partition(":")[0], "bad_record"), r.reason) for r in set_aside]


def _run_and_apply_rules(runner: QueryRunner, tables: schema.Schema, queries: Sequence[str]) -> dict[str, Reasons]:
    empty_tables, errors = _count_rows(runner, tables)
    broken = {sql: reason for sql in queries if (reason := _broken_table(sql, tables, errors))}
    queries = [sql for sql in queries if sql not in broken]
    outcomes = runner.run(queries)
    reasons = {sql: _outcome_reasons(outcome) for sql, outcome in outcomes.items()}
    left_out = {name: f"{name}: {why}" for name, why in tables.left_out.items()}
    broken |= {sql: text for sql in queries if "fails" in reasons[sql] and (text := _named_in(sql, left_out))}
    for kind in (OutcomeKind.OK, OutcomeKind.TIMEOUT, OutcomeKind.TOO_LARGE):
        of_kind = {sql: reasons[sql] for sql in queries if outcomes[sql].kind == kind}
        # Variants of a query that takes too long would take as long.
        _apply_rules(runner, tables, empty_tables, of_kind, run_queries=kind == OutcomeKind.OK)
    return reasons | {sql: {"broken_database": [Reason(text)]} for sql, text in broken.items()}


def _broken_table(sql: str, tables: schema.Schema, errors: Mapping[str, str]) -> str:
    """The error of the first unreadable table that a query names, or of the first one if none can be read; else ""."""
    if errors and len(errors) == len(tables.tables):
        return next(iter(errors.values()))
    return _named_in(sql, errors)


def _named_in(sql: str, texts: Mapping[str, str]) -> str:
    """The text of the first name that occurs in a query, else ""."""
    named = (text for name, text in texts.items() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE))
    return next(named, "")


def _count_rows(runner: QueryRunner, tables: schema.Schema) -> tuple[frozenset[str], dict[str, str]]:
    """The tables without rows, and the error of each table that cannot be read to its end."""
    queries = {f"SELECT count(*) FROM {schema.quote(table.name)} NOT INDEXED": table.name for table in tables.tables}
    errors: dict[str, str] = {}
    empty: set[str] = set()
    for sql, outcome in runner.run(queries).items():
        if outcome.kind == OutcomeKind.RUNTIME_ERROR:
            errors[queries[sql]] = f"table {queries[sql]}: {outcome.message}"
        elif outcome.kind == OutcomeKind.OK and outcome.rows == ((0,),):
            empty.add(queries[sql])
    return frozenset(empty), errors


def _outcome_reasons(outcome: Outcome) -> Reasons:
    """Reasons that follow from the outcome of the gold query."""
    if outcome.kind == OutcomeKind.TIMEOUT:
        return {"timeout": [Reason(outcome.message)]}
    if outcome.kind != OutcomeKind.OK:
        return {"fails": [Reason(f"{outcome.kind}: {outcome.message}")]}
    if not outcome.row_count:
        return {"empty": [Reason("it returns no rows")]}
    if outcome.row_count == len(outcome.rows) and all(cell is None for row in outcome.rows for cell in row):
        return {"null_result": [Reason("it returns only NULL")]}
    return {}


def _apply_rules(
    runner: QueryRunner,
    tables: schema.Schema,
    empty_tables: frozenset[str],
    reasons: Mapping[str, Reasons],
    run_queries: bool,
) -> None:
    """Adds what the rules of `lint` find in gold queries; if not `run_queries`, only what is certain without them."""
    suspicions: list[tuple[str, lint.Suspicion]] = []
    for sql, of_query in reasons.items():
        try:
            statement = Statement(sql, tables)
        except StatementError as error:
            of_query["unparsed"] = [Reason(str(error))]
            continue
        empty = [table.name for table in statement.tables() if table.name in empty_tables]
        if empty:
            of_query["empty_table"] = [Reason(f"no rows in {', '.join(empty)}")]
        suspicions += [(sql, s) for s in lint.suspicions(statement) if run_queries or not s.queries]
    outcomes = runner.run(query for _, suspicion in suspicions for query in suspicion.queries)
    for sql, suspicion in suspicions:
        verdict = suspicion.verdict([outcomes[query] for query in suspicion.queries])
        if verdict:
            more = verdict if isinstance(verdict, str) else ""
            reason = Reason(suspicion.reason + more, suspicion.table)
            reasons[sql].setdefault(suspicion.rule, []).append(reason)


def _names_table(question: str, table: str) -> bool:
    """Whether a question has a word of a table's name, in singular or plural; True if there is no table."""
    words = {word.lower().rstrip("s") for word in _WORDS.findall(question)}
    return not table or any(word.lower().rstrip("s") in words for word in _WORDS.findall(table))
