from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.sql.result import MAX_ENCODED_CHARACTERS, RecentResults, Result, decode, encode


def result(rows: int, kind: OutcomeKind = OutcomeKind.OK) -> Result:
    return Result(kind, [(1,)] * rows, ("a",), 0, 0.0)


def test_a_query_runs_once_even_when_it_fails() -> None:
    calls = []
    recent = RecentResults()

    def run(kind: OutcomeKind) -> Result:
        calls.append(kind)
        return result(2, kind)

    first = recent.get("db", "SELECT 1", lambda: run(OutcomeKind.OK))
    assert recent.get("db", "SELECT 1", lambda: run(OutcomeKind.DENIED)) is first
    assert recent.get("other", "SELECT 1", lambda: run(OutcomeKind.TIMEOUT)).kind == OutcomeKind.TIMEOUT
    assert recent.get("other", "SELECT 1", lambda: run(OutcomeKind.DENIED)).kind == OutcomeKind.TIMEOUT
    assert calls == [OutcomeKind.OK, OutcomeKind.TIMEOUT]


def test_the_least_recently_used_goes_first() -> None:
    recent = RecentResults(max_cells=10)
    for name in ("a", "b", "a", "c"):
        recent.get("db", name, lambda: result(3))  # four cells each: two of them fit
    misses = []
    for name in ("a", "b"):
        recent.get("db", name, lambda name=name: misses.append(name) or result(3))  # type: ignore[misc, func-returns-value]
    assert misses == ["b"]


def test_a_result_larger_than_the_limit_is_not_kept() -> None:
    recent = RecentResults(max_cells=10)
    assert len(recent.get("db", "big", lambda: result(50)).rows) == 50
    assert len(recent.get("db", "big", lambda: result(1)).rows) == 1


undecoded = st.binary().map(lambda data: data.decode(errors="surrogateescape"))  # as the sandbox reads such text
cells = st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | undecoded | st.binary()


@given(st.lists(st.tuples(cells, cells)), st.text())
def test_a_result_is_read_back_exactly(rows: list, message: str) -> None:
    result = Result(OutcomeKind.OK, rows, ("a", "b"), 12_000, 0.1 + 0.2, message)
    text = encode(result)
    assert text is not None
    decoded = decode(text)
    assert decoded == result
    assert [[type(cell) for cell in row] for row in decoded.rows] == [[type(cell) for cell in row] for row in rows]


def test_what_never_ran_or_is_long_is_not_kept() -> None:
    assert encode(result(3)._replace(milliseconds=1.0)) is not None
    assert encode(result(3)) is None
    assert encode(result(3, OutcomeKind.RUNTIME_ERROR)._replace(milliseconds=1.0)) is None
    assert encode(Result(OutcomeKind.OK, [("x" * MAX_ENCODED_CHARACTERS,)], ("a",), 0, 1.0)) is None
