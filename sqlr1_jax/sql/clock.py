"""SQLite's date functions with a fixed current time.

SQLite takes the time from its host, so the result of `age > date('now', '-30 years')` changes from day to day. This
module replaces the date functions of a connection: calls that ask for the current time get a fixed one, and all other
calls are computed by SQLite itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sqlr1_jax.sql import backends

NOW = "2025-01-01 00:00:00"
_FUNCTIONS = "date time datetime julianday unixepoch strftime timediff current_date current_time current_timestamp"
FUNCTIONS = frozenset(_FUNCTIONS.split())
# Positions of the time arguments; functions that are not listed take the time first.
_TIME_ARGUMENTS = {"strftime": (1,), "timediff": (0, 1)}


def stop_clock(connection: Any, backend: str = "sqlite3") -> None:
    """Replaces the date functions of a connection by functions whose current time is NOW."""
    helper = backends.connect(backend, ":memory:")
    known = {name for (name,) in helper.execute("SELECT name FROM pragma_function_list")}
    for name in FUNCTIONS & known:
        connection.create_function(name, -1, _fixed_clock(helper, name), deterministic=True)
    for name in ("date", "time", "datetime"):
        now = helper.execute(f"SELECT {name}(?)", (NOW,)).fetchone()[0]
        constant = "current_timestamp" if name == "datetime" else f"current_{name}"
        connection.create_function(constant, 0, functools.partial(str, now), deterministic=True)


def _fixed_clock(helper: Any, name: str) -> Callable[..., Any]:
    """A date function that computes its value on `helper`, a connection with SQLite's own functions."""
    positions = _TIME_ARGUMENTS.get(name, (0,))

    @functools.lru_cache(maxsize=16_384, typed=True)
    def call(*arguments: Any) -> Any:
        values = list(arguments)
        for position in positions:
            _replace_now(values, position)
        marks = ",".join("?" * len(values))
        return helper.execute(f"SELECT {name}({marks})", values).fetchone()[0]

    return call


def _replace_now(arguments: list[Any], position: int) -> None:
    """Puts NOW in place of 'now' or of an omitted time; for both, SQLite would read the host's clock."""
    if len(arguments) == position:
        arguments.append(NOW)
        return
    if len(arguments) < position:
        return
    time = arguments[position]
    text = time.decode(errors="replace") if isinstance(time, bytes) else str(time)
    if text.lower() == "now":
        arguments[position] = NOW
    elif text.lower() in ("subsec", "subsecond"):
        arguments.insert(position, NOW)
