from __future__ import annotations

from pathlib import Path

import pytest

from sqlr1_jax.files import write_whole


def test_a_text_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for text in ("first, and longer", "zwei ≥ 2"):
        write_whole(tmp_path / "summary.json", text)
        assert (tmp_path / "summary.json").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_write_that_fails_leaves_the_old_text(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a", "new \ud800")
    assert (tmp_path / "a").read_text() == "old"
