from __future__ import annotations

from pathlib import Path

from sqlr1_jax.evaluate.partial_results import PartialResults

KEY = {"weights": "a", "questions": "b"}


def test_chunks_are_read_by_a_later_run_with_the_same_key(tmp_path: Path) -> None:
    first = PartialResults(tmp_path / "partial.jsonl", KEY)
    assert first.chunks == {}
    first.add(0, [["greedy", "vote"]])
    first.add(1, [])
    assert PartialResults(tmp_path / "partial.jsonl", KEY).chunks == {0: [["greedy", "vote"]], 1: []}
    assert PartialResults(tmp_path / "partial.jsonl", KEY | {"weights": "c"}).chunks == {}


def test_chunks_of_another_key_are_overwritten(tmp_path: Path) -> None:
    PartialResults(tmp_path / "partial.jsonl", KEY).add(0, [1])
    PartialResults(tmp_path / "partial.jsonl", KEY | {"weights": "c"}).add(5, [2])
    assert PartialResults(tmp_path / "partial.jsonl", KEY).chunks == {}
    assert PartialResults(tmp_path / "partial.jsonl", KEY | {"weights": "c"}).chunks == {5: [2]}


def test_a_complete_evaluation_deletes_them(tmp_path: Path) -> None:
    results = PartialResults(tmp_path / "partial.jsonl", KEY)
    results.add(0, [1])
    results.delete()
    results.delete()
    assert PartialResults(tmp_path / "partial.jsonl", KEY).chunks == {}
