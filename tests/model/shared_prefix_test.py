from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlr1_jax.model import shared_prefix
from sqlr1_jax.model.shared_prefix import Places
from testing.compilation import largest_mask

pytestmark = pytest.mark.usefixtures("compiles_fast")

B, K, g, h = 2, 2, 3, 4
LENGTHS = (9, 4)  # of the prefixes, which may take 9


def _inputs(length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = (B, K, g, length, h), (B, K, length, h), (B, K, length, h)
    q_BKgTh, k_BKTh, v_BKTh = (jnp.asarray(2 * rng.standard_normal(shape)) for shape in shapes)
    return q_BKgTh, k_BKTh, v_BKTh


def _plain(
    q_BKgTh: jax.Array,
    k_BKTh: jax.Array,
    v_BKTh: jax.Array,
    prefix: int,
    segment: int,
    lengths: tuple[int, ...] = LENGTHS,
) -> jax.Array:
    """Softmax over all pairs under a mask that is made place by place."""
    T = k_BKTh.shape[2]
    seen_BTT = np.zeros((B, T, T), bool)
    for b, t, s in np.ndindex(B, T, T):
        own = s >= prefix and t >= prefix and (s - prefix) // segment == (t - prefix) // segment
        shared = s < prefix and (t < prefix or s < lengths[b])
        seen_BTT[b, t, s] = s <= t and (own or shared)
    scores = jnp.einsum("bkgth,bksh->bkgts", q_BKgTh, k_BKTh) / h**0.5
    weights = jax.nn.softmax(jnp.where(seen_BTT[:, None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bkgts,bksh->bkgth", weights, v_BKTh)


@pytest.mark.parametrize("chunk", [0, 3, 8])
@pytest.mark.parametrize("spans", [1, 4])
def test_outputs_and_gradients_equal_attention_under_the_full_mask(
    chunk: int, spans: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "NARROW", 9 // spans)
    places = Places(9, 5, chunk)
    with jax.enable_x64(True):
        given_, length_B = _inputs(9 + 3 * 5), jnp.asarray(LENGTHS)
        ours = shared_prefix.attend(*given_, length_B, places)
        theirs = _plain(*given_, 9, 5)
        assert jnp.abs(ours - theirs).max() < 1e-12
        slopes = [
            jax.grad(lambda *x, way=way: jnp.sin(way(*x)).sum(), argnums=(0, 1, 2))(*given_)
            for way in (
                lambda q, k, v: shared_prefix.attend(q, k, v, length_B, places),
                lambda q, k, v: _plain(q, k, v, 9, 5),
            )
        ]
        for one, other in zip(*slopes, strict=True):
            assert jnp.abs(one - other).max() < 1e-11


@settings(max_examples=20)  # each shape is compiled for
@given(st.integers(1, 40), st.integers(1, 50))
def test_time_is_split_into_equal_chunks_and_joined_again(length: int, chunk: int) -> None:
    x = jnp.arange(2 * length * 3).reshape(2, length, 3)
    parts = shared_prefix.split_time(x, chunk)
    assert len(parts) == -(-length // chunk) and parts.shape[-2] <= max(chunk, 8)
    np.testing.assert_array_equal(shared_prefix.join_time(parts, length), x)


@pytest.mark.parametrize("prefix", [1, 8, 17, 40, 65])
def test_outputs_equal_attention_under_the_full_mask_for_every_number_of_spans(
    prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "NARROW", 2)
    lengths = (prefix, prefix // 2)
    with jax.enable_x64(True):
        inputs = _inputs(prefix + 2 * 11)
        ours = shared_prefix.attend(*inputs, jnp.asarray(lengths), Places(prefix, 11, 0))
        assert jnp.abs(ours - _plain(*inputs, prefix, 11, lengths)).max() < 1e-12


def test_the_number_of_spans_of_a_part_is_bounded() -> None:
    """Each span has two products, and so have the segments with the prefix and with themselves."""
    prefix, segment = 5000, 5
    inputs = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in _inputs(prefix + segment))
    program = jax.make_jaxpr(
        lambda q, k, v: shared_prefix.attend(q, k, v, jnp.asarray([prefix, 1]), Places(prefix, segment, 0))
    )
    assert str(program(*inputs)).count("dot_general[") == 2 * (shared_prefix.SPANS + 1 + 1)


def test_no_full_mask_is_hoisted_out_of_the_loop_over_layers() -> None:
    """JAX moves what a scan's body makes of constants alone before the scan: of every block's mask a [T, T]."""
    prefix, segment = 64, 32
    q_BKgTh, k_BKTh, v_BKTh = _inputs(prefix + 4 * segment)
    length_B = jnp.asarray([prefix, prefix - 3], jnp.int32)

    def layers(q_BKgTh: jax.Array) -> jax.Array:
        def layer(q_BKgTh: jax.Array, _: None) -> tuple[jax.Array, None]:
            return shared_prefix.attend(q_BKgTh, k_BKTh, v_BKTh, length_B, Places(prefix, segment, 8)), None

        return jax.lax.scan(layer, q_BKgTh, None, 2)[0].sum()

    assert largest_mask(jax.grad(layers), q_BKgTh) < prefix * segment * B * K
