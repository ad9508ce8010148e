"""Kernels of attention: interpreted on the CPU against the general path, and compiled for TPUs that are not here."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from sqlr1_jax import config
from sqlr1_jax.aot.topology import describe
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import attention, kernels
from sqlr1_jax.model import kv_cache as caches
from sqlr1_jax.model.attention import Mask, attend
from sqlr1_jax.model.kernels import SharedPrefixMask

pytestmark = pytest.mark.usefixtures("compiles_fast")

B, S, C, G = 2, 150, 70, 3  # neither part ends where a block does
T = S + G * C
takes_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="takes libtpu: pip install -e '.[tpu]'"
)
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def ids() -> tuple[np.ndarray, np.ndarray]:
    """Prefix and segment of two rows with padding behind every part, and in the second an empty segment."""
    prefix, segment = np.zeros((2, B, T), np.int32)
    for row, (length, sizes) in enumerate([(S, [C, 3, C - 1]), (S // 3, [C // 2, 0, C])]):
        prefix[row, :length] = 1
        for i, size in enumerate(sizes):
            start = S + i * C
            prefix[row, start : start + size] = 1
            segment[row, start : start + C] = i + 1
    return prefix, segment


def inputs(H: int, K: int, h: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((B, T, heads, h)), jnp.float32) for heads in (H, K, K))
    return q, k, v


def kernel(name: str, sees: SharedPrefixMask) -> kernels.Kernel:
    """On the CPU: splash interpreted, with blocks small enough to be skipped; cuDNN's part done by XLA."""
    if name == "splash":
        return functools.partial(kernels.splash, sees=sees, block=128, interpret=True)
    return functools.partial(kernels.cudnn, sees=sees, implementation="xla")


def outputs_and_gradients(f: Attend, real_BT: np.ndarray, qkv: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Padding's outputs left out: nobody reads them."""
    real_BT11 = jnp.asarray(real_BT > 0)[..., None, None]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = jnp.where(real_BT11, f(q, k, v), 0)
        return jnp.sin(out).sum(), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, *gradients


@pytest.mark.parametrize(
    ("name", "H", "K", "h"),
    [("splash", 4, 2, 64), ("cudnn", 4, 2, 64), pytest.param("splash", 1, 1, 128, marks=pytest.mark.nightly)],
)
def test_kernels_equal_the_general_path_on_strided_rows(name: str, H: int, K: int, h: int) -> None:
    (prefix, segment), qkv = ids(), inputs(H, K, h)
    mask = Mask(jnp.asarray(prefix), jnp.asarray(segment))
    ours = outputs_and_gradients(
        lambda q, k, v: kernel(name, SharedPrefixMask(S, C))(q, k, v, mask.prefix_BT), prefix, qkv
    )
    theirs = outputs_and_gradients(lambda q, k, v: attend(q, k, v, mask, backend="xla"), prefix, qkv)
    for mine, other in zip(ours, theirs, strict=True):
        assert float(jnp.abs(mine - other).max() / jnp.abs(other).max()) < 5e-6


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_kernels_equal_the_general_path_on_plain_texts(name: str) -> None:
    qkv, mask = inputs(4, 2, 64), attention.causal_mask(jnp.zeros((B, T), jnp.int32), jnp.array([T, 77]))
    real = np.asarray(mask.prefix_BT)
    ours = outputs_and_gradients(
        lambda q, k, v: kernel(name, SharedPrefixMask(T, 0))(q, k, v, mask.prefix_BT), real, qkv
    )
    theirs = outputs_and_gradients(lambda q, k, v: attend(q, k, v, mask, backend="xla"), real, qkv)
    for mine, other in zip(ours, theirs, strict=True):
        assert float(jnp.abs(mine - other).max() / jnp.abs(other).max()) < 5e-6


def test_gradients_reach_only_visible_tokens() -> None:
    """A query's output has no gradient at the future, at other segments, nor at the prefix's padding."""
    prefix, _ = ids()
    q, k, v = inputs(1, 1, 64)
    places = [S - 1, S // 3 - 1, S + C + 2, S + C, T - 2]

    @jax.jit
    def reached(place: jax.Array) -> jax.Array:
        def one(k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sin(kernel("splash", SharedPrefixMask(S, C))(q, k, v, jnp.asarray(prefix))[:, place]).sum()

        dk, dv = jax.grad(one, argnums=(0, 1))(k, v)
        return (jnp.abs(dk) + jnp.abs(dv)).sum((2, 3)) > 0

    seen = np.stack([np.asarray(reached(place)) for place in places])
    for place, row in np.ndindex(len(places), B):
        at = places[place]
        if not prefix[row, at]:
            continue
        start = S if at < S else S + (at - S) // C * C
        expected = [s <= at and ((s < S and prefix[row, s] > 0) or s >= start) for s in range(T)]
        assert seen[place, row].tolist() == expected


@pytest.mark.parametrize(
    "sees",
    [
        SharedPrefixMask(150, 70),
        SharedPrefixMask(256, 128),
        SharedPrefixMask(30, 7),
        SharedPrefixMask(300, 0),
        SharedPrefixMask(1, 299),
    ],
)
def test_all_or_none_classifies_every_uniform_block(sees: SharedPrefixMask) -> None:
    places = np.arange(512)
    whole = sees(places[:, None], places[None])
    found = []
    for query, key in np.ndindex(512 // 32, 512 // 32):
        queries, keys = (slice(32 * block, 32 * block + 32) for block in (query, key))
        part, said = whole[queries, keys], sees.all_or_none(queries, keys)
        assert said is None or (part.all() if said else not part.any())
        found.append((said, bool(part.all() or not part.any())))
    assert all(said is not None for said, uniform in found if uniform), "a block is looked at that need not be"


def test_segment_starts_of_long_rows_are_exact() -> None:
    """Which segment a query belongs to is told by float32 in the kernel."""
    sees, places = SharedPrefixMask(4097, 601), np.arange(4097, 2**21, dtype=np.int32)
    starts = jax.jit(lambda x: sees.start(x))(places)
    assert (np.asarray(starts) == 4097 + (places - 4097) // 601 * 601).all()


@pytest.mark.parametrize(("H", "K", "tensor"), [(4, 2, 2), (4, 2, 4), (6, 2, 4)], ids=str)
def test_by_device_equals_a_single_device(H: int, K: int, tensor: int) -> None:
    """Key-value heads are repeated for a wider tensor axis; heads that cannot be shared are computed by all."""
    real, qkv = ids()[0], inputs(H, K, 8)

    def run(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True) * (real > 0)[..., None, None]

    alone = outputs_and_gradients(lambda q, k, v: run(q, k, v, jnp.asarray(real)), real, qkv)
    with jax.set_mesh(sharding.make_mesh(config.MeshConfig(fsdp=8 // tensor, tensor=tensor))):
        ours = outputs_and_gradients(
            lambda q, k, v: kernels.shard_map_attention(run, q, k, v, jnp.asarray(real)), real, qkv
        )
    for mine, other in zip(ours, alone, strict=True):
        assert float(jnp.abs(mine - other).max() / jnp.abs(other).max()) < 1e-5


def one_chip(topology: str) -> tuple[Mesh, NamedSharding]:
    """The first of chips that are not here, and a layout that is its own."""
    mesh = sharding.make_mesh(config.MeshConfig(), describe(topology).devices[:1])
    return mesh, sharding.replicated(mesh)


def compiled(topology: str, H: int, K: int, h: int, backend: str, prefix: int, segment: int) -> jax.stages.Compiled:
    """Gradients of attention in a bfloat16 row of eight segments (or none) on one such chip."""
    mesh, here = one_chip(topology)
    length = prefix + 8 * segment
    q, k = (jax.ShapeDtypeStruct((1, length, n, h), jnp.bfloat16, sharding=here) for n in (H, K))
    real = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=here)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
        return attend(q, k, v, Mask(real, real, prefix, segment), backend=backend).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, real).compile()


def temporaries(done: jax.stages.Compiled) -> int:
    """Bytes that the program takes beside its inputs and outputs."""
    memory: Any = done.memory_analysis()
    return int(memory.temp_size_in_bytes)


@takes_compiler
@pytest.mark.parametrize(
    ("topology", "H", "K", "h"), [("v5e:2x2", 7, 1, 128), ("v6e:2x2", 14, 2, 64)], ids=["v5e, 7b", "v6e, 0.5b"]
)
def test_auto_compiles_splash_on_tpu_without_storing_scores(topology: str, H: int, K: int, h: int) -> None:
    S, C = 1024, 256
    done = compiled(topology, H, K, h, "auto", S, C)
    assert "splash_mha_dkv" in (done.as_text() or "")
    scores = 4 * H * (S * S + 8 * C * (S + C))
    assert temporaries(done) < scores / 2


@takes_compiler
@pytest.mark.nightly
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(("H", "K", "h"), [(7, 1, 128), (14, 2, 64)], ids=["7b", "0.5b"])
@pytest.mark.parametrize(("S", "C"), [(4096, 2048), (2304, 600), (4096, 0)])
def test_the_papers_lengths_compile(topology: str, H: int, K: int, h: int, S: int, C: int) -> None:
    done = compiled(topology, H, K, h, "auto", S, C)
    assert "splash_mha_dkv" in (done.as_text() or "")
    assert temporaries(done) < 2**29


@takes_compiler
@pytest.mark.nightly
@pytest.mark.parametrize("prompts", [8, 32])
def test_a_decode_step_on_a_tpu_copies_no_keys(prompts: int) -> None:
    """Of 7B over tensor 4: keys, values and scores of 8 samples a prompt take no room but the cache's."""
    mesh, here = one_chip("v5e:2x2")
    like = caches.shapes((1, 4), prompts, 8, 4096, 2048, (1, 128), jnp.dtype("bfloat16"))
    cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    q_PGHh = jax.ShapeDtypeStruct((prompts, 8, 7, 128), jnp.bfloat16, sharding=here)
    entry = jax.ShapeDtypeStruct((), jnp.int32, sharding=here)
    with jax.set_mesh(mesh):
        step = jax.jit(lambda q, cache, entry: attention.attend_cached(q, cache, 0, entry))
        done = step.lower(q_PGHh, cache, entry).compile()
    assert temporaries(done) < 2**20
