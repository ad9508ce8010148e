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


def _with(context: RunContext, **data: Any) -> RunContext:
    cfg = dataclasses.replace(context.config, data=dataclasses.replace(context.config.data, **data))
    return dataclasses.replace(context, config=cfg)


def _texts(context: RunContext) -> dict[str, tuple[str, str]]:
    """Each example's prompt and answer as one would write them without any sharing."""
    examples = context.examples("synth:", "sft")
    prompts = context.prompts(examples)
    return {
        e.id: (p.text, answer.write(e.reasoning, e.sql, context.config.data.form))
        for e, p in zip(examples, prompts, strict=True)
    }


@pytest.mark.parametrize("form", ["reasoning", "direct"])
def test_groups_say_what_the_examples_say_and_learn_the_answers_alone(context: RunContext, form: str) -> None:
    context = _with(context, form=form)
    groups, names = sft.make_groups(context, context.examples("synth:", "sft"))
    decode, stop = context.tokenizer.decode, context.tokenizer.eos_token_id
    assert context.tokenizer.decode([stop]) == "<|im_end|>"
    seen = []
    for group in groups:
        assert len(group.prefix) > 0
        assert len(group.segments) <= context.config.sft.questions
        for segment in group.segments:
            learned = np.asarray(segment.tokens[1:])[np.asarray(segment.weight) > 0]
            assert learned[-1] == stop
            question = segment.tokens[: len(segment.tokens) - len(learned)]
            seen.append((decode([*group.prefix, *question]), decode(learned[:-1])))
    assert sorted(seen) == sorted(_texts(context).values())
    assert len(groups) == 6, "a group a database"
    assert set(names) <= set(_texts(context))


def test_a_database_with_more_questions_than_a_group_takes_has_several(context: RunContext) -> None:
    cfg = dataclasses.replace(context.config.sft, questions=3)
    context = dataclasses.replace(context, config=dataclasses.replace(context.config, sft=cfg))
    groups, names = sft.make_groups(context, context.examples("synth:", "sft"))
    assert sorted(len(group.segments) for group in groups) == [1] * 6 + [3] * 6
    assert len(set(names)) == 12


def test_where_values_are_retrieved_nothing_is_shared_and_rows_still_work(context: RunContext) -> None:
    context = _with(context, schema="retrieved")
    groups, _ = sft.make_groups(context, context.examples("synth:", "sft"))
    assert all(len(group.prefix) == 0 for group in groups)
    layout = batch.choose_layout(groups, context.config.sft.rows)
    assert layout is not None
    fed = batch.assemble_batch(batch.pack_groups(groups[:1], layout, context.config.sft.rows), context.mesh, 1, 1)
    program = UpdateSpec(context.model, config.OptimizerConfig(), 1, layout)
    scored = np.asarray(state.compute_logprobs(init_params(context), fed, program))[0, 0]
    first = np.asarray(groups[0].segments[0].tokens)
    want, _ = naive_decoding.naive_logprobs(init_params(context), first, context.model)
    got = scored[layout.prefix : layout.prefix + len(first) - 1]
    asked = np.asarray(groups[0].segments[0].weight) > 0
    want = np.where(asked, np.asarray(want)[np.arange(len(first) - 1), first[1:]], 0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_source_without_reasoning_is_an_error_and_one_record_is_set_aside(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    examples = context.examples("synth:", "sft")
    bare = [dataclasses.replace(e, reasoning="") for e in examples]
    with pytest.raises(ConfigError, match=r"--config\.data\.form=direct"):
        sft.make_groups(context, bare)
    with caplog.at_level(logging.WARNING):
        groups, _ = sft.make_groups(context, [bare[0], *examples[1:]])
    assert sum(len(group.segments) for group in groups) == len(examples) - 1
    assert "1 of 24 examples left out: each has no answer in this form" in caplog.text


def test_sql_that_the_form_cannot_carry_is_set_aside_by_name(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    examples = context.examples("synth:", "sft")
    broken = dataclasses.replace(examples[3], sql="SELECT '</answer>'")
    with caplog.at_level(logging.WARNING):
        taught = sft.teachable(context, [*examples[:3], broken])
    assert [one.example.id for one in taught] == [e.id for e in examples[:3]]
    assert broken.id in caplog.text


def test_prompts_over_the_budget_are_counted_and_left_out(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    context = _with(context, schema="compact")  # the shortest, to which any other would fall back
    examples = context.examples("synth:", "sft")
    lengths = sorted(len(p.ids) for p in context.prompts(examples))
    with caplog.at_level(logging.WARNING):
        taught = sft.teachable(_with(context, max_prompt_tokens=lengths[12]), examples)
    over = sum(length > lengths[12] for length in lengths)
    assert len(taught) == 24 - over
    assert f"{over} of 24 examples left out: each has a prompt over the budget" in caplog.text
    with pytest.raises(ConfigError, match="gives no example to learn from"):
        sft.teachable(_with(context, max_prompt_tokens=3), examples)


@jax.jit
def _naive_slope(params: object, text: jax.Array, weight: jax.Array) -> tuple[jax.Array, object]:
    def loss(params: object) -> jax.Array:
        logp_TV, _ = naive_decoding.naive_logprobs(params, text)
        return -(jnp.take_along_axis(logp_TV, text[1:, None], 1)[:, 0] * weight).sum()

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_the_loss_and_gradient_are_means_over_answer_tokens(layout: str) -> None:
    """Against each question with a schema of its own, in a row of its own."""
    groups = [
        group._replace(
            segments=[s._replace(weight=(np.arange(len(s.weight)) >= 2).astype(float)) for s in group.segments]
        )
        for group in training_data.random_groups(4, 3, longest=8)
    ]
    texts = training_data.plain_texts(groups)
    tokens = sum(int(np.sum(segment.weight)) for _, _, segment in texts)
    longest = max(len(text) for text, _, _ in texts)
    value, slope = 0.0, None
    for text, prefix, segment in texts:
        weight = np.zeros(longest - 1, np.float32)
        weight[prefix : len(text) - 1] = np.asarray(segment.weight) / tokens
        loss, part = _naive_slope(tiny_models.random_params(), np.pad(text, (0, longest - len(text))), weight)
        value, slope = value + float(loss), part if slope is None else jax.tree.map(jnp.add, slope, part)
    cfg = config.RowsConfig(layout=layout, length=80)
    fixed = batch.choose_layout(groups, cfg)
    rows = batch.pack_groups(groups, fixed, cfg)
    rows = rows._replace(weight=batch.loss_weights(rows, "token"))
    fed = batch.assemble_batch(rows, tiny_models.one_device(), 2, 2)
    program = UpdateSpec(tiny_models.MODEL, config.OptimizerConfig(), 1, fixed)
    got, objective, sums = jax.jit(state.compute_gradients, static_argnums=(2, 3, 4))(
        tiny_models.random_params(), fed, sft.sft_loss, None, program
    )
    assert float(objective) == pytest.approx(value, rel=1e-5)
    assert closeness.relative_distance(got, slope) <= 1e-5
    assert closeness.largest_leaf_error(got, slope) <= 1e-4
    assert float(sums["entropy"][1]) == tokens


def test_the_stage_lowers_its_loss_and_goes_on_bit_for_bit(context: RunContext) -> None:
    """Packed rows, Muon: 6 steps at once, and 3 steps and then 3 more."""
    rows = config.RowsConfig(layout="packed", per_microbatch=1)
    optimizer = config.OptimizerConfig(name="muon", learning_rate=0.02)
    stage = dataclasses.replace(context.config.sft, steps=6, databases=3, rows=rows, optimizer=optimizer)
    cfg = dataclasses.replace(context.config, sft=stage)
    whole = dataclasses.replace(context, config=cfg, workdir=context.workdir / "whole")
    whole.workdir.mkdir()
    (whole.workdir / "data").symlink_to(context.data_dir)
    state.update.clear_cache()  # type: ignore[attr-defined]
    with compiled_programs() as compiled:
        at = sft.train(whole)
    assert compiled.count("jit(update)") == 1, "one shape for all steps"
    lines = metrics.read_metrics(whole.workdir / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    assert all(line["tokens"] > 0 and line["not_finite"] == 0 for line in lines)

    shorter = dataclasses.replace(cfg, sft=dataclasses.replace(stage, steps=3))
    sft.train(dataclasses.replace(context, config=shorter))
    resumed = sft.train(dataclasses.replace(context, config=cfg))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed.params), jax.device_get(at.params))
    repeated = metrics.read_metrics(context.workdir / "metrics.jsonl")
    assert [line["loss"] for line in repeated] == [line["loss"] for line in lines]
