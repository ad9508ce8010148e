"""The answers of an evaluation that is not complete, on disk as its chunks end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.distributed import collectives
from sqlr1_jax.io import read_jsonl, write_jsonl


class PartialResults:
    """Chunks of answers in a file. Those of other weights, questions or settings are ignored.

    The file's first line is the key; then it has for each chunk its number and its answers.

    Attributes:
      path: the file.
      chunks: by number, the answers that an earlier run has written.
    """

    def __init__(self, path: Path, key: Mapping[str, str]) -> None:
        """Takes the file's chunks if it belongs to `key`; all processes take what the first one reads."""
        self.path, self._key = path, dict(key)
        self.chunks: dict[int, list[Any]] = collectives.broadcast(self._read())

    def add(self, chunk: int, answers: Sequence[Any]) -> None:
        """Writes a chunk next to those before it."""
        self.chunks[chunk] = list(answers)
        write_jsonl(self.path, [self._key, *self.chunks.items()])

    def delete(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[int, list[Any]]:
        if not self.path.exists():
            return {}
        key, *lines = [*read_jsonl(self.path, on_bad_lines="warn")] or [None]
        return dict(lines) if key == self._key else {}
