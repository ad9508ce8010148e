from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, PackedRows, RowLayout, Segment
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import attention, lora, qwen2
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.train import batch, optimizer, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.state import TrainState, UpdateSpec
from testing import closeness, naive_decoding, tiny_models, training_data
from testing.compilation import compiled_programs

pytestmark = pytest.mark.usefixtures("compiles_fast")

PROMPTS, SAMPLES = 8, 3
GROUPS = training_data.random_groups(PROMPTS, SAMPLES)
# The same completions with the log-probabilities of a reference model.
REFERENCE = [
    Group(prefix, [s._replace(logprob=np.asarray(s.logprob) - 0.5 * (i % 3)) for i, s in enumerate(segments)])
    for prefix, segments in GROUPS
]
LAYOUT = packing.smallest_layout(GROUPS, 8)
ADVANTAGE = np.random.default_rng(1).normal(size=(PROMPTS, SAMPLES)).astype(np.float32)
GRPO = config.GrpoConfig(kl=0.3, entropy=0.1)
TEMPERATURE = 0.7
ADAM = config.OptimizerConfig(learning_rate=0.01, weight_decay=0.1)

compute_gradients = jax.jit(state.compute_gradients, static_argnames=("loss_fn", "loss_config", "spec"))


@dataclasses.dataclass(frozen=True)
class BatchCase:
    """One of several layouts of the same completions on a mesh."""

    layout: RowLayout | None  # None: packed rows
    microbatches: batch.Microbatches
    shared: bool = True  # whether samples share a prefix
    eight_devices: bool = False

    def mesh(self) -> jax.sharding.Mesh:
        eight = config.MeshConfig(fsdp=4, tensor=2)
        return sharding.make_mesh(eight) if self.eight_devices else tiny_models.one_device()

    def batch(self, groups: Sequence[Group] = GROUPS) -> Batch:
        groups = groups if self.shared else packing.unshared(groups)
        rows = batch.pack_groups(groups, self.layout, config.RowsConfig(layout="packed", length=64))
        rows = rows._replace(weight=batch.loss_weights(rows, GRPO.aggregation))
        return batch.assemble_batch(rows, self.mesh(), self.microbatches, ADVANTAGE)

    def spec(self, model: Any = tiny_models.MODEL, steps: int = 10) -> UpdateSpec:
        return UpdateSpec(model, ADAM, steps, self.layout, TEMPERATURE)


CASES = {
    "shared prefix": BatchCase(LAYOUT, batch.Microbatches(8, 1)),
    "shared prefix, four microbatches": BatchCase(LAYOUT, batch.Microbatches(2, 4)),
    "packed, three microbatches, the last one not full": BatchCase(None, batch.Microbatches(2, 3)),
    "one row per sample": BatchCase(dataclasses.replace(LAYOUT, segments=1), batch.Microbatches(24, 1), shared=False),
    "shared prefix, eight devices": BatchCase(LAYOUT, batch.Microbatches(8, 1), eight_devices=True),
    "packed, two microbatches, eight devices": BatchCase(None, batch.Microbatches(4, 2), eight_devices=True),
}
NIGHTLY = "packed, two microbatches, eight devices"


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    with jax.enable_x64(dtype == "float64"):
        yield


def _model(dtype: str) -> Any:
    return tiny_models.in_float64() if dtype == "float64" else tiny_models.MODEL


def _sharded(params: Any, model: Any, mesh: jax.sharding.Mesh) -> Any:
    def place(spec: qwen2.ParamSpec, leaf: jax.Array) -> jax.Array:
        return jax.device_put(leaf, sharding.named_sharding(mesh, spec.logical_axes, sharding.TRAIN_RULES, spec.shape))

    return jax.tree.map(place, qwen2.abstract_params(model), params, is_leaf=qwen2.is_spec)


def _gradients(case: BatchCase, dtype: str) -> tuple[Any, float, dict[str, float]]:
    """GRPO's gradients, loss and metrics, from the code under test."""
    model, mesh = _model(dtype), case.mesh()
    with jax.set_mesh(mesh):
        params = _sharded(tiny_models.random_params(model), model, mesh)
        grpo_batch = dataclasses.replace(case.batch(), reference_MBT=case.batch(REFERENCE).rows.logprob)
        grads, value, sums = compute_gradients(params, grpo_batch, grpo_loss, GRPO, case.spec(model))
        return jax.device_get(grads), float(value), state.mean_metrics(sums)


@functools.partial(jax.jit, static_argnames=("model",))
@functools.partial(jax.value_and_grad, has_aux=True)
def _naive_loss(params: Any, sample: dict[str, jax.Array], model: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One completion's part of the loss, from its plain text, by the formulas of docs/method.md."""
    logp_TV, entropy_T = naive_decoding.naive_logprobs(params, sample["text"], model, TEMPERATURE)
    logp_T = jnp.take_along_axis(logp_TV, sample["text"][1:, None], 1)[:, 0]
    gap_T = sample["reference"] - logp_T
    ratio_T = jnp.exp(logp_T - sample["old"])
    policy_T = jnp.minimum(ratio_T * sample["advantage"], jnp.clip(ratio_T, 0.8, 1.2) * sample["advantage"])
    kl_T = jnp.exp(gap_T) - gap_T - 1
    loss_T = -policy_T + 0.3 * kl_T - 0.1 * entropy_T
    loss_mask_T = sample["weight"] > 0
    sums = {
        "kl": (kl_T * loss_mask_T).sum(),
        "entropy": (entropy_T * loss_mask_T).sum(),
        "ratio/mean": (ratio_T * loss_mask_T).sum(),
        "ratio/max": (ratio_T * loss_mask_T).max(),
        "logprob_mismatch": (jnp.exp(jnp.abs(logp_T - sample["old"])) * loss_mask_T).sum(),
    }
    return (loss_T * sample["weight"]).sum(), sums


@functools.cache
def _naive_gradients(dtype: str) -> tuple[Any, float, dict[str, float]]:
    """The same, computed per completion with its own copy of the prompt: no sharing, packing or microbatches."""
    with _precision(dtype):
        model = _model(dtype)
        params = tiny_models.random_params(model)
        tokens = sum(len(segment.weight) for _, _, segment in training_data.plain_texts(GROUPS))
        longest = max(len(text) for text, _, _ in training_data.plain_texts(GROUPS))
        grads, value = jax.tree.map(np.zeros_like, jax.device_get(params)), 0.0
        means: dict[str, float] = {}
        for (text, prefix, segment), (_, _, other) in zip(
            training_data.plain_texts(GROUPS), training_data.plain_texts(REFERENCE), strict=True
        ):
            end = len(text) - 1

            def padded(values: Any, prefix: int = prefix, end: int = end) -> np.ndarray:
                return np.concatenate([np.zeros(prefix), values, np.zeros(longest - 1 - end)]).astype(np.float32)

            sample = {
                "text": np.pad(text, (0, longest - len(text))),
                "old": padded(segment.logprob),
                "reference": padded(other.logprob),
                # Rounded to float32, as in the rows.
                "weight": padded(np.full(end - prefix, np.float32(1 / tokens))),
                "advantage": ADVANTAGE[segment.prompt, segment.sample],
            }
            (loss, sums), sample_grads = jax.device_get(_naive_loss(params, sample, model))
            grads, value = jax.tree.map(np.add, grads, sample_grads), value + float(loss)
            for name, total in sums.items():
                is_max, previous = name.endswith("/max"), means.get(name, 0.0)
                means[name] = max(previous, float(total)) if is_max else previous + float(total) / tokens
        return grads, value, means


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] * (name == NIGHTLY)) for name in CASES]
)
@pytest.mark.parametrize(("dtype", "tolerance"), closeness.PRECISIONS)
def test_gradients_do_not_depend_on_the_row_layout(name: str, dtype: str, tolerance: float) -> None:
    expected_grads, expected_value, expected_means = _naive_gradients(dtype)
    with _precision(dtype):
        grads, value, means = _gradients(CASES[name], dtype)
    assert closeness.relative_distance(grads, expected_grads) <= tolerance
    assert closeness.largest_leaf_error(grads, expected_grads) <= 1e-4
    assert value == pytest.approx(expected_value, rel=10 * tolerance)
    assert {name: means[name] for name in expected_means} == pytest.approx(expected_means, rel=1e-4)


@pytest.mark.parametrize("aggregation", ["sample", "constant"])
def test_gradients_of_other_aggregations_do_not_depend_on_the_row_layout(aggregation: str) -> None:
    """One microbatch against several packed ones: denominators are those of the whole batch."""

    def grads(layout: RowLayout | None, *microbatches: int) -> Any:
        rows = batch.pack_groups(GROUPS, layout, config.RowsConfig(layout="packed", length=48))
        rows = rows._replace(weight=batch.loss_weights(rows, aggregation, 16))
        one_batch = batch.assemble_batch(rows, tiny_models.one_device(), batch.Microbatches(*microbatches), ADVANTAGE)
        spec = UpdateSpec(tiny_models.MODEL, ADAM, 10, layout, TEMPERATURE)
        return compute_gradients(tiny_models.random_params(), one_batch, grpo_loss, GRPO, spec)[0]

    assert closeness.relative_distance(grads(LAYOUT, 8, 1), grads(None, 2, 4)) <= 1e-5


def test_compute_logprobs_gives_the_naive_log_probability_of_each_target() -> None:
    case = CASES["packed, three microbatches, the last one not full"]
    packed_batch = case.batch()
    logp_MBT = state.compute_logprobs(tiny_models.random_params(), packed_batch, case.spec())
    logp_BT = np.asarray(logp_MBT).reshape(-1, 64)
    rows = PackedRows(*(np.asarray(x).reshape(-1, 64) for x in packed_batch.rows))
    for text, prefix, segment in training_data.plain_texts(GROUPS):
        selected_BT = (rows.prompt == segment.prompt) & (rows.sample == segment.sample) & (rows.segment > 0)
        logp_TV, _ = naive_decoding.naive_logprobs(tiny_models.random_params(), text, temperature=TEMPERATURE)
        expected = [float(logp_TV[t, text[t + 1]]) for t in range(prefix, len(text) - 1)]
        np.testing.assert_allclose(logp_BT[selected_BT], expected, rtol=1e-4, atol=1e-4)


def _segment(tokens: range) -> Segment:
    count = len(tokens) - 1
    return Segment(list(tokens), np.ones(count), np.zeros(count), 0, 0)


@pytest.mark.parametrize("layout", [RowLayout(4, 2, 4), None], ids=["shared prefix", "packed"])
def test_a_token_attends_to_its_prefix_and_to_its_segment_up_to_itself(layout: RowLayout | None) -> None:
    """All tokens differ, so the embeddings with a gradient from one hidden state are the tokens it attends to."""
    model = dataclasses.replace(tiny_models.MODEL, tied=False)
    groups = [
        Group(list(range(2, 5)), [_segment(range(5, 9)), _segment(range(9, 13))]),
        Group(list(range(13, 16)), [_segment(range(16, 20)), _segment(range(20, 24))]),
    ]
    rows = batch.pack_groups(groups, layout, config.RowsConfig(length=24))

    def hidden_sum(params: Any, row: int, position: int) -> jax.Array:
        lengths = layout or RowLayout(0, 0, 0)
        mask = attention.Mask(rows.prefix, rows.segment, lengths.prefix, lengths.segment)
        return qwen2.forward(params, rows.tokens, rows.positions, mask, model)[0][row, position].sum()

    grads_of_hidden, params = jax.jit(jax.grad(hidden_sum)), tiny_models.random_params(model)
    checked = 0
    for row, position in zip(*np.nonzero(rows.prefix), strict=True):
        attended = np.flatnonzero(np.asarray(grads_of_hidden(params, row, position)["embed"]).any(1))
        group, number = groups[int(rows.tokens[row, position] > 12)], rows.segment[row, position]
        text = [*group.prefix, *(group.segments[number - 1].tokens if number else [])]
        assert attended.tolist() == text[: text.index(rows.tokens[row, position]) + 1]
        checked += 1
    assert checked == 2 * (3 + 3 + 3)


def _update(
    case: BatchCase, train_state: TrainState, update_batch: Batch, steps: int = 10
) -> tuple[TrainState, dict[str, float]]:
    with jax.set_mesh(case.mesh()):
        train_state, sums = state.update(train_state, update_batch, grpo_loss, GRPO, case.spec(steps=steps))
    return train_state, state.mean_metrics(sums)


def _initial_state(case: BatchCase) -> TrainState:
    with jax.set_mesh(case.mesh()):
        params = _sharded(tiny_models.random_params(), tiny_models.MODEL, case.mesh())
        return state.create_state(params, case.spec())


def test_an_update_is_one_optimizer_step_on_the_gradient() -> None:
    case, params = CASES["shared prefix"], tiny_models.random_params()
    tx = optimizer.make_optimizer(ADAM, tiny_models.MODEL, 10)
    grads = compute_gradients(params, case.batch(), grpo_loss, GRPO, case.spec())[0]
    changes, opt_state = tx.update(grads, tx.init(params), params)
    updated, means = _update(case, _initial_state(case), case.batch())
    assert int(updated.step) == 1
    assert closeness.relative_distance(updated.params, optax.apply_updates(params, changes)) < 1e-6
    assert closeness.relative_distance(optax.tree.get(updated.opt_state, "mu"), optax.tree.get(opt_state, "mu")) < 1e-5
    assert means["grad_norm"] == pytest.approx(float(optax.global_norm(grads)), rel=1e-5)
    assert means["lr"] == pytest.approx(0.01)
    assert means["not_finite"] == 0


@pytest.mark.parametrize(
    "name",
    [
        "shared prefix",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("shared prefix, eight devices", NIGHTLY)),
    ],
)
def test_with_lora_an_update_moves_the_adapters_alone_in_any_layout(name: str) -> None:
    """The reference is the gradient of all weights, merged, projected onto the adapters by the chain rule."""
    case, model = CASES[name], dataclasses.replace(tiny_models.MODEL, lora_rank=2, lora_alpha=4.0)
    params = tiny_models.random_params(model)
    merged, scale = lora.merge(params, model), 2.0
    full = compute_gradients(merged, CASES["shared prefix"].batch(), grpo_loss, GRPO, CASES["shared prefix"].spec())[0]
    expected = {
        matrix: scale * np.einsum("lmn,lrn->lmr", *(np.asarray(x).reshape(*s) for x, s in shapes))
        for matrix, adapter in params[lora.KEY].items()
        for shapes in [
            [
                (full["layers"][matrix], (2, np.prod(adapter["a"].shape[1:-1]), -1)),
                (adapter["b"], (2, 2, -1)),
            ]
        ]
    }
    with jax.set_mesh(case.mesh()):
        trained, frozen = lora.split(_sharded(params, model, case.mesh()))
        grads, *_ = compute_gradients(trained, case.batch(), grpo_loss, GRPO, case.spec(model), frozen)
        train_state = state.create_state(jax.tree.map(jnp.copy, trained), case.spec(model))  # it is donated
        updated, _ = state.update(train_state, case.batch(), grpo_loss, GRPO, case.spec(model), frozen)
    found = {matrix: np.asarray(grad["a"]).reshape(2, -1, 2) for matrix, grad in grads[lora.KEY].items()}
    assert closeness.relative_distance(found, expected) < 1e-5
    assert jax.tree.structure(updated.params) == jax.tree.structure({lora.KEY: params[lora.KEY]})  # type: ignore[operator]
    assert closeness.relative_distance(updated.params, {lora.KEY: params[lora.KEY]}) > 0
    moments = jax.tree.leaves(optax.tree.get(updated.opt_state, "mu"))
    assert sum(leaf.size for leaf in moments) == sum(leaf.size for leaf in jax.tree.leaves(params[lora.KEY]))


def _assert_equal(tree: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), jax.device_get(other))


@pytest.mark.parametrize("factor", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_no_weights_and_is_counted(factor: float) -> None:
    case = CASES["shared prefix"]
    train_state, _ = _update(case, _initial_state(case), case.batch())
    before = jax.device_get(train_state)
    bad_batch = case.batch()
    bad_batch = dataclasses.replace(bad_batch, advantage_MBT=bad_batch.advantage_MBT * factor)
    train_state, means = _update(case, train_state, bad_batch)
    _assert_equal((train_state.params, train_state.opt_state), (before.params, before.opt_state))
    assert int(train_state.step) == 2
    assert means["not_finite"] == 1
    train_state, means = _update(case, train_state, case.batch())
    assert means["not_finite"] == 0
    assert closeness.relative_distance(train_state.params, before.params) > 0


@pytest.mark.parametrize(
    ("name", "frozen", "skipped"),
    [
        ("adamw", (), "without rows"),
        ("muon", ("embed",), "not finite"),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in [
                ("adamw", (), "not finite"),
                ("adamw", ("embed",), "without rows"),
                ("muon", (), "without rows"),
            ]
        ),
    ],
)
def test_the_learning_rate_used_is_the_reported_one_after_skipped_steps(
    name: str, frozen: tuple[str, ...], skipped: str
) -> None:
    """Two of three steps are skipped; the third takes the rate of step 3 of 10, as an optimizer set to that rate."""
    case = CASES["shared prefix"]
    schedule = config.OptimizerConfig(name, learning_rate=0.01, schedule="linear", frozen=frozen)
    spec = dataclasses.replace(case.spec(), optimizer=schedule)
    no_rows = PackedRows(*(field[:0] for field in packing.shared_prefix_rows(GROUPS, LAYOUT)))
    empty, full = batch.assemble_batch(no_rows, case.mesh(), batch.Microbatches(8, 1)), case.batch()
    if skipped == "not finite":
        empty = dataclasses.replace(full, advantage_MBT=full.advantage_MBT * np.nan)
    train_state = state.create_state(tiny_models.random_params(), spec)
    for _ in range(2):
        train_state, _ = state.update(train_state, empty, grpo_loss, GRPO, spec)
    before = jax.device_get(train_state.params)
    train_state, sums = state.update(train_state, full, grpo_loss, GRPO, spec)
    rate = 0.01 * (1 - 0.9 * 2 / 10)
    assert state.mean_metrics(sums)["lr"] == pytest.approx(rate)
    constant = config.OptimizerConfig(name, learning_rate=rate, frozen=frozen)
    tx = optimizer.make_optimizer(constant, tiny_models.MODEL, 10)
    grads = compute_gradients(before, full, grpo_loss, GRPO, spec)[0]
    changes, _ = tx.update(grads, tx.init(before), before)
    moved = jax.tree.map(np.subtract, jax.device_get(train_state.params), before)
    assert closeness.relative_distance(moved, jax.device_get(changes)) < 1e-4


def test_schedules_by_step_keep_the_bits_of_optaxs_count_if_no_step_is_skipped() -> None:
    schedule = config.OptimizerConfig(learning_rate=0.01, schedule="cosine", warmup_steps=2, weight_decay=0.1)
    tx, params = optimizer.make_optimizer(schedule, tiny_models.MODEL, 6), tiny_models.random_params()
    by_count, by_step = tx.init(params), tx.init(params)
    update = jax.jit(tx.update)
    for step in range(6):
        changes, by_count = update(params, by_count, params)
        expected, by_step = update(params, optimizer.at_step(by_step, jnp.int32(step)), params)
        _assert_equal((changes, by_count), (expected, by_step))


def _loss_with_infinite_gradient(
    logp_BT: jax.Array, entropy_BT: jax.Array, microbatch: Batch, loss_config: None
) -> tuple[jax.Array, dict]:
    del entropy_BT, microbatch, loss_config
    return jnp.sqrt(logp_BT * 0).sum(), {}


def test_a_gradient_that_is_not_finite_under_a_finite_loss_changes_no_weights() -> None:
    case = CASES["shared prefix"]
    train_state, sums = state.update(
        _initial_state(case), case.batch(), _loss_with_infinite_gradient, None, case.spec()
    )
    assert state.mean_metrics(sums)["loss"] == 0
    assert state.mean_metrics(sums)["not_finite"] == 1
    _assert_equal(train_state.params, tiny_models.random_params())


def test_batch_without_rows_changes_no_weights_and_counts_as_finite() -> None:
    """As when all groups are filtered: neither weight decay nor the momentum of earlier steps changes the weights."""
    case = CASES["shared prefix"]
    train_state, _ = _update(case, _initial_state(case), case.batch())
    before = jax.device_get(train_state)
    no_rows = PackedRows(*(field[:0] for field in packing.shared_prefix_rows(GROUPS, LAYOUT)))
    train_state, means = _update(
        case, train_state, batch.assemble_batch(no_rows, case.mesh(), batch.Microbatches(8, 1))
    )
    _assert_equal((train_state.params, train_state.opt_state), (before.params, before.opt_state))
    assert int(train_state.step) == 2
    assert (means["not_finite"], means["loss"], means["grad_norm"]) == (0, 0, 0)
    assert "kl" not in means


@pytest.mark.parametrize(
    ("name", "expected_spec"),
    [("shared prefix", P()), ("shared prefix, eight devices", P(None, "fsdp", "tensor"))],
    ids=["one", "eight"],
)
def test_moments_are_sharded_like_their_weights_and_the_update_compiles_once(name: str, expected_spec: P) -> None:
    case = CASES[name]
    train_state = _initial_state(case)
    param_shardings = [leaf.sharding for leaf in jax.tree.leaves(train_state.params)]
    assert train_state.params["layers"]["q"].sharding.spec == expected_spec
    with compiled_programs() as compiled:
        for _ in range(3):
            moments = (optax.tree.get(train_state.opt_state, name) for name in ("mu", "nu"))
            for tree in (train_state.params, *moments):
                for leaf, param_sharding in zip(jax.tree.leaves(tree), param_shardings, strict=True):
                    assert leaf.sharding.is_equivalent_to(param_sharding, leaf.ndim)
            train_state, _ = _update(case, train_state, case.batch(), steps=11)
    assert compiled.count("jit(update)") == 1


def test_mean_metrics_divides_sums_by_counts_and_leaves_out_counts_of_zero() -> None:
    sums = {"a": (jnp.float32(6), jnp.float32(4)), "b": (jnp.float32(0), jnp.float32(0))}
    assert state.mean_metrics(sums) == {"a": 1.5}
