from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import answer
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.train import batch, metrics, sft, state
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.state import UpdateSpec
from testing import closeness, naive_decoding, tiny_models, training_data
from testing.compilation import compiled_programs

pytestmark = pytest.mark.usefixtures("compiles_fast")


def _with_data(context: RunContext, **data: Any) -> RunContext:
    """The context with other settings in config.data."""
    changed = dataclasses.replace(context.config, data=dataclasses.replace(context.config.data, **data))
    return dataclasses.replace(context, config=changed)


def _texts(context: RunContext) -> dict[str, tuple[str, str]]:
    """Each example's full prompt and answer, by id."""
    examples = context.examples("synth:", "sft")
    prompts = context.prompts(examples)
    return {
        e.id: (p.text, answer.write(e.reasoning, e.sql, context.config.data.form))
        for e, p in zip(examples, prompts, strict=True)
    }


@pytest.mark.parametrize("form", ["reasoning", "direct"])
def test_groups_hold_the_examples_texts_with_loss_on_the_answers_only(context: RunContext, form: str) -> None:
    context = _with_data(context, form=form)
    groups, group_ids = sft.make_groups(context, context.examples("synth:", "sft"))
    decode, stop = context.tokenizer.decode, context.tokenizer.eos_token_id
    assert context.tokenizer.decode([stop]) == "<|im_end|>"
    pairs = []
    for group in groups:
        assert len(group.prefix) > 0
        assert len(group.segments) <= context.config.sft.questions
        for segment in group.segments:
            targets = np.asarray(segment.tokens[1:])[np.asarray(segment.weight) > 0]
            assert targets[-1] == stop
            question = segment.tokens[: len(segment.tokens) - len(targets)]
            pairs.append((decode([*group.prefix, *question]), decode(targets[:-1])))
    assert sorted(pairs) == sorted(_texts(context).values())
    assert len(groups) == 6, "one group per database"
    assert set(group_ids) <= set(_texts(context))


def test_a_database_with_too_many_questions_for_one_group_has_several(context: RunContext) -> None:
    sft_config = dataclasses.replace(context.config.sft, questions=3)
    context = dataclasses.replace(context, config=dataclasses.replace(context.config, sft=sft_config))
    groups, group_ids = sft.make_groups(context, context.examples("synth:", "sft"))
    assert sorted(len(group.segments) for group in groups) == [1] * 6 + [3] * 6
    assert len(set(group_ids)) == 12


def test_an_answer_continues_the_reply_that_the_prompt_opens(context: RunContext) -> None:
    context = _with_data(context, prompt="arctic", schema="compact")
    examples = context.examples("synth:", "sft")[:4]
    for sft_example in sft.make_sft_examples(context, examples):
        written = context.tokenizer.decode(sft_example.answer[:-1])
        example, opening = sft_example.example, sft_example.prompt.opening
        assert sft_example.prompt.text.endswith(opening) and opening.endswith("<think>")
        assert opening + written == opening.removesuffix("<think>") + answer.write(
            example.reasoning, example.sql, "reasoning"
        )


def test_retrieved_values_in_the_schema_leave_no_shared_prefix_and_log_probabilities_stay_right(
    context: RunContext,
) -> None:
    context = _with_data(context, prompt="omnisql", schema="retrieved")
    groups, _ = sft.make_groups(context, context.examples("synth:", "sft"))
    assert all(len(group.prefix) == 0 for group in groups)
    layout = batch.choose_layout(groups, context.config.sft.rows)
    assert layout is not None
    rows = batch.pack_groups(groups[:1], layout, context.config.sft.rows)
    one_batch = batch.assemble_batch(rows, context.mesh, 1, 1)
    spec = UpdateSpec(context.model, config.OptimizerConfig(), 1, layout)
    logp_T = np.asarray(state.compute_logprobs(init_params(context), one_batch, spec))[0, 0]
    segment = groups[0].segments[0]
    tokens = np.asarray(segment.tokens)
    naive_TV, _ = naive_decoding.naive_logprobs(init_params(context), tokens, context.model)
    naive_T = np.asarray(naive_TV)[np.arange(len(tokens) - 1), tokens[1:]]
    expected_T = np.where(np.asarray(segment.weight) > 0, naive_T, 0)
    actual_T = logp_T[layout.prefix : layout.prefix + len(tokens) - 1]
    np.testing.assert_allclose(actual_T, expected_T, rtol=1e-4, atol=1e-4)


def test_a_source_without_reasoning_is_an_error_and_one_such_record_is_left_out(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    examples = context.examples("synth:", "sft")
    without_reasoning = [dataclasses.replace(e, reasoning="") for e in examples]
    with pytest.raises(ConfigError, match=r"--config\.data\.form=direct"):
        sft.make_groups(context, without_reasoning)
    with caplog.at_level(logging.WARNING):
        groups, _ = sft.make_groups(context, [without_reasoning[0], *examples[1:]])
    assert sum(len(group.segments) for group in groups) == len(examples) - 1
    assert "1 of 24 examples left out: each has no answer in this form" in caplog.text


def test_sql_that_breaks_the_answer_form_is_left_out_and_logged(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    examples = context.examples("synth:", "sft")
    broken = dataclasses.replace(examples[3], sql="SELECT '</answer>'")
    with caplog.at_level(logging.WARNING):
        sft_examples = sft.make_sft_examples(context, [*examples[:3], broken])
    assert [sft_example.example.id for sft_example in sft_examples] == [e.id for e in examples[:3]]
    assert broken.id in caplog.text


def test_prompts_over_the_budget_are_left_out_and_counted_in_the_log(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    context = _with_data(context, schema="compact")  # the shortest; prompts in any other would fall back to it
    examples = context.examples("synth:", "sft")
    lengths = sorted(len(p.ids) for p in context.prompts(examples))
    with caplog.at_level(logging.WARNING):
        sft_examples = sft.make_sft_examples(_with_data(context, max_prompt_tokens=lengths[12]), examples)
    over = sum(length > lengths[12] for length in lengths)
    assert len(sft_examples) == 24 - over
    assert f"{over} of 24 examples left out: each has a prompt over the budget" in caplog.text
    with pytest.raises(ConfigError, match="gives no example to learn from"):
        sft.make_sft_examples(_with_data(context, max_prompt_tokens=3), examples)


def _with_sft(context: RunContext, **settings: Any) -> RunContext:
    sft_config = dataclasses.replace(context.config.sft, **settings)
    return dataclasses.replace(context, config=dataclasses.replace(context.config, sft=sft_config))


def test_one_long_answer_does_not_set_the_length_of_all_rows(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    examples = context.examples("synth:", "sft")
    long = dataclasses.replace(examples[0], id="long", reasoning="think " * 4000)
    rows_config = context.config.sft.rows
    layout = batch.choose_layout(sft.make_groups(context, examples)[0], rows_config)
    with caplog.at_level(logging.WARNING):
        assert batch.choose_layout(sft.make_groups(context, [*examples, long])[0], rows_config) == layout
    reason = "each has an answer over config.sft.max_answer_tokens=4096 (long)"
    assert f"1 of {len(examples) + 1} examples left out: {reason}" in caplog.text
    unlimited, _ = sft.make_groups(_with_sft(context, max_answer_tokens=0), [*examples, long])
    assert batch.choose_layout(unlimited, rows_config) != layout


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"segment": 60}, "exceeds config.sft.rows.segment=60"),
        ({"prefix": 40}, "has a schema over config.sft.rows.prefix=40"),
        ({"layout": "packed", "length": 120}, "exceeds config.sft.rows.length=120"),
    ],
)
def test_examples_that_do_not_fit_a_row_are_left_out(
    context: RunContext, caplog: pytest.LogCaptureFixture, rows: dict[str, Any], reason: str
) -> None:
    context = _with_sft(context, rows=config.RowsConfig(**rows))
    examples = context.examples("synth:", "sft")
    with caplog.at_level(logging.WARNING):
        groups, _ = sft.make_groups(context, examples)
    kept = sum(len(group.segments) for group in groups)
    assert 0 < kept < len(examples)
    assert f"{len(examples) - kept} of {len(examples)} examples left out: each {reason} (" in caplog.text
    batch.pack_groups(groups, batch.choose_layout(groups, context.config.sft.rows), context.config.sft.rows)


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
    one_batch = batch.assemble_batch(rows, tiny_models.one_device(), 2, 2)
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
