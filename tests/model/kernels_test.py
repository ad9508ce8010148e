"""Attention kernels: interpreted on CPU against the general path, and compiled for TPUs by libtpu."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from sqlr1_jax import config
from sqlr1_jax.aot.topology import describe
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import attention, kernels, kv_cache
from sqlr1_jax.model.attention import Mask, attend
from sqlr1_jax.model.kernels import SharedPrefixMask

pytestmark = pytest.mark.usefixtures("compiles_fast")

B, S, C, G = 2, 150, 70, 3  # neither part ends at the end of a block
T = S + G * C
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'"
)
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def shared_prefix_ids() -> tuple[np.ndarray, np.ndarray]:
    """Prefix and segment ids of two rows with padding after each part; one segment of the second row is empty."""
    prefix, segment = np.zeros((2, B, T), np.int32)
    for row, (prefix_length, segment_lengths) in enumerate([(S, [C, 3, C - 1]), (S // 3, [C // 2, 0, C])]):
        prefix[row, :prefix_length] = 1
        for i, length in enumerate(segment_lengths):
            start = S + i * C
            prefix[row, start : start + length] = 1
            segment[row, start : start + C] = i + 1
    return prefix, segment


def inputs(H: int, K: int, h: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((B, T, heads, h)), jnp.float32) for heads in (H, K, K))
    return q, k, v


def cpu_kernel(name: str, mask: SharedPrefixMask) -> kernels.Kernel:
    """A kernel that runs on CPU: splash interpreted, with blocks small enough to be skipped; cuDNN's calls by XLA."""
    if name == "splash":
        return functools.partial(kernels.splash, mask=mask, block=128, interpret=True)
    return functools.partial(kernels.cudnn, mask=mask, implementation="xla")


def outputs_and_gradients(attend: Attend, real_BT: np.ndarray, qkv: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Outputs, 0 for padding's, which nobody reads; and gradients of queries, keys and values."""
    real_BT11 = jnp.asarray(real_BT > 0)[..., None, None]

    def loss(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = jnp.where(real_BT11, attend(*qkv), 0)
        return jnp.sin(out).sum(), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, *gradients


def assert_close(actual: tuple[jax.Array, ...], expected: tuple[jax.Array, ...], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert float(jnp.abs(a - b).max() / jnp.abs(b).max()) < tolerance


@pytest.mark.parametrize(
    ("name", "H", "K", "h"),
    [("splash", 4, 2, 64), ("cudnn", 4, 2, 64), pytest.param("splash", 1, 1, 128, marks=pytest.mark.nightly)],
)
def test_kernel_matches_general_path_on_shared_prefix_rows(name: str, H: int, K: int, h: int) -> None:
    (prefix, segment), qkv = shared_prefix_ids(), inputs(H, K, h)
    mask = Mask(jnp.asarray(prefix), jnp.asarray(segment))
    kernel = cpu_kernel(name, SharedPrefixMask(S, C))
    actual = outputs_and_gradients(lambda q, k, v: kernel(q, k, v, mask.prefix_BT), prefix, qkv)
    expected = outputs_and_gradients(lambda q, k, v: attend(q, k, v, mask, backend="xla"), prefix, qkv)
    assert_close(actual, expected, 5e-6)


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_kernel_matches_general_path_on_plain_texts(name: str) -> None:
    qkv, mask = inputs(4, 2, 64), attention.causal_mask(jnp.zeros((B, T), jnp.int32), jnp.array([T, 77]))
    real, kernel = np.asarray(mask.prefix_BT), cpu_kernel(name, SharedPrefixMask(T, 0))
    actual = outputs_and_gradients(lambda q, k, v: kernel(q, k, v, mask.prefix_BT), real, qkv)
    expected = outputs_and_gradients(lambda q, k, v: attend(q, k, v, mask, backend="xla"), real, qkv)
    assert_close(actual, expected, 5e-6)


def test_output_depends_on_exactly_the_visible_keys() -> None:
    """A query's output has no gradient at later positions, in other segments or at the prefix's padding."""
    prefix, _ = shared_prefix_ids()
    q, k, v = inputs(1, 1, 64)
    queries = [S - 1, S // 3 - 1, S + C + 2, S + C, T - 2]
    kernel = cpu_kernel("splash", SharedPrefixMask(S, C))

    @jax.jit
    def influences(query: jax.Array) -> jax.Array:
        def output(k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sin(kernel(q, k, v, jnp.asarray(prefix))[:, query]).sum()

        dk, dv = jax.grad(output, argnums=(0, 1))(k, v)
        return (jnp.abs(dk) + jnp.abs(dv)).sum((2, 3)) > 0

    seen = np.stack([np.asarray(influences(query)) for query in queries])
    for i, row in np.ndindex(len(queries), B):
        query = queries[i]
        if not prefix[row, query]:
            continue
        start = S if query < S else S + (query - S) // C * C
        expected = [s <= query and ((s < S and prefix[row, s] > 0) or s >= start) for s in range(T)]
        assert seen[i, row].tolist() == expected


@pytest.mark.parametrize(
    "mask",
    [
        SharedPrefixMask(150, 70),
        SharedPrefixMask(256, 128),
        SharedPrefixMask(30, 7),
        SharedPrefixMask(300, 0),
        SharedPrefixMask(1, 299),
    ],
)
def test_uniform_blocks_are_recognized(mask: SharedPrefixMask) -> None:
    positions = np.arange(512)
    full_mask = mask(positions[:, None], positions[None])
    answers = []
    for query, key in np.ndindex(512 // 32, 512 // 32):
        queries, keys = (slice(32 * block, 32 * block + 32) for block in (query, key))
        block, answer = full_mask[queries, keys], mask.all_or_none(queries, keys)
        assert answer is None or (block.all() if answer else not block.any())
        answers.append((answer, bool(block.all() or not block.any())))
    assert all(answer is not None for answer, uniform in answers if uniform), "a uniform block is called mixed"


def test_segment_starts_of_long_rows_are_exact() -> None:
    """The kernel computes a query's segment in float32."""
    mask, positions = SharedPrefixMask(4097, 601), np.arange(4097, 2**21, dtype=np.int32)
    starts = jax.jit(mask.segment_start)(positions)
    assert (np.asarray(starts) == 4097 + (positions - 4097) // 601 * 601).all()


@pytest.mark.parametrize(("H", "K", "tensor"), [(4, 2, 2), (4, 2, 4), (6, 2, 4)], ids=str)
def test_shard_map_matches_one_device(H: int, K: int, tensor: int) -> None:
    """The cases: heads sharded; key-value heads repeated for a wider tensor axis; all heads on every device."""
    real, qkv = shared_prefix_ids()[0], inputs(H, K, 8)

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True) * (real > 0)[..., None, None]

    expected = outputs_and_gradients(lambda q, k, v: kernel(q, k, v, jnp.asarray(real)), real, qkv)
    with jax.set_mesh(sharding.make_mesh(config.MeshConfig(fsdp=8 // tensor, tensor=tensor))):
        actual = outputs_and_gradients(
            lambda q, k, v: kernels.shard_map_attention(kernel, q, k, v, jnp.asarray(real)), real, qkv
        )
    assert_close(actual, expected, 1e-5)


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def one_chip(topology: str) -> tuple[Mesh, NamedSharding]:
    """A mesh of one chip of a topology that is only compiled for, and the sharding of arrays on it."""
    mesh = sharding.make_mesh(config.MeshConfig(), describe(topology).devices[:1])
    return mesh, sharding.replicated(mesh)


def compile_gradient(
    topology: str, H: int, K: int, h: int, backend: str, prefix_width: int, segment_width: int
) -> jax.stages.Compiled:
    """The gradient of attention in a bfloat16 row of eight segments (or none), compiled for one chip."""
    mesh, replicated = one_chip(topology)
    length = prefix_width + 8 * segment_width
    q, k = (jax.ShapeDtypeStruct((1, length, heads, h), jnp.bfloat16, sharding=replicated) for heads in (H, K))
    real = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=replicated)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
        mask = Mask(real, real, prefix_width, segment_width)
        return attend(q, k, v, mask, backend=backend).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, real).compile()


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "H", "K", "h"), [("v5e:2x2", 7, 1, 128), ("v6e:2x2", 14, 2, 64)], ids=["v5e, 7b", "v6e, 0.5b"]
)
def test_auto_compiles_splash_for_tpu_without_holding_scores(topology: str, H: int, K: int, h: int) -> None:
    S, C = 1024, 256
    compiled = compile_gradient(topology, H, K, h, "auto", S, C)
    assert "splash_mha_dkv" in str(compiled.as_text())
    score_bytes = 4 * H * (S * S + 8 * C * (S + C))
    assert temporary_bytes(compiled) < score_bytes / 2


@needs_libtpu
@pytest.mark.nightly
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(("H", "K", "h"), [(7, 1, 128), (14, 2, 64)], ids=["7b", "0.5b"])
@pytest.mark.parametrize(("S", "C"), [(4096, 2048), (2304, 600), (4096, 0)])
def test_splash_compiles_at_the_papers_lengths(topology: str, H: int, K: int, h: int, S: int, C: int) -> None:
    compiled = compile_gradient(topology, H, K, h, "auto", S, C)
    assert "splash_mha_dkv" in str(compiled.as_text())
    assert temporary_bytes(compiled) < 2**29


@needs_libtpu
@pytest.mark.nightly
@pytest.mark.parametrize("prompts", [8, 32])
def test_decode_step_on_tpu_copies_no_keys(prompts: int) -> None:
    """At 7B's heads on tensor 4 and 8 samples a prompt, keys, values and scores need no temporaries in HBM."""
    mesh, replicated = one_chip("v5e:2x2")
    shapes = kv_cache.shapes((1, 4), prompts, 8, 4096, 2048, (1, 128), jnp.dtype("bfloat16"))
    cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes)
    q_PGHh = jax.ShapeDtypeStruct((prompts, 8, 7, 128), jnp.bfloat16, sharding=replicated)
    entry = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    with jax.set_mesh(mesh):
        step = jax.jit(lambda q, cache, entry: attention.attend_cached(q, cache, 0, entry))
        compiled = step.lower(q_PGHh, cache, entry).compile()
    assert temporary_bytes(compiled) < 2**20
