"""The virtual-table modules that are part of SQLite itself: full-text search, R*Trees and geopoly.

A virtual table keeps its data in ordinary tables, its shadow tables, which SQL need not name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlr1_jax.sql.database import read_entries

_FTS3 = ("content", "segments", "segdir", "docsize", "stat")
_RTREE = ("node", "rowid", "parent")
# Each module with the suffixes of its shadow tables. A table of any other module cannot be read in the sandbox: dbstat
# and its like show SQLite's own state, and modules of extensions are not loaded.
SHADOW_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "fts3": _FTS3,
    "fts4": _FTS3,
    "fts4aux": (),
    "fts5": ("data", "idx", "content", "docsize", "config"),
    "fts5vocab": (),
    "rtree": _RTREE,
    "rtree_i32": _RTREE,
    "geopoly": _RTREE,
}
# Functions of these modules that only compute. Not among them: optimize() writes, fts3_tokenizer() takes pointers.
_FUNCTIONS = """
bm25 snippet highlight offsets matchinfo geopoly_area geopoly_bbox geopoly_blob geopoly_ccw geopoly_contains_point
geopoly_group_bbox geopoly_json geopoly_overlap geopoly_regular geopoly_svg geopoly_within geopoly_xform
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
# A table without a root page is virtual.
_VIRTUAL = """SELECT name, CAST(sql AS TEXT) FROM sqlite_master
    WHERE type = 'table' AND rootpage = 0 AND typeof(name) = 'text'"""
_NAME = r"""(?:"(?:[^"]|"")*"|`(?:[^`]|``)*`|'(?:[^']|'')*'|\[[^\]]*\]|\S+)"""
_USING = re.compile(rf"""CREATE\s+VIRTUAL\s+TABLE\s+{_NAME}\s+USING\s+["'`\[]?(\w+)""", re.IGNORECASE)


def virtual_tables(connection: Any) -> dict[str, str]:
    """The module of each virtual table, in lower case; "" if its SQL cannot be read."""
    rows = read_entries(connection, _VIRTUAL)
    matches = {name: _USING.match(sql or "") for name, sql in rows}
    return {name: match.group(1).lower() if match else "" for name, match in matches.items()}


def shadow_tables(modules: Mapping[str, str]) -> frozenset[str]:
    """The names of the shadow tables of these virtual tables, in lower case. modules: as from `virtual_tables`."""
    return frozenset(
        f"{name}_{suffix}".lower() for name, module in modules.items() for suffix in SHADOW_SUFFIXES.get(module, ())
    )
