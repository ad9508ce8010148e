from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.train import batch, metrics, sft, state
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.state import UpdateSpec
from testing import closeness, naive_decoding, tiny_models, training_data
from testing.compilation import compiled_programs

pytestmark = pytest.mark.usefixtures("compiles_fast")


@jax.jit
def _naive_gradients(params: object, text_T: jax.Array, weight_T: jax.Array) -> tuple[jax.Array, object]:
    def loss(params: object) -> jax.Array:
        logp_TV, _ = naive_decoding.naive_logprobs(params, text_T)
        return -(jnp.take_along_axis(logp_TV, text_T[1:, None], 1)[:, 0] * weight_T).sum()

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_the_loss_and_its_gradient_are_means_over_answer_tokens(layout: str) -> None:
    """The reference computes each question with its own copy of the schema, in its own row."""
    groups = [
        group._replace(
            segments=[s._replace(weight=(np.arange(len(s.weight)) >= 2).astype(float)) for s in group.segments]
        )
        for group in training_data.random_groups(4, 3, longest=8)
    ]
    texts = training_data.plain_texts(groups)
    tokens = sum(int(np.sum(segment.weight)) for _, _, segment in texts)
    longest = max(len(text) for text, _, _ in texts)
    expected_value, expected_grads = 0.0, None
    for text, prefix, segment in texts:
        weight_T = np.zeros(longest - 1, np.float32)
        weight_T[prefix : len(text) - 1] = np.asarray(segment.weight) / tokens
        text_T = np.pad(text, (0, longest - len(text)))
        loss, grads = _naive_gradients(tiny_models.random_params(), text_T, weight_T)
        expected_value += float(loss)
        expected_grads = grads if expected_grads is None else jax.tree.map(jnp.add, expected_grads, grads)
    rows_config = config.RowsConfig(layout=layout, length=80)
    row_layout = batch.choose_layout(groups, rows_config)
    rows = batch.pack_groups(groups, row_layout, rows_config)
    rows = rows._replace(weight=batch.loss_weights(rows, "token"))
    one_batch = batch.assemble_batch(rows, tiny_models.one_device(), batch.Microbatches(2, 2))
    spec = UpdateSpec(tiny_models.MODEL, config.OptimizerConfig(), 1, row_layout)
    grads, value, sums = jax.jit(state.compute_gradients, static_argnums=(2, 3, 4))(
        tiny_models.random_params(), one_batch, sft.sft_loss, None, spec
    )
    assert float(value) == pytest.approx(expected_value, rel=1e-5)
    assert closeness.relative_distance(grads, expected_grads) <= 1e-5
    assert closeness.largest_leaf_error(grads, expected_grads) <= 1e-4
    assert float(sums["entropy"][1]) == tokens


def test_the_stage_lowers_its_loss_and_resumes_bit_for_bit(context: RunContext) -> None:
    """With packed rows and Muon: a run of 6 steps, and one of 3 steps that is then continued for 3 more."""
    rows = config.RowsConfig(layout="packed", per_microbatch=1)
    optimizer = config.OptimizerConfig(name="muon", learning_rate=0.02)
    sft_config = dataclasses.replace(context.config.sft, steps=6, databases=3, rows=rows, optimizer=optimizer)
    run_config = dataclasses.replace(context.config, sft=sft_config)
    whole = dataclasses.replace(context, config=run_config, workdir=context.workdir / "whole")
    whole.workdir.mkdir()
    (whole.workdir / "data").symlink_to(context.data_dir)
    state.update.clear_cache()  # type: ignore[attr-defined]
    with compiled_programs() as compiled:
        expected = sft.train(whole)
    assert compiled.count("jit(update)") == 1, "all steps have the same shapes"
    lines = metrics.read_metrics(whole.workdir / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    assert all(line["tokens"] > 0 and line["not_finite"] == 0 for line in lines)

    shorter = dataclasses.replace(run_config, sft=dataclasses.replace(sft_config, steps=3))
    sft.train(dataclasses.replace(context, config=shorter))
    resumed = sft.train(dataclasses.replace(context, config=run_config))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed.params), jax.device_get(expected.params))
    resumed_lines = metrics.read_metrics(context.workdir / "metrics.jsonl")
    assert [line["loss"] for line in resumed_lines] == [line["loss"] for line in lines]
