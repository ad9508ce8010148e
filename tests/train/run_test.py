from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from sqlr1_jax import config, sharding
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import huggingface, qwen2
from sqlr1_jax.train import run as runs
from sqlr1_jax.train.run import Run
from testing import tiny_models, tiny_runs

pytestmark = pytest.mark.usefixtures("compiles_fast")


def _prompt(length: int, over_budget: bool = False) -> Prompt:
    return Prompt("0", "", np.ones(length, np.int32), 0, "compact", False, over_budget)


def test_the_shape_is_the_folders_under_the_settings_of_the_run(run: Run) -> None:
    assert (run.model.num_layers, run.model.hidden_size, run.model.ffw_size) == (1, 16, 32)
    assert run.model.num_tokens == len(run.tokenizer) == run.model.vocab_size - 3
    assert run.model.logits_chunk == 0


def test_a_preset_takes_its_vocabulary_from_the_tokenizer_only_where_it_is_made_here() -> None:
    tiny = runs.shape(config.Model(size="tiny", dtype="bfloat16", remat="full"), 777)
    assert (tiny.vocab_size, tiny.num_tokens, tiny.dtype, tiny.remat) == (777, 777, "bfloat16", "full")
    assert tiny.num_layers == qwen2.PRESETS["tiny"].num_layers
    assert runs.shape(config.Model(size="7b"), 777).vocab_size == qwen2.PRESETS["7b"].vocab_size


def test_initial_weights_are_the_folders(run: Run, home: Path) -> None:
    loaded = huggingface.load(home / "model", run.model)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(runs.initial(run)), jax.device_get(loaded))


def test_random_weights_follow_the_seed_and_not_the_mesh(run: Run) -> None:
    bare = dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, model=config.Model()), model=tiny_models.MODEL)
    eight = dataclasses.replace(bare, mesh=sharding.make_mesh(config.Mesh(fsdp=4, tensor=2)))
    other = dataclasses.replace(bare, cfg=dataclasses.replace(bare.cfg, seed=1))
    one, spread, unlike = (jax.device_get(runs.initial(r)) for r in (bare, eight, other))
    jax.tree.map(np.testing.assert_array_equal, one, spread)
    assert (one["embed"] != unlike["embed"]).any()
    for leaf, like in zip(jax.tree.leaves(runs.initial(eight)), jax.tree.leaves(runs.abstract(eight)), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)


def test_parameters_are_those_of_the_last_stage_with_a_checkpoint(run: Run) -> None:
    first = jax.device_get(runs.initial(run))

    def value(*stages: str) -> float:
        return float(runs.parameters(run, stages)["final_norm"][0] - first["final_norm"][0])

    assert value("cold_start", "grpo") == 0
    for stage, shift in (("cold_start", 1.0), ("grpo", 2.0)):
        checkpoints = run.checkpoints(stage)
        checkpoints.save(0, {"params": first})
        checkpoints.save(3, {"params": jax.tree.map(lambda x, shift=shift: x + np.float32(shift), first)})
        checkpoints.close()
    assert value("cold_start", "grpo") == pytest.approx(2, abs=1e-5)
    assert value("cold_start") == pytest.approx(1, abs=1e-5)
    assert value() == 0


def test_the_first_checkpoint_of_a_stage_is_never_deleted(run: Run) -> None:
    checkpoints = run.checkpoints("grpo")
    for step in range(6):
        checkpoints.save(step, {"params": {"w": np.ones(2)}})
    assert checkpoints.steps() == [0, 4, 5]


@pytest.mark.parametrize(("lengths", "tokens"), [([5], 16), ([16, 3], 16), ([17], 32)])
def test_a_sampler_has_room_for_its_longest_prompt(run: Run, lengths: list[int], tokens: int) -> None:
    assert run.engine([_prompt(length) for length in lengths]).prompt_tokens == tokens


def test_prompts_over_the_budget_widen_nothing(run: Run) -> None:
    assert run.engine([_prompt(5), _prompt(5000, over_budget=True)]).prompt_tokens == 16


def test_the_sampler_never_splits_a_key_value_head(run: Run) -> None:
    wide = dataclasses.replace(run, mesh=sharding.make_mesh(config.Mesh(fsdp=1, tensor=8)))
    assert dict(wide.engine([_prompt(5)]).mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}


def test_the_embedded_splits_are_read_from_the_runs_own_data(run: Run, home: Path) -> None:
    for split, count in (("cold_start", 24), ("grpo", 12), ("heldout", 6), ("newnames", 4)):
        examples = run.examples("synth:", split)
        records = json.loads((home / "data" / f"{split}.json").read_text())
        assert [e.id for e in examples] == [record["id"] for record in records]
        assert [e.sql for e in examples] == [record["sql"] for record in records]
        assert len(examples) == count
        assert all(e.database.is_file() for e in examples)


def test_embedded_data_that_was_not_made_is_told_with_what_to_set(run: Run, tmp_path: Path) -> None:
    bare = dataclasses.replace(run, workdir=tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"heldout from synth:.*'data' into config\.stages.*evaluate") as error:
        bare.examples("synth:", "heldout")
    assert "\n" not in str(error.value)


def test_another_source_is_read_from_where_it_says_and_limited(run: Run, pets: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"db_id": "pets", "question": f"How {i}?", "sql": f"SELECT {i}"}) for i in range(5)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    data = dataclasses.replace(run.cfg.data, databases=str(pets.parents[1]), limit=3)
    other = dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, data=data))
    examples = other.examples(f"jsonl:{tmp_path / 'own.jsonl'}", "grpo")
    assert [e.sql for e in examples] == ["SELECT 0", "SELECT 1", "SELECT 2"]
    assert {e.database for e in examples} == {pets.absolute()}


def test_texts_come_back_to_the_character_without_the_token_that_ended_them(run: Run) -> None:
    texts = ["SELECT name FROM dogs WHERE a = 'it''s' , b . c ?", " x  ,\n\t-- do n't 's\n", ""]
    stop = run.tokenizer.eos_token_id
    ids = [run.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert run.texts([np.array([*one, stop]) for one in ids]) == texts
    assert run.texts(ids) == texts
    assert run.texts([[stop, *ids[0], stop]]) == [f"{run.tokenizer.decode([stop])}{texts[0]}"]


@pytest.mark.parametrize("path", ["", "no/such-repository"])
def test_a_model_that_cannot_be_had_is_an_error_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"config\.model\.path") as error:
        runs.start(tiny_runs.tiny_config(model__path=path), tmp_path)
    assert "\n" not in str(error.value)


def test_one_of_several_hosts_must_be_told_so(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"one of 4 hosts.*--distributed"):
        runs.start(tiny_runs.tiny_config(model__path=str(home / "model")), tmp_path)


def test_a_mesh_that_does_not_fit_the_devices_is_told_at_once(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.mesh"):
        runs.start(tiny_runs.tiny_config(model__path=str(home / "model"), mesh__tensor=3), tmp_path)


def test_a_folders_weights_serve_any_mesh(run: Run) -> None:
    eight = dataclasses.replace(run, mesh=sharding.make_mesh(config.Mesh(fsdp=4, tensor=2)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(runs.initial(eight)), jax.device_get(runs.initial(run)))
