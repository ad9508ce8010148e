from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import RowLayout
from sqlr1_jax.distributed import sharding
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.train import batch, buckets, state
from testing import closeness, tiny_models, training_data

pytestmark = pytest.mark.usefixtures("compiles_fast")

LAYOUT = RowLayout(32, 3, 32)
LADDER = packing.layout_ladder(LAYOUT, 4)
GROUPS = [group for longest in (9, 17, 31) for group in training_data.random_groups(2, 3, longest, longest)]
GROUPS = [
    group._replace(segments=[s._replace(prompt=p) for s in group.segments]) for p, group in enumerate(GROUPS)
]  # fmt: skip
GRPO = config.GrpoConfig(kl=0.3, entropy=0.1)


def test_the_smallest_layout_that_fits_is_chosen() -> None:
    assert [layout.segment for layout in LADDER] == [16, 24, 32]
    for group in GROUPS:
        chosen = int(buckets.smallest_layout_index(packing.shared_prefix_rows([group], LAYOUT), LAYOUT, LADDER))
        packing.shared_prefix_rows([group], LADDER[chosen])
        if chosen:
            with pytest.raises(packing.PackingError):
                packing.shared_prefix_rows([group], LADDER[chosen - 1])
    assert int(buckets.smallest_layout_index(packing.shared_prefix_rows(GROUPS, LAYOUT), LAYOUT, LADDER)) == 2


def test_cut_and_restore_convert_between_layouts() -> None:
    rows, smaller = (packing.shared_prefix_rows(GROUPS[:2], layout) for layout in (LAYOUT, LADDER[0]))
    for field, want in zip(rows, smaller, strict=True):
        cut = buckets.crop(jnp.asarray(field), LAYOUT, LADDER[0])
        np.testing.assert_array_equal(cut, want)
        np.testing.assert_array_equal(buckets.uncrop(cut, LAYOUT, LADDER[0]), field)


def _fed(mesh: jax.sharding.Mesh, per_microbatch: int) -> batch.Batch:
    rows = batch.pack_groups(GROUPS, LAYOUT, config.RowsConfig())
    rows = rows._replace(weight=batch.loss_weights(rows, "token"))
    advantage_PG = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    return batch.assemble_batch(rows, mesh, per_microbatch, 3, advantage_PG)


def _computed(mesh: jax.sharding.Mesh, count: int, model: Any, scored: bool = False) -> Any:
    program = state.UpdateSpec(model, config.OptimizerConfig(), 1, LAYOUT, 0.7, count)
    with jax.set_mesh(mesh):
        fed = _fed(mesh, 2)
        if scored:
            return state.compute_logprobs(tiny_models.random_params(model), fed, program)
        slope = jax.jit(functools.partial(state.compute_gradients, loss=grpo_loss, settings=GRPO, program=program))
        return jax.device_get(slope(tiny_models.random_params(model), fed))


def test_sorted_rows_give_microbatches_different_layouts() -> None:
    tokens, chosen = _fed(tiny_models.one_device(), 2).rows, []
    for i in range(3):
        chosen.append(int(buckets.smallest_layout_index(jax.tree.map(lambda x, i=i: x[i], tokens), LAYOUT, LADDER)))
    assert chosen == [0, 1, 2]


@pytest.mark.parametrize(("dtype", "close"), closeness.PRECISIONS)
def test_gradients_equal_those_of_the_longest_layout(dtype: str, close: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        model = tiny_models.in_float64() if dtype == "float64" else tiny_models.MODEL
        (slope, value, sums), (want, want_value, want_sums) = (
            _computed(tiny_models.one_device(), count, model) for count in (4, 1)
        )
    assert closeness.relative_distance(slope, want) <= close
    assert closeness.largest_leaf_error(slope, want) <= 1e-4
    assert float(value) == pytest.approx(float(want_value), rel=10 * close)
    assert state.mean_metrics(sums) == pytest.approx(state.mean_metrics(want_sums), rel=1e-5)


@pytest.mark.nightly
def test_eight_devices_give_the_same_gradients() -> None:
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=2, tensor=4))
    slope, want = _computed(mesh, 4, tiny_models.MODEL)[0], _computed(tiny_models.one_device(), 1, tiny_models.MODEL)[0]
    assert closeness.relative_distance(slope, want) <= 1e-5


def test_scores_are_restored_to_the_longest_layout() -> None:
    scored, want = (_computed(tiny_models.one_device(), count, tiny_models.MODEL, scored=True) for count in (4, 1))
    assert int(np.count_nonzero(want)) == sum(len(s.weight) for g in GROUPS for s in g.segments)
    np.testing.assert_allclose(scored, want, rtol=1e-4, atol=1e-5)
