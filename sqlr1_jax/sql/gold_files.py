"""Outcomes of golds on disk, so that no query runs twice on the same data: a file a database.

An outcome is a function of the database's bytes, the SQL, SQLite's version and the limits under which it ran
(sql/sandbox.py), and these are the key: the first, third and fourth name the file, the SQL stands in its lines.
Paths are no part of it, so copies and renamed folders share their files. What the worker process did not
survive is not kept, since the wall clock decided it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlr1_jax.files import write_whole
from sqlr1_jax.sql import backends
from sqlr1_jax.sql.clock import NOW
from sqlr1_jax.sql.database import content_hash
from sqlr1_jax.sql.executor import Outcome, outcome_from
from sqlr1_jax.sql.sandbox import Limits

if TYPE_CHECKING:
    from sqlr1_jax.config import Execute

FORM = 1  # of the lines; a change makes other files


class GoldFile:
    """The outcomes of one database. Damaged lines count as absent: what they said is run again."""

    def __init__(self, folder: Path, database: Path, cfg: Execute) -> None:
        """Reads what `folder` knows of a database's content. Raises DatabaseError when it has no such file."""
        limits = [getattr(cfg, name) for name in Limits._fields]
        key = json.dumps([FORM, backends.version(cfg.backend), NOW, limits])
        rest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
        self.path = folder / f"{content_hash(database)}-{rest}.jsonl"
        self._outcomes = _read(self.path)
        self._new: dict[str, Outcome] = {}

    def get(self, sql: str) -> Outcome | None:
        """What became of a query, None where it is not known."""
        return self._outcomes.get(sql)

    def put(self, sql: str, outcome: Outcome) -> None:
        """Remembers an outcome; `save` writes it."""
        if outcome.milliseconds:  # 0: it never ran, or its worker was killed
            self._outcomes[sql] = self._new[sql] = outcome

    def save(self) -> None:
        """Writes what is new, with what others wrote meanwhile. Of two that save at once, one's news is lost."""
        if not self._new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        outcomes = _read(self.path) | self._new
        lines = (json.dumps({"sql": sql, **dataclasses.asdict(one)}) for sql, one in outcomes.items())
        write_whole(self.path, "\n".join(lines) + "\n")
        self._new = {}


def _read(path: Path) -> dict[str, Outcome]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return dict(pair for pair in map(_parsed, lines) if pair)


def _parsed(line: str) -> tuple[str, Outcome] | None:
    try:
        record: dict[str, Any] = json.loads(line)
        return record.pop("sql"), outcome_from(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
