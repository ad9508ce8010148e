from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.distributed import sharding
from sqlr1_jax.distributed.checksums import checksums


def _sums(flat: np.ndarray, dtype: str) -> tuple[int, ...]:
    return tuple(np.asarray(checksums(jnp.asarray(flat.reshape(3, 4), dtype))).tolist())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_any_changed_or_swapped_element_changes_the_sums(dtype: str) -> None:
    flat = np.arange(12)
    others = []
    for i in range(11):
        swapped, changed = flat.copy(), flat.copy()
        swapped[[i, i + 1]] = swapped[[i + 1, i]]
        changed[i] = 100
        others += [swapped, changed]
    assert len({_sums(other, dtype) for other in [flat, *others]}) == 23


def test_flags_have_sums() -> None:
    assert _sums(np.arange(12) % 2 == 0, "bool") != _sums(np.arange(12) % 2 == 1, "bool")


def test_minus_zero_and_zero_are_different_and_scalars_have_sums() -> None:
    zero, minus = checksums([jnp.float32(0.0), jnp.float32(-0.0)])
    assert (zero != minus).any() and zero.shape == (2,)


def test_sums_do_not_depend_on_the_mesh() -> None:
    values = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2))
    spread = jax.device_put(values, sharding.named_sharding(mesh, ("embed", "heads"), sharding.TRAIN_RULES, (8, 4)))
    np.testing.assert_array_equal(checksums(spread), checksums(values))
