from __future__ import annotations

import functools
import itertools
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
BUCKETS = packing.Buckets(2, 2)
LAYOUTS = buckets.smaller_layouts(LAYOUT, BUCKETS)
GROUPS = [group for longest in (9, 17, 31) for group in training_data.random_groups(2, 3, longest, longest)]
GROUPS = [
    group._replace(segments=[s._replace(prompt=p) for s in group.segments]) for p, group in enumerate(GROUPS)
]  # fmt: skip
GRPO = config.GrpoConfig(kl=0.3, entropy=0.1)


def test_the_smallest_layout_that_fits_the_rows_is_chosen() -> None:
    assert [(layout.prefix, layout.segment) for layout in LAYOUTS] == list(itertools.product([24, 32], repeat=2))
    for group in GROUPS:
        index = int(buckets.smallest_layout_index(packing.shared_prefix_rows([group], LAYOUT), LAYOUT, BUCKETS))
        packing.shared_prefix_rows([group], LAYOUTS[index])
        chosen = LAYOUTS[index]
        for smaller in LAYOUTS:
            if smaller.prefix < chosen.prefix or smaller.segment < chosen.segment:
                with pytest.raises(packing.PackingError):
                    packing.shared_prefix_rows([group], smaller)
    assert int(buckets.smallest_layout_index(packing.shared_prefix_rows(GROUPS, LAYOUT), LAYOUT, BUCKETS)) == 3


def test_cropped_rows_equal_rows_of_the_smaller_layout_and_uncrop_inverts() -> None:
    rows, smaller_rows = (packing.shared_prefix_rows(GROUPS[:2], layout) for layout in (LAYOUT, LAYOUTS[0]))
    for field, expected in zip(rows, smaller_rows, strict=True):
        cropped = buckets.crop(jnp.asarray(field), LAYOUT, LAYOUTS[0])
        np.testing.assert_array_equal(cropped, expected)
        np.testing.assert_array_equal(buckets.uncrop(cropped, LAYOUT, LAYOUTS[0]), field)


def _batch(mesh: jax.sharding.Mesh, per_microbatch: int) -> batch.Batch:
    rows = batch.pack_groups(GROUPS, LAYOUT, config.RowsConfig())
    rows = rows._replace(weight=batch.loss_weights(rows, "token"))
    advantage_PG = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    return batch.assemble_batch(rows, mesh, batch.Microbatches(per_microbatch, 3), advantage_PG)


def _spec(model: Any, row_buckets: packing.Buckets) -> state.UpdateSpec:
    return state.UpdateSpec(model, config.OptimizerConfig(), 1, LAYOUT, 0.7, row_buckets)


def _gradients(mesh: jax.sharding.Mesh, row_buckets: packing.Buckets, model: Any) -> Any:
    """Gradients, objective and sums of the batch."""
    with jax.set_mesh(mesh):
        compute_gradients = jax.jit(
            functools.partial(
                state.compute_gradients, loss_fn=grpo_loss, loss_config=GRPO, spec=_spec(model, row_buckets)
            )
        )
        return jax.device_get(compute_gradients(tiny_models.random_params(model), _batch(mesh, 2)))


def test_rows_are_sorted_by_length_so_that_microbatches_need_different_layouts() -> None:
    rows, indices = _batch(tiny_models.one_device(), 2).rows, []
    for i in range(3):
        indices.append(int(buckets.smallest_layout_index(jax.tree.map(lambda x, i=i: x[i], rows), LAYOUT, BUCKETS)))
    assert indices == [0, 0, 3]


@pytest.mark.parametrize(("dtype", "tolerance"), closeness.PRECISIONS)
def test_length_buckets_do_not_change_gradients(dtype: str, tolerance: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        model = tiny_models.in_float64() if dtype == "float64" else tiny_models.MODEL
        (grads, value, sums), (expected_grads, expected_value, expected_sums) = (
            _gradients(tiny_models.one_device(), row_buckets, model) for row_buckets in (BUCKETS, packing.Buckets())
        )
    assert closeness.relative_distance(grads, expected_grads) <= tolerance
    assert closeness.largest_leaf_error(grads, expected_grads) <= 1e-4
    assert float(value) == pytest.approx(float(expected_value), rel=10 * tolerance)
    assert state.mean_metrics(sums) == pytest.approx(state.mean_metrics(expected_sums), rel=1e-5)


@pytest.mark.nightly
def test_eight_devices_choose_the_same_layouts_as_one() -> None:
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=2, tensor=4))
    grads = _gradients(mesh, BUCKETS, tiny_models.MODEL)[0]
    expected = _gradients(tiny_models.one_device(), packing.Buckets(), tiny_models.MODEL)[0]
    assert closeness.relative_distance(grads, expected) <= 1e-5


def test_length_buckets_do_not_move_log_probabilities() -> None:
    mesh, params = tiny_models.one_device(), tiny_models.random_params(tiny_models.MODEL)
    with jax.set_mesh(mesh):
        logp_MBT, expected_MBT = (
            state.compute_logprobs(params, _batch(mesh, 2), _spec(tiny_models.MODEL, row_buckets))
            for row_buckets in (BUCKETS, packing.Buckets())
        )
    assert int(np.count_nonzero(expected_MBT)) == sum(len(s.weight) for g in GROUPS for s in g.segments)
    np.testing.assert_allclose(logp_MBT, expected_MBT, rtol=1e-4, atol=1e-5)
