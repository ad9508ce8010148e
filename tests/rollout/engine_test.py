from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, Segment
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import qwen2
from sqlr1_jax.model.ops import Transposed
from sqlr1_jax.model.quantize import QuantizedArray
from sqlr1_jax.rollout.engine import Completions, Engine, Request
from sqlr1_jax.train import batch, state
from testing import tiny_models
from testing.compilation import compiled_programs
from testing.naive_decoding import logits

pytestmark = pytest.mark.usefixtures("compiles_fast")

SETTINGS = config.SamplingConfig(temperature=1.1, max_tokens=9)
STOP = (2, 5, 9)
G = 3


@functools.cache
def _prompts() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.integers(2, 37, length).astype(np.int32) for length in (4, 9, 2, 7))


def _engine(
    mesh: jax.sharding.Mesh | None = None,
    model: qwen2.Qwen2Config = tiny_models.MODEL,
    unstack_layers: bool | None = None,
) -> Engine:
    return Engine(model, mesh or tiny_models.one_device(), STOP, 10, config.RolloutConfig(), unstack_layers)


def _rolled(
    prompts: tuple[np.ndarray, ...], engine: Engine | None = None, samples: int = G, step: int = 2, **more: Any
) -> Completions:
    engine = engine or _engine()
    asked = Request(prompts, samples, SETTINGS, 7, step)
    return engine.rollout(engine.prepare_weights(tiny_models.random_params()), dataclasses.replace(asked, **more))


@functools.cache
def _whole() -> Completions:
    return _rolled(_prompts())


def _same(one: Completions, other: Completions) -> None:
    np.testing.assert_array_equal(one.tokens_PGT, other.tokens_PGT)
    np.testing.assert_array_equal(one.length_PG, other.length_PG)
    np.testing.assert_array_equal(one.stopped_PG, other.stopped_PG)
    np.testing.assert_allclose(one.logprobs_PGT, other.logprobs_PGT, rtol=1e-4, atol=1e-5)


def _part(made: Completions, places: slice | list[int], samples: int = G) -> Completions:
    fields: Any = (field[places, :samples] for field in made)
    return Completions(*fields)


def test_the_samplers_bfloat16_weights_give_the_trainers_logits() -> None:
    """Matrices are rounded for products by both; norms and biases by neither."""
    model = dataclasses.replace(tiny_models.MODEL, dtype="bfloat16")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: w + jnp.asarray(0.3 * rng.standard_normal(w.shape), w.dtype), tiny_models.random_params()
    )
    weights = _engine(model=model, unstack_layers=False).prepare_weights(params)
    assert weights["layers"]["q"].dtype == weights["embed"].dtype == jnp.bfloat16
    assert weights["layers"]["q_bias"].dtype == weights["final_norm"].dtype == jnp.float32
    ids = list(range(2, 20))
    np.testing.assert_array_equal(logits(weights, ids, model), logits(params, ids, model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "dtype", "near"), [("", "float32", 1e-5), ("int8", "float32", 1e-5), ("", "bfloat16", 1e-2)]
)
def test_weights_apart_and_transposed_on_cpu_give_the_same_logits(
    tied: bool, kind: str, dtype: str, near: float
) -> None:
    model, ids = dataclasses.replace(tiny_models.MODEL, tied=tied, dtype=dtype), list(range(2, 20))
    params = tiny_models.random_params(model)

    def made(unstack_layers: bool | None) -> tuple[Any, qwen2.Qwen2Config]:
        sampler = Engine(model, tiny_models.one_device(), STOP, 10, config.RolloutConfig(weights=kind), unstack_layers)
        return sampler.prepare_weights(params), sampler.model

    (apart, of_apart), (stacked, of_stacked) = made(None), made(False)
    assert isinstance(stacked["layers"], dict) and len(apart["layers"]) == model.num_layers
    assert isinstance(apart["layers"][0]["o"], QuantizedArray if kind else Transposed)
    assert isinstance(apart["embed" if tied else "unembed"], Transposed)
    plain, turned = (logits(w, ids, cfg)[:, :37] for w, cfg in ((stacked, of_stacked), (apart, of_apart)))
    assert np.abs(plain - turned).max() <= near * np.abs(plain).max()


def test_layers_in_a_loop_and_unstack_layers_sample_the_same() -> None:
    engine = _engine(unstack_layers=False)
    assert engine.model.unroll == 1 and _engine().model.unroll == tiny_models.MODEL.num_layers
    _same(_rolled(_prompts(), engine), _whole())


def test_a_rollout_repeats_bit_for_bit() -> None:
    for one, other in zip(_whole(), _rolled(_prompts()), strict=True):
        assert one.tobytes() == other.tobytes()


def test_samples_do_not_depend_on_the_batch_they_are_made_in() -> None:
    """The same (seed, step, prompt index) in another cut: alone, behind others, with more samples beside them."""
    _same(_rolled(_prompts()[2:], prompt_offset=2), _part(_whole(), slice(2, 4)))
    _same(_rolled(_prompts()[3:], prompt_offset=3), _part(_whole(), slice(3, 4)))
    more = _rolled((*_prompts(), *_prompts()[:2]), samples=G + 2)
    _same(_part(more, slice(0, 4)), _whole())


def test_samples_do_not_depend_on_their_neighbors_or_the_padding() -> None:
    others = (*_prompts()[:1], *(prompt[::-1] for prompt in _prompts()[1:3]), _prompts()[3])
    made = _rolled(others)
    _same(_part(made, [0, 3]), _part(_whole(), [0, 3]))
    wide = dataclasses.replace(_engine(), prompt_tokens=16)
    _same(_rolled(_prompts(), wide), _whole())


def test_seed_and_step_change_the_samples() -> None:
    tokens = [_rolled(_prompts(), seed=seed, step=step).tokens_PGT.tolist() for seed, step in ((7, 2), (7, 3), (8, 2))]
    assert tokens[0] == _whole().tokens_PGT.tolist()
    assert tokens[0] != tokens[1] != tokens[2] != tokens[0]


def test_eight_devices_sample_the_same_as_one() -> None:
    mesh = sharding.sampling_mesh(
        sharding.make_mesh(config.MeshConfig(fsdp=2, tensor=4)), tiny_models.MODEL.num_kv_heads
    )
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}
    _same(_rolled(_prompts(), _engine(mesh)), _whole())


def test_eight_devices_sample_the_same_as_one_with_layers_in_a_loop() -> None:
    mesh = sharding.sampling_mesh(
        sharding.make_mesh(config.MeshConfig(fsdp=2, tensor=4)), tiny_models.MODEL.num_kv_heads
    )
    _same(_rolled(_prompts(), _engine(mesh, unstack_layers=False)), _whole())


@pytest.mark.parametrize(
    "how",
    [
        {"max_concurrent_prompts": 4, "prefill_batch": 4, "decode_steps_per_sync": 9},
        {"max_concurrent_prompts": 1, "decode_steps_per_sync": 2},
        {"max_concurrent_prompts": 2, "decode_steps_per_sync": 3},
        {"max_concurrent_prompts": 3, "prefill_batch": 2, "decode_steps_per_sync": 1},
        {"max_concurrent_prompts": 2, "prefill_batch": 1, "decode_steps_per_sync": 4, "prompt_buckets": 3},
    ],
    ids=str,
)
def test_samples_do_not_depend_on_slots_chunks_or_who_is_filled_in_when(how: dict[str, Any]) -> None:
    engine = dataclasses.replace(_engine(), config=config.RolloutConfig(**how))
    _same(_rolled(_prompts(), engine), _whole())


def test_a_sample_is_cut_off_at_its_own_limit() -> None:
    limit_PG = np.random.default_rng(0).integers(1, 12, (4, G)).astype(np.int32)
    made = _rolled(
        _prompts(),
        dataclasses.replace(_engine(), config=config.RolloutConfig(max_concurrent_prompts=2, decode_steps_per_sync=4)),
        limit_PG=limit_PG,
    )
    np.testing.assert_array_equal(made.length_PG, np.minimum(_whole().length_PG, limit_PG))
    for p, g in np.ndindex(made.length_PG.shape):
        np.testing.assert_array_equal(made.ids(p, g), _whole().ids(p, g)[: limit_PG[p, g]])
        assert made.stopped_PG[p, g] == (made.ids(p, g)[-1] in STOP)


def test_finished_is_called_once_per_sample_as_it_ends() -> None:
    told: list[tuple[int, int, list[int]]] = []
    engine = dataclasses.replace(
        _engine(), config=config.RolloutConfig(max_concurrent_prompts=2, decode_steps_per_sync=2)
    )
    made = _rolled(
        _prompts(), engine, on_finished=lambda ended: told.extend((p, g, ids.tolist()) for p, g, ids in ended)
    )
    assert sorted(told) == [(p, g, made.ids(p, g).tolist()) for p, g in np.ndindex(made.length_PG.shape)]
    first = made.length_PG[:2]
    places = np.zeros(first.shape, int)
    for place, (p, g, _) in enumerate(told):
        if p < 2:
            places[p, g] = place
    assert places.flat[np.argmin(first)] < places.flat[np.argmax(first)]


def test_a_callers_ends_function_ends_a_completion() -> None:
    """Here: after an odd token; the device learns of it a chunk late, and what it made meanwhile is dropped."""

    def ends(ids: np.ndarray) -> int | None:
        odd = np.flatnonzero(ids % 2 == 1)
        return int(odd[0]) + 1 if len(odd) else None

    made = _rolled(
        _prompts(),
        dataclasses.replace(_engine(), config=config.RolloutConfig(max_concurrent_prompts=2, decode_steps_per_sync=2)),
        stop_fn=ends,
    )
    for p, g in np.ndindex(made.length_PG.shape):
        whole = _whole().ids(p, g)
        want = whole[: ends(whole)]
        np.testing.assert_array_equal(made.ids(p, g), want)
        assert not made.tokens_PGT[p, g, len(want) :].any() and not made.logprobs_PGT[p, g, len(want) :].any()
        assert made.stopped_PG[p, g] == (want[-1] % 2 == 1 or want[-1] in STOP)


def test_a_rollout_compiles_nothing_after_compile() -> None:
    engine = dataclasses.replace(
        _engine(),
        config=config.RolloutConfig(
            max_concurrent_prompts=2, prefill_batch=1, decode_steps_per_sync=4, prompt_buckets=2
        ),
    )
    weights, asked = engine.prepare_weights(tiny_models.random_params()), Request(_prompts(), G + 1, SETTINGS, 7, 2)
    with compiled_programs() as ahead:
        engine.compile(weights, asked)
    assert {"jit(empty)", "jit(fill)", "jit(chunk)"} <= set(ahead)
    with compiled_programs() as afterwards:
        engine.rollout(weights, asked)
    assert not afterwards


@pytest.mark.parametrize("how", [{"weights": "int8"}, {"cache": "int8"}], ids=str)
def test_int8_logprobs_are_near_full_precision(how: dict[str, Any]) -> None:
    """Log-probabilities of the same greedy tokens, where both took the same."""
    greedy = dataclasses.replace(SETTINGS, temperature=0.0)
    whole = _rolled(_prompts(), sampling=greedy)
    made = _rolled(_prompts(), dataclasses.replace(_engine(), config=config.RolloutConfig(**how)), sampling=greedy)
    same = made.tokens_PGT[..., 0] == whole.tokens_PGT[..., 0]
    assert same.mean() > 0.5
    gap = np.abs(made.logprobs_PGT - whole.logprobs_PGT)[..., 0][same]
    assert 0 < gap.max() < 0.1


@pytest.mark.parametrize(
    ("refill", "slots", "on", "want"),
    [(0, 8, 1, 8), (1, 8, 1, 4), (5, 8, 1, 8), (1, 8, 2, 4), (3, 16, 2, 8), (1, 2, 1, 2)],
)
def test_a_prefill_batch_is_a_multiple_of_the_meshs_rows(refill: int, slots: int, on: int, want: int) -> None:
    mesh = sharding.sampling_mesh(
        sharding.make_mesh(config.MeshConfig(fsdp=2, tensor=4)), tiny_models.MODEL.num_kv_heads
    )
    assert (
        dataclasses.replace(_engine(mesh), config=config.RolloutConfig(prefill_batch=refill)).refill(slots, on) == want
    )


def test_eight_devices_refill_slots_like_one() -> None:
    mesh = sharding.sampling_mesh(
        sharding.make_mesh(config.MeshConfig(fsdp=2, tensor=4)), tiny_models.MODEL.num_kv_heads
    )
    engine = dataclasses.replace(
        _engine(mesh), config=config.RolloutConfig(max_concurrent_prompts=4, prefill_batch=1, decode_steps_per_sync=3)
    )
    prompts = (*_prompts(), *_prompts())
    _same(_rolled(prompts, engine), _rolled(prompts))


def test_ids_end_with_the_stop_token_and_leave_the_padding_out() -> None:
    made = _whole()
    assert made.stopped_PG.any()
    assert not made.stopped_PG.all()
    for p, g in np.ndindex(made.length_PG.shape):
        ids = made.ids(p, g)
        assert not np.isin(ids[:-1], STOP).any()
        assert (ids[-1] in STOP) == made.stopped_PG[p, g]
        assert made.stopped_PG[p, g] or len(ids) == 9


@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_the_trainers_and_the_samplers_logprobs_agree(layout: str) -> None:
    """The mean of exp|logp_train − logp_sample| ≤ 1.005 in float32, over rows that share their prompts."""
    made = _whole()

    def segment(p: int, g: int) -> Segment:
        ids, logprobs = made.ids(p, g), made.logprobs_PGT[p, g]
        return Segment([_prompts()[p][-1], *ids], np.ones(len(ids)), logprobs[: len(ids)], p, g)

    groups = [Group(prompt[:-1], [segment(p, g) for g in range(G)]) for p, prompt in enumerate(_prompts())]
    cfg = config.RowsConfig(layout=layout, length=64)
    fixed = batch.choose_layout(groups, cfg)
    fed = batch.assemble_batch(batch.pack_groups(groups, fixed, cfg), tiny_models.one_device(), 4, 1)
    program = state.UpdateSpec(tiny_models.MODEL, config.OptimizerConfig(), 1, fixed, SETTINGS.temperature)
    trained = np.asarray(state.compute_logprobs(tiny_models.random_params(), fed, program))
    counted = np.asarray(fed.rows.weight) > 0
    assert counted.sum() == made.length_PG.sum()
    gap = np.abs(trained - np.asarray(fed.rows.logprob))[counted]
    assert np.exp(gap).mean() <= 1.0001
    assert packing.packed_length(groups[0]) == len(_prompts()[0]) - 1 + made.length_PG[0].sum()
