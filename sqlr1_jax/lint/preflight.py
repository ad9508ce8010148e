"""What is wrong with a data set before it is trained on: every gold run, and read by the rules of `data/lint`.

Works database by database: its tables are counted, its golds run, then the queries by which suspicions are decided.
All SQL runs in the sandbox, which may keep results on disk (config.execute.gold_cache_dir), so a second run is quick.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sqlr1_jax import lint
from sqlr1_jax.data import example, schema
from sqlr1_jax.lint.statement import Statement, StatementError
from sqlr1_jax.sql.database import DatabaseError
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from sqlr1_jax.data.example import Example, SetAside
    from sqlr1_jax.data.prompt import PromptRenderer


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a rule finds, and whether its findings are left out of training unless asked otherwise."""

    meaning: str
    left_out: bool


RULES: Mapping[str, Rule] = {
    "missing_database": Rule("no SQLite file for its db_id", True),
    "broken_database": Rule("a database whose tables cannot be read", True),
    "bad_record": Rule("a record without question or SQL, or an id seen before; readers pass over it", False),
    "fails": Rule("the gold does not run, or its result is too large", True),
    "timeout": Rule("the gold runs out of steps", True),
    "empty": Rule("the gold returns no row", True),
    "null_result": Rule("the gold returns NULL alone", True),
    "empty_table": Rule("the gold reads a table without rows", True),
    "over_budget": Rule("the prompt is too long in every schema form", True),
    "clock": Rule("the result depends on the current date or time", True),
    "ties": Rule("LIMIT cuts among rows that tie", True),
    "null_comparison": Rule("a comparison with NULL, never true", True),
    "cross_join": Rule("a join without a condition", True),
    "bare_column": Rule("a column that its group does not determine", True),
    "text_number": Rule("text compared with a number", True),
    "text_order": Rule("numbers ordered as text", True),
    "integer_division": Rule("a quotient whose fraction is dropped", False),
    "fan_out": Rule("an aggregate over rows that a join repeats", False),
    "absent_value": Rule("a filter value that no row has", False),
    "partial_order": Rule("LIMIT without a total order, and no tie on this data", False),
    "unparsed": Rule("sqlglot cannot read the gold, so no rule did", False),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a rule says of one example."""

    id: str
    db_id: str
    rule: str
    reason: str


class Reason(NamedTuple):
    """Why a rule speaks."""

    text: str
    about: str = ""  # a table that the question must name


Reasons = dict[str, list[Reason]]  # by rule

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class Runner:
    """Runs queries on one database, each once."""

    def __init__(self, executor: Executor, database: Path) -> None:
        self._executor = executor
        self._database = database
        self._found: dict[str, Outcome] = {}

    @property
    def asked(self) -> int:
        """Queries so far."""
        return len(self._found)

    def run(self, queries: Iterable[str]) -> dict[str, Outcome]:
        """Each query's outcome."""
        wanted = list(dict.fromkeys(queries))
        pending = {sql: self._executor.run(self._database, sql) for sql in wanted if sql not in self._found}
        self._found |= {sql: future.result() for sql, future in pending.items()}
        return {sql: self._found[sql] for sql in wanted}


class Preflight:
    """Checks examples against one executor."""

    def __init__(self, executor: Executor, prompts: PromptRenderer | None = None) -> None:
        """prompts: None: lengths are not checked."""
        self._executor = executor
        self._prompts = prompts
        self._asked = 0

    @property
    def from_disk(self) -> float:
        """The fraction of queries so far whose outcome was known from disk."""
        return self._executor.from_disk / max(self._asked, 1)

    def findings(self, examples: Sequence[Example]) -> Iterator[tuple[int, list[Finding]]]:
        """Database by database: how many examples were checked, and what was found, at most one finding a rule each."""
        by_database: dict[Path, list[Example]] = {}
        for one in examples:
            by_database.setdefault(one.database, []).append(one)
        for database, its in by_database.items():
            yield len(its), self._findings(database, its)

    def _findings(self, database: Path, examples: Sequence[Example]) -> list[Finding]:
        golds = list(dict.fromkeys(one.sql for one in examples))
        reasons = self._reasons(database, golds)
        long = self._long(examples) if not any("broken_database" in found for found in reasons.values()) else {}
        return [
            Finding(one.id, one.db_id, rule, "; ".join(texts))
            for one in examples
            for rule, given in {**reasons[one.sql], **long.get(one.id, {})}.items()
            if (texts := dict.fromkeys(reason.text for reason in given if _names(one.question, reason.about)))
        ]

    def _long(self, examples: Sequence[Example]) -> dict[str, Reasons]:
        """The examples whose prompts are past the budget, by id."""
        prompts = self._prompts.render_many(examples) if self._prompts else []
        return {p.example_id: {"over_budget": [Reason(f"{len(p.ids)} tokens")]} for p in prompts if p.over_budget}

    def _reasons(self, database: Path, golds: Sequence[str]) -> dict[str, Reasons]:
        """What the rules say of each gold of a database."""
        try:
            tables = schema.read_schema(database, sampled=False)
        except DatabaseError as error:
            return {sql: {"broken_database": [Reason(str(error))]} for sql in golds}
        runner = Runner(self._executor, database)
        reasons = _reasons_of(runner, tables, golds)
        self._asked += runner.asked
        return reasons


def _reasons_of(runner: Runner, tables: schema.Schema, golds: Sequence[str]) -> dict[str, Reasons]:
    empty, broken = _count(runner, tables)
    if broken:
        return {sql: {"broken_database": [Reason(broken)]} for sql in golds}
    outcomes = runner.run(golds)
    reasons = {sql: _judge(outcome) for sql, outcome in outcomes.items()}
    for kind in (OutcomeKind.OK, OutcomeKind.TIMEOUT, OutcomeKind.TOO_LARGE):
        understood = {sql: reasons[sql] for sql in golds if outcomes[sql].kind == kind}
        _read(runner, tables, empty, understood, variants=kind == OutcomeKind.OK)
    return reasons


def _count(runner: Runner, tables: schema.Schema) -> tuple[frozenset[str], str]:
    """The tables without rows, and the first message where one cannot be read to its end."""
    queries = {f"SELECT count(*) FROM {schema.quote(table.name)} NOT INDEXED": table.name for table in tables.tables}
    outcomes = runner.run(queries)
    broken = ""
    empty: set[str] = set()
    for sql, outcome in outcomes.items():
        if outcome.kind == OutcomeKind.RUNTIME_ERROR:
            broken = broken or f"table {queries[sql]}: {outcome.message}"
        elif outcome.kind == OutcomeKind.OK and outcome.rows == ((0,),):
            empty.add(queries[sql])
    return frozenset(empty), broken


def _judge(outcome: Outcome) -> Reasons:
    """What the run alone says."""
    if outcome.kind == OutcomeKind.TIMEOUT:
        return {"timeout": [Reason(outcome.message)]}
    if outcome.kind != OutcomeKind.OK:
        return {"fails": [Reason(f"{outcome.kind}: {outcome.message}")]}
    if not outcome.row_count:
        return {"empty": [Reason("it returns no row")]}
    if outcome.row_count == len(outcome.rows) and all(cell is None for row in outcome.rows for cell in row):
        return {"null_result": [Reason("it returns NULL alone")]}
    return {}


def _read(
    runner: Runner, tables: schema.Schema, empty: frozenset[str], reasons: Mapping[str, Reasons], variants: bool
) -> None:
    """Adds what the rules of `lint` say of golds; `variants` says whether to run the queries that decide."""
    suspicions: list[tuple[str, lint.Suspicion]] = []
    for sql, found in reasons.items():
        try:
            statement = Statement(sql, tables)
        except StatementError as error:
            found["unparsed"] = [Reason(str(error))]
            continue
        bare = [table.name for table in statement.tables() if table.name in empty]
        if bare:
            found["empty_table"] = [Reason(f"no rows in {', '.join(bare)}")]
        suspicions += [(sql, one) for one in lint.suspicions(statement) if variants or not one.queries]
    outcomes = runner.run(query for _, suspicion in suspicions for query in suspicion.queries)
    for sql, suspicion in suspicions:
        verdict = suspicion.verdict([outcomes[query] for query in suspicion.queries])
        if verdict:
            more = verdict if isinstance(verdict, str) else ""
            reasons[sql].setdefault(suspicion.rule, []).append(Reason(suspicion.reason + more, suspicion.about))


def _names(question: str, table: str) -> bool:
    """Whether a question has a word of a table's name, in singular or plural; no table is always named."""
    words = {word.lower().rstrip("s") for word in _WORDS.findall(question)}
    return not table or any(word.lower().rstrip("s") in words for word in _WORDS.findall(table))


def of_records(set_aside: Sequence[SetAside]) -> list[Finding]:
    """Findings for the records that are no examples."""
    rules = {example.NO_DATABASE: "missing_database"}
    return [Finding(one.id, one.db_id, rules.get(one.reason, "bad_record"), one.reason) for one in set_aside]
