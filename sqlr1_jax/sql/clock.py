"""A clock that stands still: SQLite's date functions, but now is always the same moment.

SQLite takes the time from its host, which makes `age > date('now', '-30 years')` mean another thing each
day. Here the date functions of a connection are replaced: the ones that ask for the time get a fixed one,
all others are SQLite's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sqlr1_jax.sql import backends

NOW = "2025-01-01 00:00:00"
_FUNCTIONS = "date time datetime julianday unixepoch strftime timediff current_date current_time current_timestamp"
FUNCTIONS = frozenset(_FUNCTIONS.split())
_TIME_ARGUMENTS = {
    "strftime": (1,),
    "timediff": (0, 1),
}  # where a moment stands; elsewhere it is the first argument


def stop_clock(connection: Any, backend: str = "sqlite3") -> None:
    """Replaces the date functions of a connection by ones whose now is NOW."""
    helper = backends.connect(backend, ":memory:")
    known = {name for (name,) in helper.execute("SELECT name FROM pragma_function_list")}
    for name in FUNCTIONS & known:
        connection.create_function(name, -1, _fixed(helper, name), deterministic=True)
    for name in ("date", "time", "datetime"):
        moment = helper.execute(f"SELECT {name}(?)", (NOW,)).fetchone()[0]
        constant = "current_timestamp" if name == "datetime" else f"current_{name}"
        connection.create_function(constant, 0, functools.partial(str, moment), deterministic=True)


def _fixed(helper: Any, name: str) -> Callable[..., Any]:
    places = _TIME_ARGUMENTS.get(name, (0,))

    @functools.lru_cache(maxsize=16_384, typed=True)
    def call(*arguments: Any) -> Any:
        given = list(arguments)
        for place in places:
            _fix(given, place)
        marks = ",".join("?" * len(given))
        return helper.execute(f"SELECT {name}({marks})", given).fetchone()[0]

    return call


def _fix(arguments: list[Any], place: int) -> None:
    """Says NOW where SQLite would ask its host: for 'now', and where the moment is left out."""
    if len(arguments) == place:
        arguments.append(NOW)
        return
    if len(arguments) < place:
        return
    moment = arguments[place]
    text = moment.decode(errors="replace") if isinstance(moment, bytes) else str(moment)
    if text.lower() == "now":
        arguments[place] = NOW
    elif text.lower() in ("subsec", "subsecond"):
        arguments.insert(place, NOW)
