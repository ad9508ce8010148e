from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sqlr1_jax import config
from sqlr1_jax.distributed import sharding
from sqlr1_jax.distributed.sharding import SAMPLE_RULES, TRAIN_RULES
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import attention, qwen2
from testing import tiny_models

pytestmark = pytest.mark.usefixtures("compiles_fast")


def _mesh(fsdp: int = 4, tensor: int = 2) -> jax.sharding.Mesh:
    return sharding.make_mesh(config.MeshConfig(fsdp=fsdp, tensor=tensor), jax.devices()[: fsdp * tensor])


def test_minus_one_takes_the_remaining_devices() -> None:
    mesh = sharding.make_mesh(config.MeshConfig(replica=2, fsdp=-1, tensor=2), jax.devices()[:8])
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes", [(1, 3, 2), (-1, -1, 1), (16, -1, 1)])
def test_sizes_whose_product_is_not_the_number_of_devices_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"config\.mesh is .* which doesn't make 8 devices"):
        sharding.make_mesh(config.MeshConfig(*sizes), jax.devices()[:8])


def test_partition_specs_follow_the_rules() -> None:
    assert sharding.partition_spec(("layers", "embed", "heads", None), TRAIN_RULES) == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert sharding.partition_spec(("layers", "embed", "heads", None), SAMPLE_RULES) == PartitionSpec(
        None, None, "tensor"
    )


def test_an_indivisible_dimension_is_not_sharded() -> None:
    axes = ("embed", "kv_heads", None)
    assert sharding.partition_spec(axes, TRAIN_RULES, (16, 2, 4), _mesh()) == PartitionSpec("fsdp", "tensor")
    assert sharding.partition_spec(axes, TRAIN_RULES, (18, 2, 4), _mesh(2, 4)) == PartitionSpec("fsdp")


def test_a_mesh_axis_is_used_once() -> None:
    rules = {"rows": ("replica", "fsdp"), "embed": ("fsdp",)}
    assert sharding.partition_spec(("rows", "embed"), rules) == PartitionSpec(("replica", "fsdp"))


@pytest.mark.parametrize(("kv_heads", "shape"), [(2, (1, 4, 2)), (4, (1, 2, 4)), (1, (1, 8, 1)), (3, (1, 8, 1))])
def test_the_sampling_meshs_tensor_axis_divides_the_key_value_heads(kv_heads: int, shape: tuple[int, ...]) -> None:
    training_mesh = _mesh(2, 4)
    sampling_mesh = sharding.sampling_mesh(training_mesh, kv_heads)
    assert tuple(sampling_mesh.shape.values()) == shape
    assert sampling_mesh.devices.ravel().tolist() == training_mesh.devices.ravel().tolist()


def test_to_global_arrays_splits_rows_and_keeps_values() -> None:
    local = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3), "count": np.float32(7)}
    arrays = sharding.to_global_arrays(local, _mesh())
    assert arrays["tokens"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(arrays["tokens"], local["tokens"])
    assert float(arrays["count"]) == 7 and arrays["count"].sharding.is_fully_replicated


def test_constrain_does_nothing_without_a_mesh() -> None:
    x = jnp.ones((4, 3))
    assert sharding.constrain(x, ("rows", None), TRAIN_RULES) is x


def test_forward_on_eight_devices_equals_one() -> None:
    params = tiny_models.random_params()
    tokens_BT = np.random.default_rng(0).integers(2, 37, (8, 12)).astype(np.int32)
    positions_BT = np.tile(np.arange(12, dtype=np.int32), (8, 1))

    def hidden(params: qwen2.Params, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        mask = attention.causal_mask(tokens_BT, jnp.full(8, 12))
        return qwen2.forward(params, tokens_BT, positions_BT, mask, tiny_models.MODEL)[0]

    expected = jax.jit(hidden)(params, tokens_BT, positions_BT)
    specs = qwen2.abstract_params(tiny_models.MODEL)

    def shard(spec: qwen2.ParamSpec, x: jax.Array) -> jax.Array:
        return jax.device_put(x, sharding.named_sharding(_mesh(), spec.logical_axes, TRAIN_RULES, x.shape))

    with jax.set_mesh(_mesh()):
        sharded_params = jax.tree.map(shard, specs, params, is_leaf=qwen2.is_spec)
        result = jax.jit(hidden)(sharded_params, *sharding.to_global_arrays((tokens_BT, positions_BT), _mesh()))
    assert result.sharding.num_devices == 8
    assert np.abs(np.asarray(expected) - np.asarray(result)).max() < 1e-4 * np.abs(np.asarray(expected)).max()
