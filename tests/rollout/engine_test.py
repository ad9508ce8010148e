from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
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
from sqlr1_jax.rollout import prefixes, programs
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.rollout.prefixes import PrefixStore
from sqlr1_jax.rollout.request import Completions, Request
from sqlr1_jax.train import batch, state
from sqlr1_jax.train.interrupt import StepAbandoned
from testing import tiny_models
from testing.compilation import compiled_programs
from testing.naive_decoding import logits

pytestmark = pytest.mark.usefixtures("compiles_fast")

SAMPLING = config.SamplingConfig(temperature=1.1, max_tokens=9)
STOP_IDS = (2, 5, 9)
G = 3


@functools.cache
def _prompts() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.integers(2, 37, length).astype(np.int32) for length in (4, 9, 2, 7))


def _engine(
    mesh: jax.sharding.Mesh | None = None,
    model_config: qwen2.Qwen2Config = tiny_models.MODEL,
    unstack_layers: bool | None = None,
    **rollout_settings: Any,
) -> Engine:
    rollout_config = config.RolloutConfig(**rollout_settings)
    return Engine(model_config, mesh or tiny_models.one_device(), STOP_IDS, 10, rollout_config, unstack_layers)


def _eight_devices() -> jax.sharding.Mesh:
    training_mesh = sharding.make_mesh(config.MeshConfig(fsdp=2, tensor=4))
    return sharding.sampling_mesh(training_mesh, tiny_models.MODEL.num_kv_heads)


def _rollout(
    prompts: Sequence[np.ndarray], engine: Engine | None = None, samples: int = G, step: int = 2, **changed: Any
) -> Completions:
    """Completions of these prompts under random weights; `changed` are other fields of the request."""
    engine = engine or _engine()
    request = dataclasses.replace(Request(prompts, samples, SAMPLING, 7, step), **changed)
    return engine.rollout(engine.prepare_weights(tiny_models.random_params()), request)


@functools.cache
def _baseline() -> Completions:
    """All prompts at once on one device."""
    return _rollout(_prompts())


def _assert_same(completions: Completions, expected: Completions) -> None:
    np.testing.assert_array_equal(completions.tokens_PGT, expected.tokens_PGT)
    np.testing.assert_array_equal(completions.length_PG, expected.length_PG)
    np.testing.assert_array_equal(completions.stopped_PG, expected.stopped_PG)
    np.testing.assert_allclose(completions.logprobs_PGT, expected.logprobs_PGT, rtol=1e-4, atol=1e-5)


def _select(completions: Completions, prompts: slice | list[int], samples: int = G) -> Completions:
    fields: Any = (field[prompts, :samples] for field in completions)
    return Completions(*fields)


def test_the_samplers_bfloat16_weights_give_the_trainers_logits() -> None:
    """Both round matrices to bfloat16 for matmuls, and neither rounds norms or biases."""
    model_config = dataclasses.replace(tiny_models.MODEL, dtype="bfloat16")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: w + jnp.asarray(0.3 * rng.standard_normal(w.shape), w.dtype), tiny_models.random_params()
    )
    weights = _engine(model_config=model_config, unstack_layers=False).prepare_weights(params)
    assert weights["layers"]["q"].dtype == weights["embed"].dtype == jnp.bfloat16
    assert weights["layers"]["q_bias"].dtype == weights["final_norm"].dtype == jnp.float32
    ids = list(range(2, 20))
    np.testing.assert_array_equal(logits(weights, ids, model_config), logits(params, ids, model_config))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("weights_dtype", "dtype", "tolerance"), [("", "float32", 1e-5), ("int8", "float32", 1e-5), ("", "bfloat16", 1e-2)]
)
def test_unstacked_and_transposed_weights_give_the_logits_of_stacked_ones(
    tied: bool, weights_dtype: str, dtype: str, tolerance: float
) -> None:
    model_config, ids = dataclasses.replace(tiny_models.MODEL, tied=tied, dtype=dtype), list(range(2, 20))
    params = tiny_models.random_params(model_config)

    def prepare(unstack_layers: bool | None) -> tuple[Any, qwen2.Qwen2Config]:
        engine = _engine(None, model_config, unstack_layers, weights=weights_dtype)
        return engine.prepare_weights(params), engine.decode_config

    (unstacked, unrolled_config), (stacked, stacked_config) = prepare(None), prepare(False)
    assert isinstance(stacked["layers"], dict) and len(unstacked["layers"]) == model_config.num_layers
    assert isinstance(unstacked["layers"][0]["o"], QuantizedArray if weights_dtype else Transposed)
    assert isinstance(unstacked["embed" if tied else "unembed"], Transposed)
    expected, got = logits(stacked, ids, stacked_config)[:, :37], logits(unstacked, ids, unrolled_config)[:, :37]
    assert np.abs(expected - got).max() <= tolerance * np.abs(expected).max()


def test_stacked_and_unstacked_layers_sample_the_same() -> None:
    engine = _engine(unstack_layers=False)
    assert engine.decode_config.unroll == 1 and _engine().decode_config.unroll == tiny_models.MODEL.num_layers
    _assert_same(_rollout(_prompts(), engine), _baseline())


def test_a_rollout_repeats_bit_for_bit() -> None:
    for first, second in zip(_baseline(), _rollout(_prompts()), strict=True):
        assert first.tobytes() == second.tobytes()


def test_samples_do_not_depend_on_the_batch() -> None:
    """The same (seed, step, prompt index) in other batches: fewer prompts, more prompts, more samples."""
    _assert_same(_rollout(_prompts()[2:], index_P=[2, 3]), _select(_baseline(), slice(2, 4)))
    _assert_same(_rollout(_prompts()[3:], index_P=[3]), _select(_baseline(), slice(3, 4)))
    larger = _rollout((*_prompts(), *_prompts()[:2]), samples=G + 2)
    _assert_same(_select(larger, slice(0, 4)), _baseline())


def test_samples_do_not_depend_on_other_prompts_or_padding() -> None:
    two_changed = (*_prompts()[:1], *(prompt[::-1] for prompt in _prompts()[1:3]), _prompts()[3])
    _assert_same(_select(_rollout(two_changed), [0, 3]), _select(_baseline(), [0, 3]))
    more_padding = dataclasses.replace(_engine(), prompt_tokens=16)
    _assert_same(_rollout(_prompts(), more_padding), _baseline())


def test_seed_and_step_change_the_samples() -> None:
    tokens = [_rollout(_prompts(), seed=seed, step=step).tokens_PGT.tolist() for seed, step in ((7, 2), (7, 3), (8, 2))]
    assert tokens[0] == _baseline().tokens_PGT.tolist()
    assert tokens[0] != tokens[1] != tokens[2] != tokens[0]


@pytest.mark.parametrize("unstack_layers", [None, False], ids=["unstacked", "stacked"])
def test_eight_devices_sample_the_same_as_one(unstack_layers: bool | None) -> None:
    mesh = _eight_devices()
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}
    _assert_same(_rollout(_prompts(), _engine(mesh, unstack_layers=unstack_layers)), _baseline())


@pytest.mark.parametrize(
    "rollout_settings",
    [
        {"max_concurrent_prompts": 4, "prefill_batch": 4, "decode_steps_per_sync": 9},
        {"max_concurrent_prompts": 1, "decode_steps_per_sync": 2},
        {"max_concurrent_prompts": 2, "decode_steps_per_sync": 3},
        {"max_concurrent_prompts": 3, "prefill_batch": 2, "decode_steps_per_sync": 1},
        {"max_concurrent_prompts": 2, "prefill_batch": 1, "decode_steps_per_sync": 4, "prompt_buckets": 3},
    ],
    ids=str,
)
def test_samples_do_not_depend_on_slots_and_syncs(rollout_settings: dict[str, Any]) -> None:
    _assert_same(_rollout(_prompts(), _engine(**rollout_settings)), _baseline())


def test_a_sample_is_truncated_at_its_own_limit() -> None:
    limit_PG = np.random.default_rng(0).integers(1, 12, (4, G)).astype(np.int32)
    engine = _engine(max_concurrent_prompts=2, decode_steps_per_sync=4)
    completions = _rollout(_prompts(), engine, limit_PG=limit_PG)
    np.testing.assert_array_equal(completions.length_PG, np.minimum(_baseline().length_PG, limit_PG))
    for p, g in np.ndindex(completions.length_PG.shape):
        ids = completions.ids(p, g)
        np.testing.assert_array_equal(ids, _baseline().ids(p, g)[: limit_PG[p, g]])
        assert completions.stopped_PG[p, g] == (ids[-1] in STOP_IDS)


def test_on_finished_gets_each_sample_once_and_shorter_ones_earlier() -> None:
    reported: list[tuple[int, int, list[int]]] = []
    completions = _rollout(
        _prompts(),
        _engine(max_concurrent_prompts=2, decode_steps_per_sync=2),
        on_finished=lambda finished: reported.extend((p, g, ids.tolist()) for p, g, ids in finished),
    )
    every_sample = np.ndindex(completions.length_PG.shape)
    assert sorted(reported) == [(p, g, completions.ids(p, g).tolist()) for p, g in every_sample]
    length_PG = completions.length_PG[:2]  # of the prompts that enter the slots first
    rank_PG = np.zeros(length_PG.shape, int)
    for rank, (p, g, _) in enumerate(reported):
        if p < 2:
            rank_PG[p, g] = rank
    assert rank_PG.flat[np.argmin(length_PG)] < rank_PG.flat[np.argmax(length_PG)]


def test_stop_fn_ends_a_completion() -> None:
    """It ends each one after its first odd token. The device learns that one call late; what it sampled is dropped."""

    def after_odd_token(ids: np.ndarray) -> int | None:
        odd = np.flatnonzero(ids % 2 == 1)
        return int(odd[0]) + 1 if len(odd) else None

    engine = _engine(max_concurrent_prompts=2, decode_steps_per_sync=2)
    completions = _rollout(_prompts(), engine, stop_fn=after_odd_token)
    for p, g in np.ndindex(completions.length_PG.shape):
        unstopped = _baseline().ids(p, g)
        expected = unstopped[: after_odd_token(unstopped)]
        np.testing.assert_array_equal(completions.ids(p, g), expected)
        assert not completions.tokens_PGT[p, g, len(expected) :].any()
        assert not completions.logprobs_PGT[p, g, len(expected) :].any()
        assert completions.stopped_PG[p, g] == (expected[-1] % 2 == 1 or expected[-1] in STOP_IDS)


def test_rollout_does_not_compile_after_compile() -> None:
    engine = _engine(max_concurrent_prompts=4, prefill_batch=1, decode_steps_per_sync=4, prompt_buckets=2)
    assert len(engine.row_sizes(4 * (G + 1))) == 4
    weights, request = engine.prepare_weights(tiny_models.random_params()), Request(_prompts(), G + 1, SAMPLING, 7, 2)
    with compiled_programs() as by_compile:
        engine.compile(weights, request)
    assert {"jit(init_slots)", "jit(prefill)", "jit(decode_steps)"} <= set(by_compile)
    with compiled_programs() as by_rollout:
        engine.rollout(weights, request)
    assert not by_rollout


@pytest.mark.parametrize("rollout_settings", [{"weights": "int8"}, {"cache": "int8"}], ids=str)
def test_int8_logprobs_are_near_full_precision(rollout_settings: dict[str, Any]) -> None:
    """Compares the first greedy token of each sample, where both sampled the same."""
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    expected = _rollout(_prompts(), sampling=greedy)
    completions = _rollout(_prompts(), _engine(**rollout_settings), sampling=greedy)
    same_PG = completions.tokens_PGT[..., 0] == expected.tokens_PGT[..., 0]
    assert same_PG.mean() > 0.5
    gap = np.abs(completions.logprobs_PGT - expected.logprobs_PGT)[..., 0][same_PG]
    assert 0 < gap.max() < 0.1


@pytest.mark.parametrize(
    ("prefill_batch", "slots", "processes", "expected"),
    [(0, 8, 1, 8), (1, 8, 1, 4), (5, 8, 1, 8), (1, 8, 2, 4), (3, 16, 2, 8)],
)
def test_a_prefill_batch_is_a_multiple_of_the_data_parallel_size(
    prefill_batch: int, slots: int, processes: int, expected: int
) -> None:
    engine = _engine(_eight_devices(), prefill_batch=prefill_batch)
    assert engine.prefill_batch_size(slots, processes) == expected


@pytest.mark.parametrize("slots", [4, 3])  # 3 is rounded up to the four data-parallel groups
def test_eight_devices_refill_slots_like_one(slots: int) -> None:
    engine = _engine(_eight_devices(), max_concurrent_prompts=slots, prefill_batch=1, decode_steps_per_sync=3)
    prompts = (*_prompts(), *_prompts())
    _assert_same(_rollout(prompts, engine), _rollout(prompts))


def test_ids_end_with_the_stop_token_and_exclude_padding() -> None:
    completions = _baseline()
    assert completions.stopped_PG.any()
    assert not completions.stopped_PG.all()
    for p, g in np.ndindex(completions.length_PG.shape):
        ids = completions.ids(p, g)
        assert not np.isin(ids[:-1], STOP_IDS).any()
        assert (ids[-1] in STOP_IDS) == completions.stopped_PG[p, g]
        assert completions.stopped_PG[p, g] or len(ids) == 9


@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_the_trainers_and_the_samplers_logprobs_agree(layout: str) -> None:
    """The mean of exp|logp_train − logp_sample| is at most 1.0001 in float32, with rows that share their prompts."""
    completions = _baseline()

    def segment(p: int, g: int) -> Segment:
        ids, logprobs = completions.ids(p, g), completions.logprobs_PGT[p, g]
        return Segment([_prompts()[p][-1], *ids], np.ones(len(ids)), logprobs[: len(ids)], p, g)

    groups = [Group(prompt[:-1], [segment(p, g) for g in range(G)]) for p, prompt in enumerate(_prompts())]
    rows_config = config.RowsConfig(layout=layout, length=64)
    row_layout = batch.choose_layout(groups, rows_config)
    rows = batch.pack_groups(groups, row_layout, rows_config)
    train_batch = batch.assemble_batch(rows, tiny_models.one_device(), batch.Microbatches(4, 1))
    update_spec = state.UpdateSpec(tiny_models.MODEL, config.OptimizerConfig(), 1, row_layout, SAMPLING.temperature)
    train_logprob = np.asarray(state.compute_logprobs(tiny_models.random_params(), train_batch, update_spec))
    loss_mask = np.asarray(train_batch.rows.weight) > 0
    assert loss_mask.sum() == completions.length_PG.sum()
    gap = np.abs(train_logprob - np.asarray(train_batch.rows.logprob))[loss_mask]
    assert np.exp(gap).mean() <= 1.0001
    assert packing.packed_length(groups[0]) == len(_prompts()[0]) - 1 + completions.length_PG[0].sum()


def _record_prefixes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of every prefix that is prefilled from now on."""
    lengths: list[int] = []
    prefill_prefix = programs.prefill_prefix

    def recorded(params: Any, tokens_S: Any, length: Any, model_config: Any) -> Any:
        lengths.append(int(length))
        return prefill_prefix(params, tokens_S, length, model_config)

    monkeypatch.setattr(programs, "prefill_prefix", recorded)
    return lengths


def test_a_shared_prefix_is_prefilled_once_and_changes_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of two databases and one alone, refilled into two slots, against the same prompts prefilled whole."""
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 4)
    first, second = np.arange(2, 8, dtype=np.int32), np.arange(20, 25, dtype=np.int32)
    own = [[9, 10], [11, 12, 13], [14, 9, 3]]
    prompts = [np.concatenate([shared, np.asarray(ids, np.int32)]) for shared in (first, second) for ids in own]
    prompts.append(np.arange(30, 36, dtype=np.int32))
    lengths = [6, 6, 6, 5, 5, 5, 4]
    computed = _record_prefixes(monkeypatch)
    variants: list[dict[str, Any]] = [{}, {"cache": "int8"}, {"max_concurrent_prompts": 2, "prefill_batch": 2}]
    engines = [_engine(**settings) for settings in variants]
    engines.append(_engine(_eight_devices(), max_concurrent_prompts=4, prefill_batch=4))
    for engine in engines:
        whole = _rollout(prompts, engine)
        assert computed == []
        _assert_same(_rollout(prompts, engine, prefix_length_P=lengths), whole)
        assert computed == [6, 5]
        computed.clear()


def test_a_store_keeps_prefixes_between_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 4)
    shared, store, engine = np.arange(2, 8, dtype=np.int32), PrefixStore(), _engine()
    weights = engine.prepare_weights(tiny_models.random_params())
    computed = _record_prefixes(monkeypatch)
    for own in ([9, 10], [11, 12, 13]):
        prompts = [np.concatenate([shared, np.asarray(own, np.int32)])]
        whole = engine.rollout(weights, Request(prompts, G, SAMPLING, 7, 2))
        kept = engine.rollout(weights, Request(prompts, G, SAMPLING, 7, 2, prefix_length_P=[6]), store)
        _assert_same(kept, whole)
    assert computed == [6]


def test_each_sample_has_its_own_temperature() -> None:
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    expected = _rollout(_prompts(), samples=1, sampling=greedy)
    mixed = _rollout(_prompts(), samples=G + 1, temperatures=(SAMPLING.temperature,) * G + (0.0,))
    _assert_same(_select(mixed, slice(0, 4), G), _baseline())
    np.testing.assert_array_equal(mixed.tokens_PGT[:, G:], expected.tokens_PGT)


def test_all_tokens_so_far_are_reported_after_each_read() -> None:
    lengths: list[int] = []
    engine = _engine(decode_steps_per_sync=2)
    result = _rollout(_prompts(), engine, on_read=lambda completions: lengths.append(int(completions.length_PG.sum())))
    assert lengths == sorted(lengths) and len(lengths) > 1 and lengths[-1] == result.length_PG.sum()


def test_a_rollout_that_is_given_up_changes_no_later_one() -> None:
    engine = _engine(decode_steps_per_sync=2)

    def give_up(_: Completions) -> None:
        raise StepAbandoned

    with pytest.raises(StepAbandoned):
        _rollout(_prompts(), engine, on_read=give_up)
    _assert_same(_rollout(_prompts(), engine), _baseline())


def test_samples_that_are_done_are_left_out_and_change_no_other() -> None:
    """Twelve prompts in six slots: the number of unfinished samples passes through all row sizes."""
    prompts = [np.roll(prompt, i) for i in range(3) for prompt in _prompts()]
    settings: dict[str, Any] = {"max_concurrent_prompts": 6, "prefill_batch": 1, "decode_steps_per_sync": 1}
    sizes = _engine(**settings).row_sizes(6 * G)
    assert sizes == [5, 9, 14, 0] and _engine(unstack_layers=False).row_sizes(6 * G) == [0]
    limits = np.asarray([[1 + (5 * p + 3 * g) % 9 for g in range(G)] for p in range(12)], np.int32)
    all_rows = _rollout(prompts, _engine(unstack_layers=False, **settings), limit_PG=limits)
    with compiled_programs() as compiled:
        _assert_same(_rollout(prompts, _engine(**settings), limit_PG=limits), all_rows)
    assert len([name for name in compiled if "decode_steps" in name]) >= 3
