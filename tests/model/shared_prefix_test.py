from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlr1_jax.model import shared_prefix
from sqlr1_jax.model.shared_prefix import RowParts
from testing.compilation import largest_mask

pytestmark = pytest.mark.usefixtures("compiles_fast")

B, K, g, h = 2, 2, 3, 4
PREFIX = 9
LENGTHS = (9, 4)  # tokens of the prefixes


def qkv_inputs(length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = (B, K, g, length, h), (B, K, length, h), (B, K, length, h)
    q_BKgTh, k_BKTh, v_BKTh = (jnp.asarray(2 * rng.standard_normal(shape)) for shape in shapes)
    return q_BKgTh, k_BKTh, v_BKTh


def naive_attend(
    q_BKgTh: jax.Array,
    k_BKTh: jax.Array,
    v_BKTh: jax.Array,
    prefix_width: int,
    segment_width: int,
    lengths: tuple[int, ...] = LENGTHS,
) -> jax.Array:
    """Softmax over all pairs, under a mask that is built pair by pair."""
    T = k_BKTh.shape[2]
    mask_BTT = np.zeros((B, T, T), bool)
    for b, t, s in np.ndindex(B, T, T):
        both_in_segments = s >= prefix_width and t >= prefix_width
        own = both_in_segments and (s - prefix_width) // segment_width == (t - prefix_width) // segment_width
        shared = s < prefix_width and (t < prefix_width or s < lengths[b])
        mask_BTT[b, t, s] = s <= t and (own or shared)
    scores = jnp.einsum("bkgth,bksh->bkgts", q_BKgTh, k_BKTh) / h**0.5
    weights = jax.nn.softmax(jnp.where(mask_BTT[:, None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bkgts,bksh->bkgth", weights, v_BKTh)


@pytest.mark.parametrize("block_rows", [0, 3, 8])
@pytest.mark.parametrize("spans", [1, 4])
def test_outputs_and_gradients_match_the_full_mask(
    block_rows: int, spans: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "MIN_SPAN_WIDTH", PREFIX // spans)
    parts = RowParts(PREFIX, 5, block_rows)
    with jax.enable_x64(True):
        qkv, length_B = qkv_inputs(PREFIX + 3 * 5), jnp.asarray(LENGTHS)
        actual = shared_prefix.attend(*qkv, length_B, parts)
        assert jnp.abs(actual - naive_attend(*qkv, PREFIX, 5)).max() < 1e-12
        gradients = [
            jax.grad(lambda *qkv, attend=attend: jnp.sin(attend(*qkv)).sum(), argnums=(0, 1, 2))(*qkv)
            for attend in (
                lambda q, k, v: shared_prefix.attend(q, k, v, length_B, parts),
                lambda q, k, v: naive_attend(q, k, v, PREFIX, 5),
            )
        ]
        for actual, expected in zip(*gradients, strict=True):
            assert jnp.abs(actual - expected).max() < 1e-11


@settings(max_examples=20)  # each shape is compiled
@given(st.integers(1, 40), st.integers(1, 50))
def test_join_time_inverts_split_time(length: int, chunk: int) -> None:
    x = jnp.arange(2 * length * 3).reshape(2, length, 3)
    chunks = shared_prefix.split_time(x, chunk)
    assert len(chunks) == -(-length // chunk) and chunks.shape[-2] <= max(chunk, 8)
    np.testing.assert_array_equal(shared_prefix.join_time(chunks, length), x)


@pytest.mark.parametrize("prefix", [1, 8, 17, 40, 65])
def test_outputs_match_the_full_mask_for_every_number_of_spans(prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefix, "MIN_SPAN_WIDTH", 2)
    lengths = (prefix, prefix // 2)
    with jax.enable_x64(True):
        qkv = qkv_inputs(prefix + 2 * 11)
        actual = shared_prefix.attend(*qkv, jnp.asarray(lengths), RowParts(prefix, 11, 0))
        assert jnp.abs(actual - naive_attend(*qkv, prefix, 11, lengths)).max() < 1e-12


def test_long_part_is_cut_into_at_most_max_spans() -> None:
    """Each span has two matmuls; so have the segments on the prefix and on their own keys."""
    prefix, segment = 5000, 5
    qkv = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in qkv_inputs(prefix + segment))
    length_B, parts = jnp.asarray([prefix, 1]), RowParts(prefix, segment, 0)
    program = jax.make_jaxpr(lambda *qkv: shared_prefix.attend(*qkv, length_B, parts))(*qkv)
    assert str(program).count("dot_general[") == 2 * (shared_prefix.MAX_SPANS + 1 + 1)


def test_mask_of_all_pairs_is_not_hoisted_out_of_the_layer_loop() -> None:
    """JAX hoists what depends only on constants out of a scan: without a barrier, the masks of all blocks, [T, T]."""
    prefix, segment = 64, 32
    q_BKgTh, k_BKTh, v_BKTh = qkv_inputs(prefix + 4 * segment)
    length_B = jnp.asarray([prefix, prefix - 3], jnp.int32)

    def layers(q_BKgTh: jax.Array) -> jax.Array:
        def layer(q_BKgTh: jax.Array, _: None) -> tuple[jax.Array, None]:
            return shared_prefix.attend(q_BKgTh, k_BKTh, v_BKTh, length_B, RowParts(prefix, segment, 8)), None

        return jax.lax.scan(layer, q_BKgTh, None, 2)[0].sum()

    assert largest_mask(jax.grad(layers), q_BKgTh) < prefix * segment * B * K
