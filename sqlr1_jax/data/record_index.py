"""An index of a large data file: where in the file each usable record is, made once and kept.

With it a run of SynSQL-2.5M starts without reading the file's nine gigabytes, and reads the records that it needs. Rows
of the index are in the order of the examples, so that a selection is kept the same way.

    <user's cache>/sqlr1_jax/indices/<key>/
        rows.npy        for each example, where its record is and which database it is on; mapped into memory
        index.json      the databases, and the warnings of reading the file, which every run repeats
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from sqlr1_jax import io

if TYPE_CHECKING:
    from sqlr1_jax.data.example import Example

log = logging.getLogger(__name__)

_VERSION = 1  # of the files; others are made again


class Row(NamedTuple):
    """A row of the index."""

    start: int  # of the record in the file, in bytes
    length: int  # of the record in bytes
    position: int  # among the file's records, from 0
    database: int  # in Index.databases


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the examples of a source are."""

    rows_NR: npt.NDArray[np.int64]  # N rows, each with the fields of `Row`
    databases: Sequence[tuple[str, str]]  # (db_id, path of the SQLite file)
    messages: Sequence[tuple[int, str]]  # (level, text) of what reading the file had to say


class IndexedExamples(Sequence["Example"]):
    """The examples of an index; each is read from the file when it is asked for."""

    def __init__(self, index: Index, make: Callable[[Row, str, str], Example]) -> None:
        """make: gives the example of a row of the index, a db_id and the path of its database."""
        self._index, self._make = index, make

    def __len__(self) -> int:
        return len(self._index.rows_NR)

    @overload
    def __getitem__(self, key: int) -> Example: ...
    @overload
    def __getitem__(self, key: slice) -> IndexedExamples: ...
    def __getitem__(self, key: int | slice) -> Example | IndexedExamples:
        if isinstance(key, slice):
            return IndexedExamples(dataclasses.replace(self._index, rows_NR=self._index.rows_NR[key]), self._make)
        row = Row(*self._index.rows_NR[key].tolist())
        return self._make(row, *self._index.databases[row.database])

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def digest(self) -> str:
        """A digest of the places of the records in the file, and of their db_ids."""
        db_ids = json.dumps([db_id for db_id, _ in self._index.databases])
        return hashlib.blake2b(self._index.rows_NR.tobytes() + db_ids.encode(), digest_size=16).hexdigest()

    def positions_by_database(self) -> list[npt.NDArray[np.int64]]:
        """The positions of the examples on each database, ascending; databases in the order of their first example."""
        database_N = self._index.rows_NR[:, Row._fields.index("database")]
        by_database = np.argsort(database_N, kind="stable")
        starts = np.flatnonzero(np.diff(database_N[by_database])) + 1
        return sorted(np.split(by_database, starts), key=lambda positions: int(positions[0]))


def open_or_make(folder: Path, key: Any, make: Callable[[], Index]) -> Index:
    """The index that `folder` keeps under a key, or a new one, which is then kept there.

    Args:
      folder: of all indices.
      key: what decides the index, as JSON.
      make: makes the index.
    """
    text = json.dumps([_VERSION, key])
    kept = folder / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    index = _read(kept)
    if index is None:
        index = make()
        _keep(kept, index)
    for level, message in index.messages:
        log.log(level, "%s", message)
    return index


def default_folder() -> Path:
    """$XDG_CACHE_HOME/sqlr1_jax/indices, or that below ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "sqlr1_jax" / "indices"


def _read(folder: Path) -> Index | None:
    """A kept index; None if there is none, or it is damaged."""
    try:
        described = io.read_json_object(folder / "index.json")
        rows_NR = np.load(folder / "rows.npy", mmap_mode="r")
        if rows_NR.dtype != np.int64 or rows_NR.shape != (described["count"], len(Row._fields)):
            return None
        return Index(rows_NR, [tuple(pair) for pair in described["databases"]], described["messages"])
    except (OSError, ValueError, KeyError, io.JsonError):
        return None


def _keep(folder: Path, index: Index) -> None:
    """Writes an index; processes that make the same one at once replace each other's. A failure is logged alone."""
    described = {"count": len(index.rows_NR), "databases": index.databases, "messages": index.messages}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=folder.name, suffix=".part", dir=folder.parent))
        np.save(part / "rows.npy", index.rows_NR)
        (part / "index.json").write_text(json.dumps(described), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        log.warning("the index of the data cannot be kept in %s, so the next run makes it again: %s", folder, error)
