"""Files that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a text beside its place and moves it there: a reader finds the old text or the new one.

    Of two processes that write one file the later wins.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
