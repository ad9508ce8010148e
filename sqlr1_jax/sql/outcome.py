"""The outcome of one prediction, and the kinds of outcome."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Self

MAX_ROWS_SHOWN = 20
MAX_COLUMNS_SHOWN = 50
MAX_CHARACTERS_SHOWN = 200  # of a text or blob


class OutcomeKind(enum.StrEnum):
    """What happened to a prediction. The order is part of the data format: arrays store `code`."""

    MATCH = "match"
    MATCH_EMPTY = "match_empty"  # the results are equal and have no rows
    MISMATCH = "mismatch"
    SYNTAX_ERROR = "syntax_error"  # SQLite cannot compile it: grammar, unknown table or column, no statement at all
    RUNTIME_ERROR = "runtime_error"  # it failed while running, or the database cannot be read
    TIMEOUT = "timeout"  # out of steps, or killed by the wall clock
    TOO_LARGE = "too_large"  # its result exceeds the row or byte limit, which the gold result does not
    DENIED = "denied"  # it does more than read: writes, pragmas, several statements, random()
    GOLD_ERROR = "gold_error"  # the gold query fails; the prediction was not run
    NO_SQL = "no_sql"  # the completion holds no SQL; set by data/answer.py
    BAD_FORMAT = "bad_format"  # the completion does not have the answer form; set by data/answer.py
    OK = "ok"  # the query ran and there was no gold query to compare with

    @property
    def code(self) -> int:
        """The position in the enum; arrays store a kind as this number."""
        return _CODES[self]

    @property
    def complete(self) -> bool:
        """Whether all rows of the result are known."""
        return self in (OutcomeKind.MATCH, OutcomeKind.MATCH_EMPTY, OutcomeKind.MISMATCH, OutcomeKind.OK)

    @property
    def ran(self) -> bool:
        """Whether the query ran without an error, which includes a result that is too large to compare."""
        return self.complete or self == OutcomeKind.TOO_LARGE

    @property
    def correct(self) -> bool:
        """Whether the result equals the gold result, as evaluation counts it: two empty results are equal.

        Training decides about empty results by a setting: see `rl.reward.correct`.
        """
        return self in (OutcomeKind.MATCH, OutcomeKind.MATCH_EMPTY)

    @property
    def well_formed(self) -> bool:
        """Whether SQL was found in the completion; under the strict reading, in the answer form."""
        return self not in (OutcomeKind.NO_SQL, OutcomeKind.BAD_FORMAT)


_CODES = {kind: code for code, kind in enumerate(OutcomeKind)}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of running one prediction and comparing it with the gold result."""

    kind: OutcomeKind
    rows: tuple[
        tuple[Any, ...], ...
    ] = ()  # the first rows and columns, long cells cut, safe for JSON: for display only
    columns: tuple[str, ...] = ()  # the names of all columns
    row_count: int = 0
    steps: int = 0  # SQLite virtual-machine steps, rounded down to 1000
    milliseconds: float = 0.0  # of the prediction alone
    message: str = ""  # from SQLite or the sandbox
    result_hash: str = ""  # equal for results that are equal as multisets of rows; "" if there is no result
    gold_rows: tuple[tuple[Any, ...], ...] = ()  # of the gold result, cut like `rows`
    score: float = 0.0  # 1 for a match, 0 for none; in between for soft_f1
    overlap: float = 0.0  # shared cells of the two results, 0 to 1: compare.cell_overlap
    times: tuple[tuple[float, float], ...] = ()  # milliseconds of gold query and prediction for each timed repeat

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The outcome whose fields a worker sent: kind as text, tuples as lists."""
        tuples = {name: tuple(map(tuple, fields.get(name, ()))) for name in ("rows", "gold_rows", "times")}
        kind, columns = OutcomeKind(fields["kind"]), tuple(fields["columns"])
        return cls(**{**fields, **tuples, "kind": kind, "columns": columns})
