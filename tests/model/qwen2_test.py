from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from sqlr1_jax.model import attention, huggingface, qwen2
from testing import tiny_models
from testing.closeness import assert_close
from testing.naive_decoding import greedy, logits
from testing.tiny_models import TRANSFORMERS_FIXTURE

pytestmark = pytest.mark.usefixtures("compiles_fast")

# Published parameter counts of Qwen2.5-Coder.
COUNTS = {
    "0.5b": 494_032_768,
    "1.5b": 1_543_714_304,
    "3b": 3_085_938_688,
    "7b": 7_615_616_512,
    "14b": 14_770_033_664,
    "32b": 32_763_876_352,
}
# A shared-prefix row of 16: a prefix of 5 tokens padded to 8, and two segments of 4, the second with 1 of padding.
SHARED_PREFIX_ROW = {
    "prefix": [1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0],
    "segment": [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
    "positions": [0, 1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8, 5, 6, 7, 8],
}


def small_preset(size: str) -> qwen2.Qwen2Config:
    """The preset with the same heads, key-value heads and tying, and widths scaled down in proportion."""
    preset = qwen2.PRESETS[size]
    return dataclasses.replace(
        preset,
        vocab_size=96,
        num_layers=2,
        unroll=1,
        hidden_size=preset.num_heads * 8,
        head_size=8,
        ffw_size=max(16, preset.ffw_size * preset.num_heads * 8 // preset.hidden_size // 8 * 8),
    )


def test_only_ids_that_a_token_has_can_be_predicted() -> None:
    """Ids 0 to 9 but for the holes; a token past a hole keeps its logit, and without holes so does every id."""
    config = dataclasses.replace(tiny_models.MODEL, vocab_size=12, num_tokens=10, holes=((2, 4), (7, 8)))
    values = jnp.arange(24, dtype=jnp.float32).reshape(2, 12)
    masked = np.asarray(qwen2.mask_logits(values, config))
    known = [0, 1, 4, 5, 6, 8, 9]
    np.testing.assert_array_equal(masked[:, known], np.asarray(values)[:, known])
    assert (np.delete(masked, known, axis=1) == qwen2.MASKED_LOGIT).all()
    assert qwen2.mask_logits(values, dataclasses.replace(config, num_tokens=12, holes=())) is values


@pytest.mark.parametrize("size", COUNTS)
def test_presets_have_the_published_parameter_counts(size: str) -> None:
    assert qwen2.count_params(qwen2.PRESETS[size]) == COUNTS[size]


def test_logits_and_greedy_tokens_of_the_fixture_equal_those_of_transformers() -> None:
    config = huggingface.config_from_folder(TRANSFORMERS_FIXTURE)
    params = huggingface.load_params(TRANSFORMERS_FIXTURE, config)
    expected = np.load(TRANSFORMERS_FIXTURE / "expected.npz")
    for i in range(2):
        prompt = [int(token) for token in expected[f"prompt_{i}"]]
        assert_close(logits(params, prompt, config), expected[f"logits_{i}"], 1e-4)
        assert greedy(params, prompt, 64, config)[0] == expected[f"greedy_{i}"].tolist()


def test_prefill_and_decode_give_the_same_logits_as_forward() -> None:
    config = huggingface.config_from_folder(TRANSFORMERS_FIXTURE)
    params = huggingface.load_params(TRANSFORMERS_FIXTURE, config)
    prompt = [3, 17, 42, 8]
    tokens, stepwise = greedy(params, prompt, 40, config)
    full = logits(params, prompt + tokens[:-1], config)[len(prompt) - 1 :]
    assert_close(stepwise, full, 1e-5)


# The other presets differ from these only in their numbers of heads.
QUICK = ("tiny", "0.5b", "7b")


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=() if size in QUICK else pytest.mark.nightly) for size in qwen2.PRESETS]
)
def test_a_small_model_of_each_preset_agrees_with_transformers(size: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    config = small_preset(size)
    params = tiny_models.random_params(config, seed=1, scale=6.0)
    huggingface.save_model(tmp_path, params, config)
    check_against_transformers(torch, tmp_path, params, config, [5, 80, 3, 77, 12, 60])


def test_a_pretrained_model_agrees_with_transformers() -> None:
    torch = pytest.importorskip("torch")
    folder = Path(os.environ.get("SQLR1_SMOLLM2", Path(__file__).parents[3] / "smollm2"))
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}: set SQLR1_SMOLLM2 to the output folder of shared/tools/smollm2_as_qwen2.py")
    config = huggingface.config_from_folder(folder)
    assert config.num_tokens == 49152 and config.rope_theta == 1e5
    params = huggingface.load_params(folder, config)
    prompt = [504, 2365, 282, 4649, 314, 260, 1812, 28, 527, 480]
    check_against_transformers(torch, folder, params, config, prompt)


def check_against_transformers(
    torch: Any, folder: Path, params: Any, config: qwen2.Qwen2Config, prompt: list[int]
) -> None:
    from transformers import GenerationConfig, Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        expected = model(tokens).logits[0].numpy()
        settings = GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
        generated = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)
    assert_close(logits(params, prompt, config), expected, 1e-4)
    greedy_tokens, stepwise = greedy(params, prompt, 64, config)
    assert greedy_tokens == generated[0, len(prompt) :].tolist()
    assert_close(stepwise, logits(params, prompt + greedy_tokens[:-1], config)[len(prompt) - 1 :], 1e-5)


def influence(mask: attention.Mask, positions: list[int]) -> np.ndarray:
    """Whether the hidden state at t depends on the token at s, as [t, s], from gradients of the embedding.

    All tokens differ, so each row of the embedding belongs to one position.
    """
    config = dataclasses.replace(tiny_models.MODEL, dtype="float32")
    params = tiny_models.random_params(config)
    tokens_BT = jnp.arange(2, 2 + len(positions), dtype=jnp.int32)[None]
    positions_BT = jnp.asarray([positions], jnp.int32)

    def hidden(embed: jax.Array) -> jax.Array:
        out_BTD, _ = qwen2.forward(params | {"embed": embed}, tokens_BT, positions_BT, mask, config)
        return out_BTD[0]

    jacobian_TDVD = jax.jit(jax.jacrev(hidden))(params["embed"])
    return np.abs(np.asarray(jacobian_TDVD)[:, :, 2 : 2 + len(positions)]).max(axis=(1, 3)) > 0


@pytest.mark.parametrize("layout", [{}, {"prefix_width": 8, "segment_width": 4}])
def test_tokens_attend_causally_and_never_to_another_segment(layout: dict[str, int]) -> None:
    prefix, segment = np.array(SHARED_PREFIX_ROW["prefix"]), np.array(SHARED_PREFIX_ROW["segment"])
    mask = attention.Mask(jnp.asarray(prefix)[None], jnp.asarray(segment)[None], **layout)
    depends = influence(mask, SHARED_PREFIX_ROW["positions"])
    for t in np.flatnonzero(prefix):
        for s in np.flatnonzero(prefix):
            assert depends[t, s] == (s <= t and segment[s] in (0, segment[t])), (t, s)
    assert not depends[np.ix_(prefix > 0, prefix == 0)].any()


def test_groups_of_a_packed_row_do_not_attend_to_each_other() -> None:
    prefix, segment = np.array([1, 1, 1, 1, 2, 2, 2, 0]), np.array([0, 0, 1, 2, 0, 1, 2, 0])
    depends = influence(attention.Mask(jnp.asarray(prefix)[None], jnp.asarray(segment)[None]), [0, 1, 2, 2, 0, 1, 1, 0])
    assert not depends[4:7, :4].any()
    assert depends[4:7, 4].all() and not depends[6, 5]


@functools.cache
def float64_gradient(**changes: Any) -> Any:
    """The gradient of a loss of a shared-prefix row's hidden states, with the config changed."""
    config = dataclasses.replace(tiny_models.MODEL, param_dtype="float64", dtype="float64", **changes)
    row = {key: jnp.asarray(values, jnp.int32)[None] for key, values in SHARED_PREFIX_ROW.items()}
    mask = attention.Mask(row["prefix"], row["segment"], prefix_width=8, segment_width=4)

    def loss(params: Any) -> jax.Array:
        tokens_BT = jnp.arange(2, 18, dtype=jnp.int32)[None]
        hidden_BTD, _ = qwen2.forward(params, tokens_BT, row["positions"], mask, config)
        return (jnp.sin(3 * hidden_BTD) * (row["prefix"] > 0)[..., None]).sum()

    return jax.jit(jax.grad(loss))(tiny_models.random_params(config))


@pytest.mark.parametrize("changes", [{"remat": "full", "unroll": 2}, {"ffw_chunks": 4, "query_chunk": 3}], ids=str)
def test_gradients_do_not_depend_on_rematerialization_and_chunking(changes: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        difference = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()), float64_gradient(), float64_gradient(**changes)
        )
    assert max(jax.tree.leaves(difference)) < 1e-11


def test_bfloat16_logits_are_close_to_float32() -> None:
    params = tiny_models.random_params(scale=3.0)
    bfloat16 = logits(params, list(range(2, 20)), dataclasses.replace(tiny_models.MODEL, dtype="bfloat16"))
    assert bfloat16.dtype == np.float32
    assert_close(bfloat16[:, :37], logits(params, list(range(2, 20)), tiny_models.MODEL)[:, :37], 0.05)


def test_float32_activations_reduce_the_error_of_bfloat16_logits() -> None:
    params, tokens = tiny_models.random_params(scale=3.0), list(range(2, 20))
    exact = logits(params, tokens, tiny_models.MODEL)[:, :37]

    def error(activation_dtype: str) -> float:
        config = dataclasses.replace(tiny_models.MODEL, dtype="bfloat16", activation_dtype=activation_dtype)
        return float(np.sqrt(np.mean((logits(params, tokens, config)[:, :37] - exact) ** 2)))

    assert 0 < error("float32") < 0.9 * error("bfloat16")


def test_float32_activations_reduce_the_error_of_bfloat16_gradients() -> None:
    params = tiny_models.random_params(scale=3.0)
    row = {key: jnp.asarray(values, jnp.int32)[None] for key, values in SHARED_PREFIX_ROW.items()}
    mask = attention.Mask(row["prefix"], row["segment"], prefix_width=8, segment_width=4)
    tokens_1T = jnp.asarray(np.random.default_rng(0).integers(2, 37, (1, 16)), jnp.int32)

    def gradient(**changes: Any) -> jax.Array:
        config = dataclasses.replace(tiny_models.MODEL, remat="full", **changes)

        def loss(params: Any) -> jax.Array:
            hidden_BTD = qwen2.forward(params, tokens_1T, row["positions"], mask, config)[0]
            return -jax.nn.log_softmax(qwen2.unembed(params, hidden_BTD, config))[..., 5].mean()

        return ravel_pytree(jax.grad(loss)(params))[0]

    def error(activation_dtype: str) -> float:
        approximate = gradient(dtype="bfloat16", activation_dtype=activation_dtype)
        return float(jnp.linalg.norm(approximate - exact) / jnp.linalg.norm(exact))

    exact = gradient()
    errors = error("float32"), error("bfloat16")
    assert 0 < errors[0] < 0.01
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize(
    ("dtype", "activation_dtype", "stream_dtype"),
    [("bfloat16", "float32", "f32"), ("bfloat16", "bfloat16", "bf16"), ("float32", "bfloat16", "f32")],
)
def test_the_residual_stream_is_never_narrower_than_dtype(dtype: str, activation_dtype: str, stream_dtype: str) -> None:
    config = dataclasses.replace(tiny_models.MODEL, dtype=dtype, activation_dtype=activation_dtype, remat="full")
    row = {key: jnp.asarray(values, jnp.int32)[None] for key, values in SHARED_PREFIX_ROW.items()}
    mask = attention.Mask(row["prefix"], row["segment"], prefix_width=8, segment_width=4)

    def hidden(params: Any) -> jax.Array:
        return qwen2.forward(params, jnp.ones((1, 16), jnp.int32), row["positions"], mask, config)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(hidden))(tiny_models.random_params(config)))
    inputs = f"[{config.num_layers},1,16,{config.hidden_size}]"  # all layers' inputs, which remat=full saves
    assert {kind for kind in ("bf16", "f32") if f":{kind}{inputs}" in program} == {stream_dtype}


def test_ids_that_the_tokenizer_lacks_are_never_predicted() -> None:
    logits_TV = logits(tiny_models.random_params(), [2, 3, 4], tiny_models.MODEL)
    assert (logits_TV[:, 37:] == qwen2.MASKED_LOGIT).all() and np.abs(logits_TV[:, :37]).max() < 1e6
