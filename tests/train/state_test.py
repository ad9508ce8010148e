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
from sqlr1_jax.model import attention, qwen2
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.train import batch, optimizer, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.state import TrainState, UpdateSpec
from testing import closeness, naive_decoding, tiny_models, training_data
from testing.compilation import compiled_programs

pytestmark = pytest.mark.usefixtures("compiles_fast")

PROMPTS, SAMPLES = 8, 3
GROUPS = training_data.random_groups(PROMPTS, SAMPLES)
# The same completions with other log-probabilities: those under a reference model.
REFERENCE = [
    Group(prefix, [s._replace(logprob=np.asarray(s.logprob) - 0.5 * (i % 3)) for i, s in enumerate(segments)])
    for prefix, segments in GROUPS
]
LAYOUT = packing.smallest_layout(GROUPS, 8)
ADVANTAGE = np.random.default_rng(1).normal(size=(PROMPTS, SAMPLES)).astype(np.float32)
GRPO = config.GrpoConfig(kl=0.3, entropy=0.1)
TEMPERATURE = 0.7
ADAM = config.OptimizerConfig(learning_rate=0.01, weight_decay=0.1)

gradients = jax.jit(state.compute_gradients, static_argnames=("loss", "settings", "program"))


def _eight() -> jax.sharding.Mesh:
    return sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2))


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to lay out the same completions."""

    layout: RowLayout | None
    per_microbatch: int
    microbatches: int
    shared: bool = True
    eight: bool = False

    def mesh(self) -> jax.sharding.Mesh:
        return _eight() if self.eight else tiny_models.one_device()

    def batch(self, groups: Sequence[Group] = GROUPS) -> Batch:
        groups = groups if self.shared else packing.unshared(groups)
        rows = batch.pack_groups(groups, self.layout, config.RowsConfig(layout="packed", length=64))
        rows = rows._replace(weight=batch.loss_weights(rows, GRPO.aggregation))
        return batch.assemble_batch(rows, self.mesh(), self.per_microbatch, self.microbatches, ADVANTAGE)

    def program(self, model: Any = tiny_models.MODEL) -> UpdateSpec:
        return UpdateSpec(model, ADAM, 10, self.layout, TEMPERATURE)


WAYS = {
    "padded": Way(LAYOUT, 8, 1),
    "padded, four microbatches": Way(LAYOUT, 2, 4),
    "packed, three microbatches, the last one not full": Way(None, 2, 3),
    "one row a sample": Way(dataclasses.replace(LAYOUT, segments=1), 24, 1, shared=False),
    "padded, eight devices": Way(LAYOUT, 8, 1, eight=True),
    "packed, two microbatches, eight devices": Way(None, 4, 2, eight=True),
}
NIGHTLY = "packed, two microbatches, eight devices"


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    with jax.enable_x64(dtype == "float64"):
        yield


def _model(dtype: str) -> Any:
    return tiny_models.in_float64() if dtype == "float64" else tiny_models.MODEL


def _sharded(params: Any, model: Any, mesh: jax.sharding.Mesh) -> Any:
    def one(spec: Any, leaf: jax.Array) -> jax.Array:
        return jax.device_put(leaf, sharding.named_sharding(mesh, spec.logical_axes, sharding.TRAIN_RULES, spec.shape))

    return jax.tree.map(one, state.qwen2.abstract_params(model), params, is_leaf=state.qwen2.is_spec)


def _computed(way: Way, dtype: str) -> tuple[Any, float, dict[str, float]]:
    """Gradient, loss and metrics of GRPO by the code under test."""
    model, mesh = _model(dtype), way.mesh()
    with jax.set_mesh(mesh):
        params = _sharded(tiny_models.random_params(model), model, mesh)
        fed = dataclasses.replace(way.batch(), reference_MBT=way.batch(REFERENCE).rows.logprob)
        slope, value, sums = gradients(params, fed, grpo_loss, GRPO, way.program(model))
        return jax.device_get(slope), float(value), state.mean_metrics(sums)


@functools.partial(jax.jit, static_argnames=("model",))
@functools.partial(jax.value_and_grad, has_aux=True)
def _naive_loss(params: Any, fed: dict[str, jax.Array], model: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One completion's share of the loss from one plain text, as sql-r1.md §1 writes it."""
    logp_TV, entropy_T = naive_decoding.naive_logprobs(params, fed["text"], model, TEMPERATURE)
    logp_T = jnp.take_along_axis(logp_TV, fed["text"][1:, None], 1)[:, 0]
    gap_T = fed["reference"] - logp_T
    ratio_T = jnp.exp(logp_T - fed["old"])
    policy_T = jnp.minimum(ratio_T * fed["advantage"], jnp.clip(ratio_T, 0.8, 1.2) * fed["advantage"])
    kl_T = jnp.exp(gap_T) - gap_T - 1
    loss_T = -policy_T + 0.3 * kl_T - 0.1 * entropy_T
    inside_T = fed["weight"] > 0
    sums = {
        "kl": (kl_T * inside_T).sum(),
        "entropy": (entropy_T * inside_T).sum(),
        "ratio/mean": (ratio_T * inside_T).sum(),
        "ratio/max": (ratio_T * inside_T).max(),
        "logprob_mismatch": (jnp.exp(jnp.abs(logp_T - fed["old"])) * inside_T).sum(),
    }
    return (loss_T * fed["weight"]).sum(), sums


@functools.cache
def _naive(dtype: str) -> tuple[Any, float, dict[str, float]]:
    """The same, completion by completion, each with a prompt of its own: nothing shared, packed or cut."""
    with _precision(dtype):
        model = _model(dtype)
        params = tiny_models.random_params(model)
        tokens = sum(len(segment.weight) for _, _, segment in training_data.plain_texts(GROUPS))
        longest = max(len(text) for text, _, _ in training_data.plain_texts(GROUPS))
        slope, value = jax.tree.map(np.zeros_like, jax.device_get(params)), 0.0
        means: dict[str, float] = {}
        for (text, prefix, segment), (_, _, other) in zip(
            training_data.plain_texts(GROUPS), training_data.plain_texts(REFERENCE), strict=True
        ):
            end = len(text) - 1

            def placed(values: Any, prefix: int = prefix, end: int = end) -> np.ndarray:
                return np.concatenate([np.zeros(prefix), values, np.zeros(longest - 1 - end)]).astype(np.float32)

            fed = {
                "text": np.pad(text, (0, longest - len(text))),
                "old": placed(segment.logprob),
                "reference": placed(other.logprob),
                # As single a precision as in the rows.
                "weight": placed(np.full(end - prefix, np.float32(1 / tokens))),
                "advantage": ADVANTAGE[segment.prompt, segment.sample],
            }
            (loss, sums), part = jax.device_get(_naive_loss(params, fed, model))
            slope, value = jax.tree.map(np.add, slope, part), value + float(loss)
            for name, total in sums.items():
                most = name.endswith("/max")
                before = means.get(name, 0.0)
                means[name] = max(before, float(total)) if most else before + float(total) / tokens
        return slope, value, means


@pytest.mark.parametrize("way", [pytest.param(name, marks=[pytest.mark.nightly] * (name == NIGHTLY)) for name in WAYS])
@pytest.mark.parametrize(("dtype", "close"), closeness.PRECISIONS)
def test_gradients_do_not_depend_on_how_rows_are_laid_out(way: str, dtype: str, close: float) -> None:
    naive_slope, naive_value, naive_means = _naive(dtype)
    with _precision(dtype):
        slope, value, means = _computed(WAYS[way], dtype)
    assert closeness.relative_distance(slope, naive_slope) <= close
    assert closeness.largest_leaf_error(slope, naive_slope) <= 1e-4
    assert value == pytest.approx(naive_value, rel=10 * close)
    assert {name: means[name] for name in naive_means} == pytest.approx(naive_means, rel=1e-4)


@pytest.mark.parametrize("aggregation", ["sample", "constant"])
def test_gradients_of_other_aggregations_do_not_depend_on_the_layout(aggregation: str) -> None:
    """One microbatch and packed microbatches, whose denominators are the whole batch's."""

    def slope(layout: RowLayout | None, per_microbatch: int, microbatches: int) -> Any:
        rows = batch.pack_groups(GROUPS, layout, config.RowsConfig(layout="packed", length=48))
        rows = rows._replace(weight=batch.loss_weights(rows, aggregation, 16))
        fed = batch.assemble_batch(rows, tiny_models.one_device(), per_microbatch, microbatches, ADVANTAGE)
        program = UpdateSpec(tiny_models.MODEL, ADAM, 10, layout, TEMPERATURE)
        return gradients(tiny_models.random_params(), fed, grpo_loss, GRPO, program)[0]

    assert closeness.relative_distance(slope(LAYOUT, 8, 1), slope(None, 2, 4)) <= 1e-5


def test_score_equals_the_naive_log_probabilities() -> None:
    way = WAYS["packed, three microbatches, the last one not full"]
    fed = way.batch()
    scored = np.asarray(state.compute_logprobs(tiny_models.random_params(), fed, way.program())).reshape(-1, 64)
    rows = PackedRows(*(np.asarray(x).reshape(-1, 64) for x in fed.rows))
    for text, prefix, segment in training_data.plain_texts(GROUPS):
        here = (rows.prompt == segment.prompt) & (rows.sample == segment.sample) & (rows.segment > 0)
        logp_TV, _ = naive_decoding.naive_logprobs(tiny_models.random_params(), text, temperature=TEMPERATURE)
        want = [float(logp_TV[t, text[t + 1]]) for t in range(prefix, len(text) - 1)]
        np.testing.assert_allclose(scored[here], want, rtol=1e-4, atol=1e-4)


def _alone(tokens: range) -> Segment:
    count = len(tokens) - 1
    return Segment(list(tokens), np.ones(count), np.zeros(count), 0, 0)


@pytest.mark.parametrize("layout", [RowLayout(4, 2, 4), None], ids=["padded", "packed"])
def test_a_token_of_a_row_sees_only_its_prefix_and_its_own_segment(layout: RowLayout | None) -> None:
    """All tokens differ, so the gradient of one hidden state by the embedding names what that place has seen."""
    model = dataclasses.replace(tiny_models.MODEL, tied=False)
    groups = [
        Group(list(range(2, 5)), [_alone(range(5, 9)), _alone(range(9, 13))]),
        Group(list(range(13, 16)), [_alone(range(16, 20)), _alone(range(20, 24))]),
    ]
    rows = batch.pack_groups(groups, layout, config.RowsConfig(length=24))

    def summed(params: Any, row: int, place: int) -> jax.Array:
        fixed = layout or RowLayout(0, 0, 0)
        mask = attention.Mask(rows.prefix, rows.segment, fixed.prefix, fixed.segment)
        return qwen2.forward(params, rows.tokens, rows.positions, mask, model)[0][row, place].sum()

    slope, params = jax.jit(jax.grad(summed)), tiny_models.random_params(model)
    looked_at = 0
    for row, place in zip(*np.nonzero(rows.prefix), strict=True):
        seen = np.flatnonzero(np.asarray(slope(params, row, place)["embed"]).any(1))
        group, number = groups[int(rows.tokens[row, place] > 12)], rows.segment[row, place]
        text = [*group.prefix, *(group.segments[number - 1].tokens if number else [])]
        assert seen.tolist() == text[: text.index(rows.tokens[row, place]) + 1]
        looked_at += 1
    assert looked_at == 2 * (3 + 3 + 3)


def _update(way: Way, at: TrainState, fed: Batch, steps: int = 10) -> tuple[TrainState, dict[str, float]]:
    with jax.set_mesh(way.mesh()):
        at, sums = state.update(at, fed, grpo_loss, GRPO, dataclasses.replace(way.program(), steps=steps))
    return at, state.mean_metrics(sums)


def _fresh(way: Way) -> TrainState:
    with jax.set_mesh(way.mesh()):
        return state.create_state(_sharded(tiny_models.random_params(), tiny_models.MODEL, way.mesh()), way.program())


def test_an_update_is_one_optimizer_step() -> None:
    way, params = WAYS["padded"], tiny_models.random_params()
    tx = optimizer.make_optimizer(ADAM, tiny_models.MODEL, 10)
    slope = gradients(params, way.batch(), grpo_loss, GRPO, way.program())[0]
    changes, moments = tx.update(slope, tx.init(params), params)
    at, means = _update(way, _fresh(way), way.batch())
    assert int(at.step) == 1
    assert closeness.relative_distance(at.params, optax.apply_updates(params, changes)) < 1e-6
    assert closeness.relative_distance(optax.tree.get(at.opt_state, "mu"), optax.tree.get(moments, "mu")) < 1e-5
    assert means["grad_norm"] == pytest.approx(float(optax.global_norm(slope)), rel=1e-5)
    assert means["lr"] == pytest.approx(0.01)
    assert means["not_finite"] == 0


def _same(tree: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), jax.device_get(other))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_step_changes_nothing_and_is_counted(bad: float) -> None:
    way = WAYS["padded"]
    at, _ = _update(way, _fresh(way), way.batch())
    before = jax.device_get(at)
    fed = way.batch()
    at, means = _update(way, at, dataclasses.replace(fed, advantage_MBT=fed.advantage_MBT * bad))
    _same((at.params, at.opt_state), (before.params, before.opt_state))
    assert int(at.step) == 2
    assert means["not_finite"] == 1
    at, means = _update(way, at, way.batch())
    assert means["not_finite"] == 0
    assert closeness.relative_distance(at.params, before.params) > 0


def _infinite_slope(logp_BT: jax.Array, entropy_BT: jax.Array, micro: Batch, settings: None) -> tuple[jax.Array, dict]:
    del entropy_BT, micro, settings
    return jnp.sqrt(logp_BT * 0).sum(), {}


def test_a_non_finite_gradient_of_a_finite_loss_changes_nothing() -> None:
    way = WAYS["padded"]
    at, sums = state.update(_fresh(way), way.batch(), _infinite_slope, None, way.program())
    assert state.mean_metrics(sums)["loss"] == 0
    assert state.mean_metrics(sums)["not_finite"] == 1
    _same(at.params, tiny_models.random_params())


def test_an_empty_batch_changes_nothing() -> None:
    """All groups filtered: not even weight decay or the momentum of earlier steps moves anything."""
    way = WAYS["padded"]
    at, _ = _update(way, _fresh(way), way.batch())
    before = jax.device_get(at)
    nothing = PackedRows(*(field[:0] for field in packing.shared_prefix_rows(GROUPS, LAYOUT)))
    at, means = _update(way, at, batch.assemble_batch(nothing, way.mesh(), 8, 1))
    _same((at.params, at.opt_state), (before.params, before.opt_state))
    assert int(at.step) == 2
    assert (means["not_finite"], means["loss"], means["grad_norm"]) == (0, 0, 0)
    assert "kl" not in means


@pytest.mark.parametrize(
    ("name", "place"), [("padded", P()), ("padded, eight devices", P(None, "fsdp", "tensor"))], ids=["one", "eight"]
)
def test_moments_are_sharded_like_weights_and_update_compiles_once(name: str, place: P) -> None:
    way = WAYS[name]
    at = _fresh(way)
    homes = [leaf.sharding for leaf in jax.tree.leaves(at.params)]
    assert at.params["layers"]["q"].sharding.spec == place
    with compiled_programs() as compiled:
        for _ in range(3):
            for tree in (at.params, optax.tree.get(at.opt_state, "mu"), optax.tree.get(at.opt_state, "nu")):
                for leaf, home in zip(jax.tree.leaves(tree), homes, strict=True):
                    assert leaf.sharding.is_equivalent_to(home, leaf.ndim)
            at, _ = _update(way, at, way.batch(), steps=11)
    assert compiled.count("jit(update)") == 1


def test_means_leave_out_metrics_without_a_count() -> None:
    sums = {"a": (jnp.float32(6), jnp.float32(4)), "b": (jnp.float32(0), jnp.float32(0))}
    assert state.mean_metrics(sums) == {"a": 1.5}
