from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.data.example import Example
from sqlr1_jax.evaluate.heldout import choose_databases, load_heldout_sets, prompt_settings
from sqlr1_jax.train.context import RunContext
from testing import tiny_models


def _with(context: RunContext, **groups: Any) -> RunContext:
    changed = {name: dataclasses.replace(getattr(context.config, name), **group) for name, group in groups.items()}
    return dataclasses.replace(context, config=dataclasses.replace(context.config, **changed))


def _questions(counts: dict[str, int]) -> list[Example]:
    return [Example(f"{db}{i}", db, Path(db), "?", "SELECT 1") for db, count in counts.items() for i in range(count)]


def test_heldout_sets_are_two_of_the_embedded_data_and_one_of_other_data(context: RunContext) -> None:
    sets = load_heldout_sets(context)
    assert [(heldout.name, len(heldout.examples), len(heldout.prompts)) for heldout in sets] == [
        ("heldout", 6, 6),
        ("newnames", 4, 4),
    ]
    other = _with(context, data={"evaluate": f"synsql:{context.data_dir / 'grpo.json'}"})
    assert [(heldout.name, len(heldout.examples)) for heldout in load_heldout_sets(other)] == [("heldout", 12)]


def test_a_run_that_trains_is_evaluated_as_it_trains_except_where_evaluate_says_otherwise(context: RunContext) -> None:
    assert prompt_settings(context) == context.config.data
    changed = prompt_settings(_with(context, evaluate={"form": "direct", "max_prompt_tokens": 77}))
    assert changed == dataclasses.replace(context.config.data, form="direct", max_prompt_tokens=77)


def test_a_model_that_is_only_evaluated_is_asked_as_it_was_trained(context: RunContext, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_models.TRANSFORMERS_FIXTURE / "config.json").read_bytes())
    config = dataclasses.replace(context.config, stages=("evaluate",))
    alone = dataclasses.replace(context, config=config, workdir=tmp_path / "run")
    alone = _with(alone, model={"path": str(folder)})
    external = prompt_settings(alone)
    assert (external.form, external.schema, external.prompt) == ("direct", "fixed", "ours")
    saved = {"form": "reasoning", "schema": "compact", "instructions": "brief", "max_prompt_tokens": 99}
    (folder / "sqlr1.json").write_text(json.dumps(saved | {"prompt": "arctic", "max_tokens": 5}))
    exported = prompt_settings(alone)
    assert (exported.form, exported.schema, exported.prompt) == ("reasoning", "compact", "arctic")
    assert prompt_settings(_with(alone, evaluate={"prompt": "qwen"})).prompt == "qwen"


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 6)),
    st.integers(0, 9),
    st.integers(0, 30),
    st.integers(0, 99),
)
def test_databases_are_chosen_whole_and_questions_evenly(
    counts: dict[str, int], databases: int, limit: int, seed: int
) -> None:
    everything = _questions(counts)
    chosen = choose_databases(everything, databases, limit, seed)
    assert chosen == choose_databases(everything, databases, limit, seed)
    assert [e for e in everything if e in chosen] == chosen
    whole = choose_databases(everything, databases, 0, seed)
    of_whole = collections.Counter(e.db_id for e in whole)
    assert of_whole == {db_id: counts[db_id] for db_id in of_whole}
    assert len(of_whole) == min(databases or len(counts), len(counts))
    assert len(chosen) == min(limit or len(whole), len(whole))
    given_by = collections.Counter(e.db_id for e in chosen)
    most = max(given_by.values(), default=0)
    assert all(given_by[db_id] >= min(count, most - 1) for db_id, count in of_whole.items())


def test_another_seed_chooses_other_databases() -> None:
    everything = _questions({chr(ord("a") + i): 1 for i in range(20)})
    chosen = {seed: {e.db_id for e in choose_databases(everything, 5, 0, seed)} for seed in range(3)}
    assert len(set(map(frozenset, chosen.values()))) == 3
