from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import attention
from sqlr1_jax.model.attention import Mask, attend
from testing.compilation import largest_mask

pytestmark = pytest.mark.usefixtures("compiles_fast")

B, H, K, h = 2, 6, 2, 4
PREFIX, SEGMENT, SEGMENTS = 6, 5, 3
T = PREFIX + SEGMENTS * SEGMENT


def shared_prefix_ids() -> tuple[np.ndarray, np.ndarray]:
    """Prefix and segment ids of two rows with padding after each part; the second row's last segment is all padding."""
    prefix, segment = np.zeros((2, B, T), np.int32)
    for row, (prefix_length, segment_lengths) in enumerate([(6, [5, 2, 4]), (3, [1, 5, 0])]):
        prefix[row, :prefix_length] = 1
        for i, length in enumerate(segment_lengths):
            start = PREFIX + i * SEGMENT
            prefix[row, start : start + length] = 1
            segment[row, start : start + SEGMENT] = i + 1
    return prefix, segment


def packed_ids() -> tuple[np.ndarray, np.ndarray]:
    """Two groups in the first row, one in the second; both rows end with padding."""
    prefix = np.array([[1] * 9 + [2] * 8 + [0] * 4, [1] * 13 + [0] * 8], np.int32)
    first_row = [0, 0, 0, 1, 1, 1, 2, 2, 3] + [0, 0, 1, 1, 1, 2, 2, 2] + [0] * 4
    return prefix, np.array([first_row, [0] * 4 + [1] * 5 + [2] * 4 + [0] * 8], np.int32)


def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    q_BTHh, k_BTKh, v_BTKh = (jnp.asarray(2 * rng.standard_normal((B, T, heads, h))) for heads in (H, K, K))
    return q_BTHh, k_BTKh, v_BTKh


def naive(q: np.ndarray, k: np.ndarray, v: np.ndarray, prefix: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Attention by loops over rows, queries and heads."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, H):
        seen = [s for s in range(t + 1) if prefix[b, s] == prefix[b, t] > 0 and segment[b, s] in (0, segment[b, t])]
        if seen:
            scores = k[b, seen, n // (H // K)] @ q[b, t, n] / np.sqrt(h)
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ v[b, seen, n // (H // K)]
    return out


@pytest.mark.parametrize("query_chunk", [0, 4, 100])
@pytest.mark.parametrize("ids", [shared_prefix_ids, packed_ids])
def test_general_path_matches_naive_loops(ids: Callable[[], tuple[np.ndarray, np.ndarray]], query_chunk: int) -> None:
    prefix, segment = ids()
    with jax.enable_x64(True):
        actual = attend(*inputs(), Mask(jnp.asarray(prefix), jnp.asarray(segment)), query_chunk)
        q, k, v = (np.asarray(x) for x in inputs())
        expected = naive(q, k, v, prefix, segment)
    assert np.abs(np.asarray(actual) - expected)[prefix > 0].max() < 1e-12


@pytest.mark.parametrize("query_chunk", [0, 2, 100])
def test_shared_prefix_path_matches_general_path(query_chunk: int) -> None:
    prefix, segment = (jnp.asarray(x) for x in shared_prefix_ids())
    valid = (prefix > 0)[..., None, None]

    @jax.jit
    def outputs(mask: Mask, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.where(valid, attend(q, k, v, mask, 0 if not mask.segment_width else query_chunk), 0)

    def gradients(mask: Mask) -> tuple[jax.Array, ...]:
        return jax.grad(lambda *qkv: jnp.sin(outputs(mask, *qkv)).sum(), argnums=(0, 1, 2))(*inputs())

    with jax.enable_x64(True):
        masks = Mask(prefix, segment, PREFIX, SEGMENT), Mask(prefix, segment)
        actual, expected = (outputs(mask, *inputs()) for mask in masks)
        assert jnp.abs(actual - expected).max() < 1e-12
        for actual, expected in zip(*map(gradients, masks), strict=True):
            assert jnp.abs(actual - expected).max() < 1e-12 and jnp.abs(expected).max() > 0.1


def array_sizes(jaxpr: jax.extend.core.Jaxpr) -> list[int]:
    """Elements of every intermediate of a program, inner programs included."""
    avals: list[Any] = [variable.aval for eqn in jaxpr.eqns for variable in eqn.outvars]
    sizes = [aval.size for aval in avals]
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            sizes += array_sizes(inner.jaxpr) if hasattr(inner, "jaxpr") else []
    return sizes


def largest_array(mask: Mask, query_chunk: int = 0) -> int:
    program = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, mask, query_chunk))(*inputs())
    return max(array_sizes(program.jaxpr))


def test_shared_prefix_rows_need_no_scores_of_all_pairs() -> None:
    prefix, segment = (jnp.asarray(x) for x in shared_prefix_ids())
    assert largest_array(Mask(prefix, segment)) >= B * H * T * T
    assert largest_array(Mask(prefix, segment, PREFIX, SEGMENT)) < B * H * T * T / 2


def test_query_chunk_bounds_the_scores() -> None:
    prefix, segment = (jnp.asarray(x) for x in packed_ids())
    assert largest_array(Mask(prefix, segment), query_chunk=4) < B * H * T * T / 3


def test_query_that_sees_no_key_stays_finite() -> None:
    mask = Mask(jnp.zeros((B, T), jnp.int32), jnp.zeros((B, T), jnp.int32))
    assert bool(jnp.isfinite(attend(*inputs(), mask)).all())


def test_causal_mask_hides_padding() -> None:
    mask = attention.causal_mask(jnp.zeros((2, 4), jnp.int32), jnp.array([2, 4]))
    assert mask.prefix_BT.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]] and not mask.segment_BT.any()


SHARED_PREFIX, PLAIN, PACKED = (4096, 2048), (4096, 0), (0, 0)  # prefix and segment widths


@pytest.mark.parametrize(
    ("requested", "platform", "widths", "dtype", "head_size", "chosen"),
    [
        ("auto", "cpu", SHARED_PREFIX, "bfloat16", 128, "xla"),
        ("auto", "tpu", SHARED_PREFIX, "bfloat16", 128, "splash"),
        ("auto", "tpu", SHARED_PREFIX, "float32", 64, "splash"),
        ("auto", "tpu", PLAIN, "bfloat16", 64, "splash"),
        ("auto", "tpu", PACKED, "bfloat16", 128, "xla"),
        ("auto", "tpu", SHARED_PREFIX, "bfloat16", 32, "xla"),  # would leave most of a register's lanes empty
        ("auto", "tpu", (64, 0), "bfloat16", 128, "xla"),  # shorter than a block
        ("auto", "gpu", SHARED_PREFIX, "bfloat16", 128, "cudnn"),
        ("auto", "gpu", PLAIN, "float16", 64, "cudnn"),
        ("auto", "gpu", SHARED_PREFIX, "float32", 128, "xla"),
        ("auto", "gpu", (4097, 601), "bfloat16", 128, "xla"),  # cuDNN's masks have even sides
        ("auto", "gpu", PACKED, "bfloat16", 128, "xla"),
        ("xla", "tpu", SHARED_PREFIX, "bfloat16", 128, "xla"),
        ("splash", "cpu", SHARED_PREFIX, "float32", 4, "splash"),
        ("splash", "tpu", PACKED, "bfloat16", 128, "xla"),
        ("cudnn", "gpu", SHARED_PREFIX, "bfloat16", 128, "cudnn"),
    ],
)
def test_auto_chooses_a_backend_by_mesh_platform_and_row_shape(
    requested: str,
    platform: str,
    widths: tuple[int, int],
    dtype: str,
    head_size: int,
    chosen: str,
) -> None:
    device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=1, platform=platform)
    mesh = jax.sharding.AbstractMesh((1,), ("rows",), abstract_device=device)
    length = widths[0] + 8 * widths[1] or 4096
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    queries = jax.ShapeDtypeStruct((1, length, 14, head_size), jnp.dtype(dtype))
    with jax.sharding.use_abstract_mesh(mesh):
        backend = attention.choose_backend(requested, queries, Mask(ids, ids, *widths))  # type: ignore[arg-type]
    assert backend == chosen


def test_requested_backend_is_used() -> None:
    prefix, segment = (jnp.asarray(x) for x in shared_prefix_ids())
    mask, qkv = Mask(prefix, segment, PREFIX, SEGMENT), tuple(x.astype(jnp.float32) for x in inputs())
    with_splash = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, mask, backend="splash"))(*qkv)
    assert "pallas_call" in str(with_splash)
    assert "pallas_call" not in str(jax.make_jaxpr(lambda q, k, v: attend(q, k, v, mask))(*qkv))


def test_auto_chooses_xla_on_cpu_with_and_without_a_mesh() -> None:
    ids = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    queries = jax.ShapeDtypeStruct((1, 4096, 14, 128), jnp.bfloat16)
    mask = Mask(ids, ids, *PLAIN)  # type: ignore[arg-type]
    assert attention.choose_backend("auto", queries, mask) == "xla"  # type: ignore[arg-type]
    with jax.set_mesh(sharding.make_mesh(config.MeshConfig())):
        assert attention.choose_backend("auto", queries, mask) == "xla"  # type: ignore[arg-type]


def test_mask_of_all_pairs_is_not_hoisted_out_of_the_layer_loop() -> None:
    length, chunk = 256, 32
    q_BTHh, k_BTKh = jnp.ones((1, length, H, h)), jnp.ones((1, length, K, h))
    ones_BT = jnp.ones((1, length), jnp.int32)

    def layers(q_BTHh: jax.Array) -> jax.Array:
        def layer(q_BTHh: jax.Array, _: None) -> tuple[jax.Array, None]:
            return attend(q_BTHh, k_BTKh, k_BTKh, Mask(ones_BT, ones_BT), chunk), None

        return jax.lax.scan(layer, q_BTHh, None, 2)[0].sum()

    assert largest_mask(jax.grad(layers), q_BTHh) <= H * chunk * length


def test_unknown_backend_is_named_in_the_error() -> None:
    mask = attention.causal_mask(jnp.zeros((B, T), jnp.int32), jnp.array([T, T]))
    with pytest.raises(ValueError, match="'flash' is unknown"):
        attend(*inputs(), mask, backend="flash")


@pytest.mark.parametrize("query_chunk", [0, 2])
def test_rows_that_continue_a_prefix_attend_as_if_they_held_it(query_chunk: int) -> None:
    """Against whole rows [prefix | own tokens], with padding after the prefix."""
    rng, S, length, rows, own = np.random.default_rng(1), 6, 4, 3, 5
    q, k, v = (jnp.asarray(rng.standard_normal((rows, S + own, n, h)), jnp.float32) for n in (H, K, K))
    k, v = (x.at[1:, :S].set(x[0, :S]) for x in (k, v))  # one prefix for all rows
    q_whole, k_whole, v_whole = (jnp.concatenate([x[:, :length], x[:, S:]], axis=1) for x in (q, k, v))
    mask = attention.causal_mask(jnp.zeros((rows, length + own), jnp.int32), jnp.full(rows, length + own))
    expected = attend(q_whole, k_whole, v_whole, mask)[:, length:]
    prefix_kv = k[0, :S], v[0, :S]
    got = attention.attend_after_prefix(q[:, S:], k[:, S:], v[:, S:], prefix_kv, jnp.int32(length), query_chunk)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
