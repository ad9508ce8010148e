from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.evaluate.chunks import count_prompts, local_share, split_into_chunks
from sqlr1_jax.evaluate.heldout import Question
from sqlr1_jax.progress import Progress
from sqlr1_jax.rollout.request import FinishedSample


def test_chunks_hold_whole_databases_of_about_one_prompt_length() -> None:
    def questions(database: str, tokens: int, count: int) -> list[Question]:
        example = Example("0", database, Path(f"/{database}.sqlite"), "?", "SELECT 1")
        prompt = Prompt("0", "", np.zeros(tokens, np.int32), 0, "fixed", False, over_budget=False)
        return [Question("heldout", example, prompt, i) for i in range(count)]

    everything = [*questions("long", 300, 2), *questions("a", 90, 3), *questions("b", 70, 2), *questions("c", 80, 1)]

    def databases(size: int) -> list[list[str]]:
        return [[q.example.db_id for q in chunk] for chunk in split_into_chunks(everything, size)]

    assert databases(3) == [["a"] * 3, ["b", "b", "c"], ["long"] * 2]
    assert databases(4) == [["a"] * 3 + ["b"] * 2, ["c", "long", "long"]]
    assert split_into_chunks([], 3) == []


@pytest.mark.parametrize(("items", "processes"), [(5, 1), (5, 2), (6, 2), (1, 3), (7, 4)])
def test_shares_are_equal_and_begin_with_all_items(monkeypatch: pytest.MonkeyPatch, items: int, processes: int) -> None:
    monkeypatch.setattr(collectives, "process_count", lambda: processes)
    shares = []
    for process in range(processes):
        monkeypatch.setattr(collectives, "process_index", lambda process=process: process)
        shares.append(local_share(list(range(items))))
    assert len({len(share) for share in shares}) == 1
    assert [i for share in shares for i in share][:items] == list(range(items))


def test_a_prompt_counts_when_its_last_sample_ends() -> None:
    ids = np.zeros(1, np.int32)
    with Progress("sampling", 2, "question") as progress:
        count = count_prompts(2, 2, progress)
        count([FinishedSample(0, 0, ids), FinishedSample(1, 1, ids)])
        assert "0 of 2 questions" in progress.line()
        count([FinishedSample(1, 0, ids)])
        assert "1 of 2 questions" in progress.line()
