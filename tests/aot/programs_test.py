"""The abstract inputs have the shapes, dtypes and shardings of the arrays that training passes, on four devices."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.aot.programs import NUM_TOKENS, STOP_IDS, StepPrograms
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, Segment
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import init, qwen2, tokenizer
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rollout.programs import PrefillBatch
from sqlr1_jax.rollout.request import Request
from sqlr1_jax.train import batch, state

pytestmark = pytest.mark.usefixtures("compiles_fast")

CONFIG = config.Config(
    model=config.ModelConfig(dtype="bfloat16", logits_chunk=0),
    mesh=config.MeshConfig(fsdp=2, tensor=2),
    data=config.DataConfig(max_prompt_tokens=30),
    grpo=config.GrpoConfig(
        prompts=8,
        samples=2,
        sampling=config.SamplingConfig(temperature=1.1, max_tokens=8),
        rows=config.RowsConfig(per_microbatch=2),
    ),
    rollout=config.RolloutConfig(decode_steps_per_sync=8),
)


def _step_programs(full_config: config.Config = CONFIG, num_devices: int = 4) -> StepPrograms:
    """The step on CPU devices, with stacked layers in the sampler as on TPU."""
    return StepPrograms(full_config, jax.devices()[:num_devices], unstack_layers=False)


@pytest.fixture(scope="module")
def step() -> StepPrograms:
    return _step_programs()


@pytest.fixture(scope="module")
def train_state(step: StepPrograms) -> state.TrainState:
    """A train state with arrays, created in the same way as in training."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, step.params)
    init_params = jax.jit(lambda key: init.init_params(step.model_config, key), out_shardings=shardings)
    with jax.set_mesh(step.mesh):
        return state.create_state(init_params(jax.random.key(0)), step.update_spec)


def _microbatches(step: StepPrograms) -> batch.Microbatches:
    return batch.Microbatches(step.microbatch_rows, step.microbatches)


def _assert_same(abstract: Any, real: Any) -> None:
    assert jax.tree.structure(abstract) == jax.tree.structure(real)  # type: ignore[operator]
    for (path, expected), array in zip(
        jax.tree_util.tree_leaves_with_path(abstract), jax.tree.leaves(real), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert (expected.shape, expected.dtype) == (array.shape, array.dtype), name
        message = f"{name}: {expected.sharding}, {array.sharding}"
        assert expected.sharding.is_equivalent_to(array.sharding, array.ndim), message


def test_the_abstract_state_equals_trainings(step: StepPrograms, train_state: state.TrainState) -> None:
    _assert_same((step.state.params, step.state.opt_state), (train_state.params, train_state.opt_state))
    moments = jax.tree.leaves(step.state.opt_state)
    assert not any(leaf.sharding.is_fully_replicated for leaf in moments if leaf.ndim > 2)


def test_the_abstract_sampler_weights_equal_trainings(step: StepPrograms, train_state: state.TrainState) -> None:
    with jax.set_mesh(step.mesh):
        _assert_same(step.weights.outputs, step.engine.prepare_weights(train_state.params))


def test_the_abstract_batch_equals_trainings(step: StepPrograms) -> None:
    tokens = np.arange(9, dtype=np.int32)
    segments = [Segment(tokens, np.ones(8, np.float32), np.zeros(8, np.float32), 0, g) for g in range(2)]
    rows = packing.shared_prefix_rows([Group(np.arange(20), segments)] * 8, step.row_layout)
    _assert_same(step.update.inputs[1], batch.assemble_batch(rows, step.mesh, _microbatches(step)))


def test_the_compiled_sampler_samples_the_same_as_the_engine(step: StepPrograms, train_state: state.TrainState) -> None:
    """Each program accepts the arrays that the previous one returns."""
    with jax.set_mesh(step.mesh):
        weights = step.engine.prepare_weights(train_state.params)
    request = Request([np.arange(1, 20, dtype=np.int32)] * 8, 2, CONFIG.grpo.sampling, seed=0, step=0)
    put = functools.partial(sharding.to_global_arrays, mesh=step.engine.mesh, rules=sharding.SAMPLE_RULES)
    resident: Any = train_state, {}, train_state.params  # without LoRA, nothing is frozen
    prefill_batch = put(_prefill_batch(request, step.rollout_layout.prefix))
    slots = step.init_slots.compiled(resident)
    _assert_same(step.prefill.inputs[1:3], (slots, prefill_batch))
    train_step = jax.device_put(np.int32(0), sharding.replicated(step.engine.mesh))
    slots = step.prefill.compiled(resident, weights, slots, prefill_batch, train_step)
    force_done_PG = put(np.zeros((8, 2), bool))
    _assert_same(step.decode.inputs[1:], (slots, force_done_PG))
    _, decoded = step.decode.compiled(resident, weights, slots, force_done_PG)
    completions = step.engine.rollout(weights, request)
    np.testing.assert_array_equal(decoded.tokens_PGC, completions.tokens_PGT)
    np.testing.assert_array_equal(decoded.length_PG, completions.length_PG)


def _prefill_batch(request: Request, padded_length: int) -> PrefillBatch:
    """The request's prompts, each in the slot of its index."""
    count = len(request.prompts)
    tokens_RS = np.stack([np.pad(ids[:-1], (0, padded_length - len(ids) + 1)) for ids in request.prompts])
    length_R = np.array([len(ids) - 1 for ids in request.prompts], np.int32)
    last_token_R = np.array([ids[-1] for ids in request.prompts], np.int32)
    index_R = np.arange(count, dtype=np.int32)
    limit_RG = np.full((count, request.samples), request.sampling.max_tokens, np.int32)
    return PrefillBatch(tokens_RS, length_R, last_token_R, index_R, index_R, limit_RG)


def test_slots_and_prefill_batches_have_the_configs_sizes() -> None:
    few_slots = dataclasses.replace(
        CONFIG, rollout=config.RolloutConfig(max_concurrent_prompts=4, prefill_batch=2, cache="int8", weights="int8")
    )
    step = _step_programs(few_slots)
    weights, slots, prefill_batch, _ = step.prefill.inputs
    assert slots.token_PG.shape == (4, 2) and prefill_batch.tokens_RS.shape == (2, 32)
    assert slots.cache.k[0].values.dtype == "int8" and weights["layers"]["q"].values.dtype == "int8"


def test_the_sampler_on_cpu_has_unstacked_layers() -> None:
    """Both its weights and its KV cache have one array per layer."""
    step = StepPrograms(CONFIG, jax.devices()[:4])
    slots, decoded = jax.eval_shape(step.decode.function, *step.decode.inputs)
    assert len(step.weights.outputs["layers"]) == len(slots.cache.k) == step.model_config.num_layers
    assert step.model_config.num_layers > step.model_config.unroll
    assert decoded.tokens_PGC.shape == (8, 2, 8)


def test_the_compiled_update_equals_trainings(step: StepPrograms, train_state: state.TrainState) -> None:
    segments = [Segment(np.arange(9), np.ones(8, np.float32), np.zeros(8, np.float32), 0, g) for g in range(2)]
    rows = packing.shared_prefix_rows([Group(np.arange(20), segments)] * 8, step.row_layout)
    train_batch = batch.assemble_batch(rows, step.mesh, _microbatches(step))
    donated = jax.tree.map(lambda leaf: leaf.copy(), train_state)
    reference = jax.tree.map(lambda leaf: leaf.copy(), train_state.params)
    with jax.set_mesh(step.mesh):
        expected, _ = state.update(donated, train_batch, grpo_loss, CONFIG.grpo, step.update_spec)
    replicated_step = jax.device_put(train_state.step, sharding.replicated(step.mesh))
    donated = jax.tree.map(lambda leaf: leaf.copy(), dataclasses.replace(train_state, step=replicated_step))
    new_state, _ = step.update.compiled(reference, donated, train_batch, {})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new_state.params, expected.params)


def test_flops_are_summed_over_devices(step: StepPrograms) -> None:
    tokens = 8 * (32 + 2 * 8)
    assert step.update.flops == pytest.approx(3 * step.reference_logprobs.flops)
    unembedding = step.model_config.vocab_size * step.model_config.hidden_size
    layers = qwen2.count_params(step.model_config) - unembedding - step.model_config.hidden_size * 100
    assert step.update.flops > 6 * (tokens * layers + 8 * 2 * 8 * unembedding)


def test_eight_devices_share_the_arithmetic_of_one() -> None:
    """The default mesh. XLA counts a loop's body once, so the count of one microbatch is multiplied by their number."""

    def update_flops(num_devices: int) -> float:
        mesh_config, rows = config.MeshConfig(), config.RowsConfig(per_microbatch=1)
        grpo = dataclasses.replace(CONFIG.grpo, rows=rows)
        step = _step_programs(dataclasses.replace(CONFIG, mesh=mesh_config, grpo=grpo), num_devices)
        assert step.microbatch_rows * step.microbatches == step.prompts
        cost: Any = step.update.compiled.cost_analysis()
        return step.microbatches * float(cost["flops"])

    assert update_flops(8) <= 1.1 / 8 * update_flops(1)


def test_without_kl_there_is_no_reference() -> None:
    without_kl = dataclasses.replace(CONFIG, grpo=dataclasses.replace(CONFIG.grpo, kl=0.0))
    step = _step_programs(without_kl)
    assert step.names == ("weights", "prefill", "decode", "update")
    assert step.update.resident is None


def test_with_lora_the_update_trains_adapters_and_reads_frozen_weights() -> None:
    model = dataclasses.replace(CONFIG.model, lora=config.LoraConfig(rank=2))
    step, plain = _step_programs(dataclasses.replace(CONFIG, model=model)), _step_programs()
    _assert_same(step.frozen, plain.params)
    abstract_state, _, frozen = step.update.inputs
    assert set(abstract_state.params) == {"lora"} and frozen is step.frozen
    assert jax.tree.leaves(step.reference) == jax.tree.leaves(step.params)  # the frozen weights are counted once
    assert jax.tree.structure(step.weights.outputs) == jax.tree.structure(plain.weights.outputs)  # type: ignore[operator]
    assert step.update.flops == pytest.approx(plain.update.flops * 2 / 3)


def test_packed_rows_have_the_configs_length() -> None:
    rows = config.RowsConfig(layout="packed", length=100, per_microbatch=2)
    step = _step_programs(dataclasses.replace(CONFIG, grpo=dataclasses.replace(CONFIG.grpo, rows=rows)))
    assert step.update_spec.layout is None
    assert step.update.inputs[1].rows.tokens.shape == (2, 4, 100)


def test_stop_ids_and_vocabulary_size_are_qwens(shared_data: Path) -> None:
    qwen = tokenizer.load(shared_data / "qwen2_5_tokenizer")
    assert tokenizer.stop_ids(qwen) == STOP_IDS
    assert len(qwen) == NUM_TOKENS
