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
from sqlr1_jax.aot.programs import NUM_TOKENS, STOP, StepPrograms
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, Segment
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import init, qwen2, tokenizer
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rollout.engine import Request
from sqlr1_jax.rollout.programs import PrefillBatch
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
        rows=config.RowsConfig(per_microbatch=4),
    ),
)


def _planned(cfg: config.Config = CONFIG, hosts: int = 1) -> StepPrograms:
    """The step on four devices with the sampler's layers in a loop, as on the chips that `plan` is for."""
    return StepPrograms(cfg, jax.devices()[:4], hosts, unstack_layers=False)


@pytest.fixture(scope="module")
def step() -> StepPrograms:
    return _planned()


@pytest.fixture(scope="module")
def real(step: StepPrograms) -> state.TrainState:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, step.params)
    make = jax.jit(lambda key: init.init_params(step.model, key), out_shardings=shardings)
    with jax.set_mesh(step.mesh):
        return state.create_state(make(jax.random.key(0)), step.update_spec)


def _assert_same(planned: Any, real: Any) -> None:
    assert jax.tree.structure(planned) == jax.tree.structure(real)  # type: ignore[operator]
    for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(planned), jax.tree.leaves(real), strict=True):
        name = jax.tree_util.keystr(path)
        assert (want.shape, want.dtype) == (got.shape, got.dtype), name
        assert want.sharding.is_equivalent_to(got.sharding, got.ndim), f"{name}: {want.sharding}, {got.sharding}"


def test_the_state_is_the_one_that_training_makes(step: StepPrograms, real: state.TrainState) -> None:
    _assert_same((step.state.params, step.state.opt_state), (real.params, real.opt_state))
    moments = jax.tree.leaves(step.state.opt_state)
    assert not any(leaf.sharding.is_fully_replicated for leaf in moments if leaf.ndim > 2)


def test_the_samplers_weights_are_the_ones_that_training_makes(step: StepPrograms, real: state.TrainState) -> None:
    with jax.set_mesh(step.mesh):
        _assert_same(step.sampler_params, step.engine.prepare_weights(real.params))


def test_the_batch_is_the_one_that_training_makes(step: StepPrograms) -> None:
    tokens = np.arange(9, dtype=np.int32)
    segments = [Segment(tokens, np.ones(8, np.float32), np.zeros(8, np.float32), 0, g) for g in range(2)]
    rows = packing.shared_prefix_rows([Group(np.arange(20), segments)] * 8, step.row_layout)
    _assert_same(step.update.inputs[1], batch.assemble_batch(rows, step.mesh, step.microbatch_rows, step.microbatches))


def test_the_compiled_sampler_samples_what_the_engine_samples(step: StepPrograms, real: state.TrainState) -> None:
    """Each program takes the arrays that the one before it returns."""
    with jax.set_mesh(step.mesh):
        weights = step.engine.prepare_weights(real.params)
    request = Request([np.arange(1, 20, dtype=np.int32)] * 8, 2, CONFIG.grpo.sampling, seed=0, step=0)
    put = functools.partial(sharding.to_global_arrays, mesh=step.engine.mesh, rules=sharding.SAMPLE_RULES)
    resident = real, real.params
    arrivals = put(_arrivals(request, step.rollout_layout.prefix))
    slots = step.init_slots.compiled(resident)
    _assert_same(step.prefill.inputs[1:3], (slots, arrivals))
    index = jax.device_put(np.int32(0), sharding.replicated(step.engine.mesh))
    slots = step.prefill.compiled(resident, weights, slots, arrivals, index)
    halt_PG = put(np.zeros((8, 2), bool))
    _assert_same(step.decode.inputs[1:], (slots, halt_PG))
    _, chunk = step.decode.compiled(resident, weights, slots, halt_PG)
    completions = step.engine.rollout(weights, request)
    np.testing.assert_array_equal(chunk.tokens_PGC, completions.tokens_PGT)
    np.testing.assert_array_equal(chunk.length_PG, completions.length_PG)


def _arrivals(asked: Request, size: int) -> PrefillBatch:
    """The request's prompts, each in the slot of its number."""
    count = len(asked.prompts)
    tokens_RS = np.stack([np.pad(ids[:-1], (0, size - len(ids) + 1)) for ids in asked.prompts])
    length_R, last_R = (np.array(x, np.int32) for x in zip(*((len(p) - 1, p[-1]) for p in asked.prompts), strict=True))
    numbers_R = np.arange(count, dtype=np.int32)
    limit_RG = np.full((count, asked.samples), asked.sampling.max_tokens, np.int32)
    return PrefillBatch(tokens_RS, length_R, last_R, numbers_R, numbers_R, limit_RG)


def test_slots_and_prefill_batches_have_the_configs_sizes() -> None:
    few = dataclasses.replace(
        CONFIG, rollout=config.RolloutConfig(max_concurrent_prompts=4, prefill_batch=2, cache="int8", weights="int8")
    )
    step = _planned(few)
    _, slots, arrivals, _ = step.prefill.inputs
    assert slots.token_PG.shape == (4, 2) and arrivals.tokens_RS.shape == (2, 32)
    assert slots.cache.k[0].values.dtype == "int8" and step.sampler_params["layers"]["q"].values.dtype == "int8"


def test_the_planned_sampler_on_cpu_has_its_layers_apart() -> None:
    """Its layers lie one by one, in the weights as in the cache that decoding takes."""
    step = StepPrograms(CONFIG, jax.devices()[:4], hosts=1)
    slots, chunk = jax.eval_shape(step.decode.function, *step.decode.inputs)
    assert len(step.sampler_params["layers"]) == len(slots.cache.k) == step.model.num_layers > step.model.unroll
    assert chunk.tokens_PGC.shape == (8, 2, 8)


def test_the_compiled_update_does_what_training_does(step: StepPrograms, real: state.TrainState) -> None:
    segments = [Segment(np.arange(9), np.ones(8, np.float32), np.zeros(8, np.float32), 0, g) for g in range(2)]
    rows = packing.shared_prefix_rows([Group(np.arange(20), segments)] * 8, step.row_layout)
    rows_batch = batch.assemble_batch(rows, step.mesh, step.microbatch_rows, step.microbatches)
    copy = jax.tree.map(lambda leaf: leaf.copy(), real)
    reference = jax.tree.map(lambda leaf: leaf.copy(), real.params)
    with jax.set_mesh(step.mesh):
        want, _ = state.update(copy, rows_batch, grpo_loss, CONFIG.grpo, step.update_spec)
    train_state = dataclasses.replace(real, step=jax.device_put(real.step, sharding.replicated(step.mesh)))
    train_state = jax.tree.map(lambda leaf: leaf.copy(), train_state)
    got, _ = step.update.compiled(reference, train_state, rows_batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got.params, want.params)


def test_flops_are_those_of_all_devices(step: StepPrograms) -> None:
    tokens = 8 * (32 + 2 * 8)
    assert step.update.flops == pytest.approx(3 * step.score.flops)
    unembedding = step.model.vocab_size * step.model.hidden_size
    layers = qwen2.count_params(step.model) - unembedding - step.model.hidden_size * 100
    assert step.update.flops > 6 * (tokens * layers + 8 * 2 * 8 * unembedding)


def test_two_hosts_feed_twice_as_many_rows_at_a_time() -> None:
    double = _planned(hosts=2)
    assert (double.prompts, double.microbatch_rows, double.microbatches) == (8, 8, 1)


def test_without_kl_there_is_no_reference() -> None:
    cfg = dataclasses.replace(CONFIG, grpo=dataclasses.replace(CONFIG.grpo, kl=0.0))
    step = _planned(cfg)
    assert step.names == ("weights", "prefill", "decode", "update")
    assert step.update.resident is None


def test_packed_rows_take_the_length_that_the_config_gives() -> None:
    rows = config.RowsConfig(layout="packed", length=100, per_microbatch=4)
    step = _planned(dataclasses.replace(CONFIG, grpo=dataclasses.replace(CONFIG.grpo, rows=rows)))
    assert step.update_spec.layout is None
    assert step.update.inputs[1].rows.tokens.shape == (2, 4, 100)


def test_stop_tokens_and_their_number_are_qwens(shared_data: Path) -> None:
    qwen = tokenizer.load(shared_data / "qwen2_5_tokenizer")
    assert tokenizer.stop_ids(qwen) == STOP
    assert len(qwen) == NUM_TOKENS
