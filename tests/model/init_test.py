from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax.model import attention, init, qwen2
from testing import tiny_models

pytestmark = pytest.mark.usefixtures("compiles_fast")

TINY = dataclasses.replace(qwen2.PRESETS["tiny"], vocab_size=1024)
MARK, COMMA, IN = 0, 1, 2  # ids of the tokens between names
init_params = jax.jit(init.init_params, static_argnums=0)


def test_init_gives_the_shapes_dtypes_and_scales_of_the_abstract_tree() -> None:
    params = init_params(tiny_models.MODEL, jax.random.key(0))
    specs = qwen2.abstract_params(tiny_models.MODEL)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), params)
    assert shapes == jax.tree.map(lambda spec: (spec.shape, spec.dtype), specs, is_leaf=qwen2.is_spec)
    assert float(jnp.std(params["layers"]["gate"])) == pytest.approx(0.02, rel=0.1)
    assert float(jnp.std(params["layers"]["down"])) == pytest.approx(0.02 / 2, rel=0.1)
    assert float(params["final_norm"].min()) == 1 and float(jnp.abs(params["layers"]["q_bias"]).max()) == 0


def test_init_depends_only_on_the_key() -> None:
    first, second = (init_params(tiny_models.MODEL, jax.random.key(3)) for _ in range(2))
    other = init_params(tiny_models.MODEL, jax.random.key(4))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, second)))
    assert not bool((first["embed"] == other["embed"]).any())


def test_induction_heads_change_only_attention_and_half_of_the_embedding() -> None:
    normal = init_params(dataclasses.replace(TINY, init="normal"), jax.random.key(0))
    with_heads = init_params(TINY, jax.random.key(0))
    for name in ("gate", "up", "down", "attention_norm", "v_bias"):
        np.testing.assert_array_equal(with_heads["layers"][name], normal["layers"][name])
    unchanged = np.asarray(with_heads["embed"] == normal["embed"])
    assert unchanged[:, :32].all() and unchanged[:, 96:].all() and not np.asarray(with_heads["embed"][:, 32:96]).any()


def random_question(rng: np.random.Generator) -> tuple[list[int], list[int], int]:
    """A prompt of token ids, the ids of its three tables, and the index of the table it asks for.

    The prompt is `- table column, table column, …` for three tables, then other names, then `column in`.
    """
    names = rng.permutation(np.arange(8, TINY.vocab_size))
    tables, columns, others = names[:3], names[3:15].reshape(3, 4), names[15:27]
    pairs_TC3 = np.stack([np.repeat(tables[:, None], 4, 1), columns, np.full((3, 4), COMMA)], 2)
    schema = np.concatenate([np.full((3, 1), MARK), pairs_TC3.reshape(3, 12)], 1).ravel()
    answer = int(rng.integers(3))
    return [*schema, *others, rng.choice(columns[answer]), IN], tables.tolist(), answer


def table_accuracy(params: qwen2.Params, config: qwen2.Qwen2Config) -> float:
    """How often the likeliest of the three tables is the column's, over 256 schemas of random names."""
    rng = np.random.default_rng(0)
    tokens, tables, answers = (np.array(part) for part in zip(*(random_question(rng) for _ in range(256)), strict=True))
    ones = jnp.ones(tokens.shape, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = attention.Mask(ones, 0 * ones)
    hidden, _ = qwen2.forward(params, jnp.asarray(tokens), positions, mask, config)
    logits = np.asarray(qwen2.unembed(params, hidden[:, -1:], config))[:, 0]
    return float((np.take_along_axis(logits, tables, 1).argmax(1) == answers).mean())


@pytest.mark.parametrize("seed", range(3))
def test_untrained_induction_heads_find_a_columns_table(seed: int) -> None:
    assert table_accuracy(init_params(TINY, jax.random.key(seed)), TINY) > 0.5
    normal = dataclasses.replace(TINY, init="normal")
    assert 0.25 < table_accuracy(init_params(normal, jax.random.key(seed)), normal) < 0.42


def test_induction_heads_reject_other_shapes() -> None:
    wide = dataclasses.replace(TINY, hidden_size=256)
    with pytest.raises(ValueError, match="this model has 4, 2, 8 and 3"):
        init.init_params(wide, jax.random.key(0))
