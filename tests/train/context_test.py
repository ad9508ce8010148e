from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import sharding
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import huggingface, lora, peft_folder, qwen2, tokenizer
from sqlr1_jax.rollout.request import Completions
from sqlr1_jax.train.checkpoint import CheckpointNotFoundError
from sqlr1_jax.train.context import (
    CheckpointRef,
    RunContext,
    abstract_params,
    create_context,
    describe_weights,
    find_checkpoint,
    init_params,
    load_params,
    model_config,
)
from sqlr1_jax.train.interrupt import Interrupt, StepAbandoned
from testing import tiny_models, tiny_runs

pytestmark = pytest.mark.usefixtures("compiles_fast")


def _prompt(length: int, over_budget: bool = False) -> Prompt:
    return Prompt("0", "", np.ones(length, np.int32), 0, "compact", False, over_budget)


def test_the_model_config_combines_the_folder_with_the_runs_settings(context: RunContext) -> None:
    assert (context.model.num_layers, context.model.hidden_size, context.model.ffw_size) == (1, 16, 32)
    assert context.model.num_tokens == len(context.tokenizer) == context.model.vocab_size - 3
    assert context.model.logits_chunk == 0


def test_only_the_tiny_preset_takes_its_vocabulary_size_from_the_tokenizer() -> None:
    tiny = model_config(config.ModelConfig(size="tiny", dtype="bfloat16", remat="full"), 777)
    assert (tiny.vocab_size, tiny.num_tokens, tiny.dtype, tiny.remat) == (777, 777, "bfloat16", "full")
    assert tiny.num_layers == qwen2.PRESETS["tiny"].num_layers
    assert model_config(config.ModelConfig(size="7b"), 777).vocab_size == qwen2.PRESETS["7b"].vocab_size


def test_every_model_setting_reaches_the_model_config() -> None:
    changed: dict[str, Any] = {
        "param_dtype": "bfloat16",
        "dtype": "bfloat16",
        "activation_dtype": "bfloat16",
        "remat": "full",
        "attention": "xla",
        "query_chunk": 3,
        "ffw_chunks": 4,
        "logits_chunk": 5,
        "unroll": 6,
    }
    assert changed.keys() == {field.name for field in dataclasses.fields(config.ModelConfig)} - {
        "size", "path", "adapter", "lora"
    }  # fmt: skip
    model = model_config(config.ModelConfig(size="0.5b", **changed), 777)
    assert {name: getattr(model, name) for name in changed} == changed
    adapted = model_config(config.ModelConfig(size="0.5b", lora=config.LoraConfig(8, 4.0, ("q", "v"))), 777)
    assert (adapted.lora_rank, adapted.lora_alpha, adapted.lora_matrices) == (8, 4.0, ("q", "v"))


def test_initial_weights_are_those_of_the_model_folder(context: RunContext, home: Path) -> None:
    loaded = huggingface.load_params(home / "model", context.model)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(init_params(context)), jax.device_get(loaded))


def test_random_weights_depend_on_the_seed_but_not_on_the_mesh(context: RunContext) -> None:
    one_device = dataclasses.replace(
        context, config=dataclasses.replace(context.config, model=config.ModelConfig()), model=tiny_models.MODEL
    )
    eight_devices = dataclasses.replace(one_device, mesh=sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2)))
    other_seed = dataclasses.replace(one_device, config=dataclasses.replace(one_device.config, seed=1))
    params, sharded, other = (jax.device_get(init_params(c)) for c in (one_device, eight_devices, other_seed))
    jax.tree.map(np.testing.assert_array_equal, params, sharded)
    assert (params["embed"] != other["embed"]).any()
    abstract = abstract_params(eight_devices.model, eight_devices.mesh)
    for leaf, like in zip(jax.tree.leaves(init_params(eight_devices)), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)


def test_the_weights_of_a_run_are_those_of_its_last_stage_with_a_checkpoint(context: RunContext) -> None:
    initial = jax.device_get(init_params(context))

    def shift(checkpoint: CheckpointRef | None) -> float:
        return float(load_params(context, checkpoint)["final_norm"][0] - initial["final_norm"][0])

    assert find_checkpoint(context) is None
    assert shift(None) == 0
    (context.workdir / "checkpoints" / "grpo").mkdir(parents=True)  # of a stage that was killed before its first save
    for stage, last_shift in (("sft", 1.0), ("grpo", 2.0)):
        checkpoints = context.checkpoints(stage)
        for step, added in ((0, 0.0), (2, 10.0), (3, last_shift)):
            params = jax.tree.map(lambda x, added=added: x + np.float32(added), initial)
            checkpoints.save(step, {"params": params}, accuracy=step % 3)
        checkpoints.close()
        assert find_checkpoint(context) == (stage, 3)
        assert shift(find_checkpoint(context)) == pytest.approx(last_shift, abs=1e-5)
    assert find_checkpoint(context, "best") == ("grpo", 2)
    assert find_checkpoint(context, "0") == ("grpo", 0)
    assert find_checkpoint(context, stages=("sft",)) == ("sft", 3)
    with pytest.raises(CheckpointNotFoundError, match=r"has no step 1; it has \[0, 2, 3\]"):
        shift(find_checkpoint(context, "1"))


def _with_lora(context: RunContext, **settings: Any) -> RunContext:
    """A fresh context whose model has adapters of rank 2."""
    model = dataclasses.replace(context.config.model, lora=config.LoraConfig(rank=2), **settings)
    changed = dataclasses.replace(context.config, model=model)
    return dataclasses.replace(context, config=changed, model=dataclasses.replace(context.model, lora_rank=2))


def test_with_lora_the_initial_weights_are_the_folders_and_adapters_that_change_nothing(context: RunContext) -> None:
    base, adapted = init_params(context), _with_lora(context)
    trained, frozen = lora.split(init_params(adapted))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), jax.device_get(base))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(lora.merge(trained | frozen, adapted.model)), base)
    assert jax.tree.structure(trained) == jax.tree.structure(  # type: ignore[operator]
        lora.split(abstract_params(adapted.model, context.mesh))[0]
    )


def test_a_checkpoint_of_lora_holds_the_adapters_alone(context: RunContext) -> None:
    adapted = _with_lora(context)
    trained, _ = lora.split(init_params(adapted))
    moved = jax.tree.map(lambda x: x + np.float32(1), trained)
    checkpoints = adapted.checkpoints("grpo")
    checkpoints.save(1, {"params": moved})
    checkpoints.close()
    loaded = load_params(_with_lora(context), CheckpointRef("grpo", 1))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), jax.device_get(adapted.full_params(moved)))


def test_an_adapters_folder_is_merged_or_trained_further(context: RunContext, tmp_path: Path) -> None:
    adapted = _with_lora(context)
    trained = jax.tree.map(lambda x: x + np.float32(0.01), lora.split(init_params(adapted))[0])
    peft_folder.save(tmp_path, trained[lora.KEY], adapted.model, "")
    further = init_params(_with_lora(context, adapter=str(tmp_path)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(lora.split(further)[0]), jax.device_get(trained))
    model = dataclasses.replace(context.config.model, adapter=str(tmp_path))
    merged = init_params(dataclasses.replace(context, config=dataclasses.replace(context.config, model=model)))
    expected = lora.merge(adapted.full_params(trained), adapted.model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, expected)


def test_weights_are_described_by_stage_and_step_or_by_their_path(context: RunContext, home: Path) -> None:
    assert describe_weights(context, CheckpointRef("grpo", 110)) == "grpo, step 110"
    assert describe_weights(context, None) == str(home / "model")


def test_the_first_checkpoint_of_a_stage_is_never_deleted(context: RunContext) -> None:
    checkpoints = context.checkpoints("grpo")
    for step in range(6):
        checkpoints.save(step, {"params": {"w": np.ones(2)}})
    assert checkpoints.steps() == [0, 4, 5]


@pytest.mark.parametrize(("lengths", "tokens"), [([5], 16), ([16, 3], 16), ([17], 32)])
def test_an_engine_has_room_for_its_longest_prompt(context: RunContext, lengths: list[int], tokens: int) -> None:
    assert context.engine([_prompt(length) for length in lengths]).prompt_tokens == tokens


def test_prompts_over_the_budget_do_not_lengthen_an_engines_prompts(context: RunContext) -> None:
    assert context.engine([_prompt(5), _prompt(5000, over_budget=True)]).prompt_tokens == 16


def test_an_engine_never_splits_a_key_value_head(context: RunContext) -> None:
    tensor_parallel = dataclasses.replace(context, mesh=sharding.make_mesh(config.MeshConfig(fsdp=1, tensor=8)))
    assert dict(tensor_parallel.engine([_prompt(5)]).mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}


def test_embedded_splits_are_read_from_the_runs_data_folder(context: RunContext, home: Path) -> None:
    for split, count in (("sft", 24), ("grpo", 12), ("heldout", 6), ("newnames", 4)):
        examples = context.examples("synth:", split)
        records = json.loads((home / "data" / f"{split}.json").read_text())
        assert [e.id for e in examples] == [record["id"] for record in records]
        assert [e.sql for e in examples] == [record["sql"] for record in records]
        assert len(examples) == count
        assert all(e.database.is_file() for e in examples)


def test_missing_embedded_data_is_an_error_that_names_the_settings(context: RunContext, tmp_path: Path) -> None:
    no_data = dataclasses.replace(context, workdir=tmp_path / "no_data")
    with pytest.raises(ConfigError, match=r"heldout from synth:.*'data' into config\.stages.*evaluate") as error:
        no_data.examples("synth:", "heldout")
    assert "\n" not in str(error.value)


def test_other_sources_are_read_from_their_path_up_to_the_limit(
    context: RunContext, pets: Path, tmp_path: Path
) -> None:
    lines = [json.dumps({"db_id": "pets", "question": f"How {i}?", "sql": f"SELECT {i}"}) for i in range(5)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    data = dataclasses.replace(context.config.data, databases=str(pets.parents[1]), limit=3)
    other = dataclasses.replace(context, config=dataclasses.replace(context.config, data=data))
    examples = other.examples(f"jsonl:{tmp_path / 'own.jsonl'}", "grpo")
    assert [e.sql for e in examples] == ["SELECT 0", "SELECT 1", "SELECT 2"]
    assert {e.database for e in examples} == {pets.absolute()}


def test_lists_apply_to_training_splits_or_to_the_file_that_they_name(
    context: RunContext, pets: Path, tmp_path: Path
) -> None:
    lines = [json.dumps({"db_id": "pets", "question": f"How {i}?", "sql": f"SELECT {i}"}) for i in range(4)]
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "own.jsonl").write_text('{"id": "0", "db_id": "pets"}\n')
    (tmp_path / "named.jsonl").write_text(f'{{"id": 3, "db_id": "pets", "source": "{tmp_path}/heldout.jsonl"}}\n')
    data = dataclasses.replace(
        context.config.data,
        databases=str(pets.parents[1]),
        exclude=(f"{tmp_path}/own.jsonl", f"{tmp_path}/named.jsonl"),
    )
    other = dataclasses.replace(context, config=dataclasses.replace(context.config, data=data))

    def ids(name: str, split: str) -> list[str]:
        return [e.id for e in other.examples(f"jsonl:{tmp_path}/{name}.jsonl", split)]

    assert ids("train", "grpo") == ids("train", "sft") == ["1", "2", "3"]
    assert ids("heldout", "heldout") == ["0", "1", "2"]
    assert ids("train", "heldout") == ["0", "1", "2", "3"]


def test_decoded_texts_are_exact_and_lack_the_stop_token(context: RunContext) -> None:
    texts = ["SELECT name FROM dogs WHERE a = 'it''s' , b . c ?", " x  ,\n\t-- do n't 's\n", ""]
    stop = context.tokenizer.eos_token_id
    ids = [context.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert context.texts([np.array([*tokens, stop]) for tokens in ids]) == texts
    assert context.texts(ids) == texts
    assert context.texts([[stop, *ids[0], stop]]) == [f"{context.tokenizer.decode([stop])}{texts[0]}"]


def test_a_run_stops_at_the_ends_of_the_models_generation_config(home: Path, tmp_path: Path) -> None:
    """Training, evaluation and `ask` take the engine and the texts of this context."""
    folder = shutil.copytree(home / "model", tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    context = create_context(tiny_runs.tiny_config(model__path=str(folder)), tmp_path)
    assert {5, 7, context.tokenizer.eos_token_id} <= set(context.stop_ids)
    assert context.engine([]).stop_ids == context.stop_ids
    assert context.texts([[9, 7], [9, 5], [9, 8]]) == [context.tokenizer.decode(ids) for ids in ([9], [9], [9, 8])]


def test_a_token_past_a_hole_in_the_vocabulary_can_be_sampled(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "model", tmp_path / "model")
    record = json.loads((folder / "tokenizer.json").read_text())
    last = tokenizer.count_tokens(folder) + 2  # the model's vocabulary has three more ids than its tokenizer
    record["model"]["vocab"]["<|custom|>"] = last
    (folder / "tokenizer.json").write_text(json.dumps(record))
    context = create_context(tiny_runs.tiny_config(model__path=str(folder)), tmp_path)
    logits = qwen2.mask_logits(jax.numpy.zeros((1, context.model.vocab_size)), context.model)
    sampled = np.flatnonzero(np.asarray(logits)[0] == 0).tolist()
    assert sampled == sorted(context.tokenizer.get_vocab().values())
    assert sampled[-1] == last > sampled[-2] + 1


@pytest.mark.parametrize("path", ["", "no/such-repository"])
def test_a_missing_model_is_an_error_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"config\.model\.path") as error:
        create_context(tiny_runs.tiny_config(model__path=path), tmp_path)
    assert "\n" not in str(error.value)


def test_one_of_several_processes_needs_the_distributed_flag(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"one of 4 hosts.*--distributed"):
        create_context(tiny_runs.tiny_config(model__path=str(home / "model")), tmp_path)


def test_a_mesh_that_does_not_fit_the_devices_is_an_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.mesh"):
        create_context(tiny_runs.tiny_config(model__path=str(home / "model"), mesh__tensor=3), tmp_path)


def test_top_k_is_at_most_the_number_of_tokens_that_the_model_can_sample(home: Path, tmp_path: Path) -> None:
    tokens = tokenizer.count_tokens(home / "model")
    model = {"model__path": str(home / "model"), "grpo__sampling__top_k": tokens}
    assert create_context(tiny_runs.tiny_config(**model), tmp_path).model.num_tokens == tokens
    model["grpo__sampling__top_k"] = tokens + 1
    with pytest.raises(ConfigError, match=rf"config\.grpo\.sampling\.top_k is {tokens + 1}; .* at most {tokens},"):
        create_context(tiny_runs.tiny_config(**model), tmp_path)


def test_a_folders_weights_load_on_any_mesh(context: RunContext) -> None:
    eight_devices = dataclasses.replace(context, mesh=sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2)))
    params, sharded = (jax.device_get(init_params(c)) for c in (context, eight_devices))
    jax.tree.map(np.testing.assert_array_equal, params, sharded)


def test_a_rollout_is_given_up_when_a_signal_asks_the_loop_to_stop(context: RunContext) -> None:
    request = context.request([_prompt(5)], 2, context.config.grpo.sampling, 0)
    tokens = Completions.empty(1, 2, 3)
    assert request.on_read is not None
    request.on_read(tokens)
    with Interrupt():
        request.on_read(tokens)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StepAbandoned):
            request.on_read(tokens)
