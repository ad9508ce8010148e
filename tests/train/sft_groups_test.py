from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import answer, packing
from sqlr1_jax.data.packing import Group, RowLayout
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.train import batch, sft_groups, state
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.sft_groups import LazyGroupSet, load_groups
from sqlr1_jax.train.state import UpdateSpec
from testing import naive_decoding

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
    groups, group_ids = sft_groups.make_groups(context, context.examples("synth:", "sft"))
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
    groups, group_ids = sft_groups.make_groups(context, context.examples("synth:", "sft"))
    assert sorted(len(group.segments) for group in groups) == [1] * 6 + [3] * 6
    assert len(set(group_ids)) == 12


def test_an_answer_continues_the_reply_that_the_prompt_opens(context: RunContext) -> None:
    context = _with_data(context, prompt="arctic", schema="compact")
    examples = context.examples("synth:", "sft")[:4]
    for sft_example in sft_groups.make_sft_examples(context, examples):
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
    groups, _ = sft_groups.make_groups(context, context.examples("synth:", "sft"))
    assert all(len(group.prefix) == 0 for group in groups)
    layout = batch.choose_layout(groups, context.config.sft.rows)
    assert layout is not None
    rows = batch.pack_groups(groups[:1], layout, context.config.sft.rows)
    one_batch = batch.assemble_batch(rows, context.mesh, batch.Microbatches(1, 1))
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
        sft_groups.make_groups(context, without_reasoning)
    with caplog.at_level(logging.WARNING):
        groups, _ = sft_groups.make_groups(context, [without_reasoning[0], *examples[1:]])
    assert sum(len(group.segments) for group in groups) == len(examples) - 1
    assert "1 of 24 examples left out: each has no answer in this form" in caplog.text


def test_sql_that_breaks_the_answer_form_is_left_out_and_logged(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    examples = context.examples("synth:", "sft")
    broken = dataclasses.replace(examples[3], sql="SELECT '</answer>'")
    with caplog.at_level(logging.WARNING):
        sft_examples = sft_groups.make_sft_examples(context, [*examples[:3], broken])
    assert [sft_example.example.id for sft_example in sft_examples] == [e.id for e in examples[:3]]
    assert broken.id in caplog.text


def test_prompts_over_the_budget_are_left_out_and_counted_in_the_log(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    context = _with_data(context, schema="compact")  # the shortest; prompts in any other would fall back to it
    examples = context.examples("synth:", "sft")
    lengths = sorted(len(p.ids) for p in context.prompts(examples))
    with caplog.at_level(logging.WARNING):
        sft_examples = sft_groups.make_sft_examples(_with_data(context, max_prompt_tokens=lengths[12]), examples)
    over = sum(length > lengths[12] for length in lengths)
    assert len(sft_examples) == 24 - over
    assert f"{over} of 24 examples left out: each has a prompt over the budget" in caplog.text
    with pytest.raises(ConfigError, match="gives no example to learn from"):
        sft_groups.make_sft_examples(_with_data(context, max_prompt_tokens=3), examples)


def _with_sft(context: RunContext, **settings: Any) -> RunContext:
    sft_config = dataclasses.replace(context.config.sft, **settings)
    return dataclasses.replace(context, config=dataclasses.replace(context.config, sft=sft_config))


def test_one_long_answer_does_not_set_the_length_of_all_rows(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    examples = context.examples("synth:", "sft")
    long = dataclasses.replace(examples[0], id="long", reasoning="think " * 4000)
    rows_config = context.config.sft.rows
    layout = batch.choose_layout(sft_groups.make_groups(context, examples)[0], rows_config)
    with caplog.at_level(logging.WARNING):
        assert batch.choose_layout(sft_groups.make_groups(context, [*examples, long])[0], rows_config) == layout
    reason = "each has an answer over config.sft.max_answer_tokens=4096 (long)"
    assert f"1 of {len(examples) + 1} examples left out: {reason}" in caplog.text
    unlimited, _ = sft_groups.make_groups(_with_sft(context, max_answer_tokens=0), [*examples, long])
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
        groups, _ = sft_groups.make_groups(context, examples)
    kept = sum(len(group.segments) for group in groups)
    assert 0 < kept < len(examples)
    assert f"{len(examples) - kept} of {len(examples)} examples left out: each {reason} (" in caplog.text
    batch.pack_groups(groups, batch.choose_layout(groups, context.config.sft.rows), context.config.sft.rows)


@pytest.fixture
def large_file(context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    """The context with the embedded data's SFT split, its databases taking turns, in a file of more than a megabyte."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records = json.loads((context.data_dir / "sft.json").read_text())
    records = sorted(records, key=lambda record: record["question"])
    records[0]["notes"] = "x" * 1_000_000
    (tmp_path / "data.json").write_text(json.dumps(records))
    databases = str(context.data_dir / "databases")
    settings = {"sft": f"synsql:{tmp_path}/data.json", "databases": databases, "index_from_megabytes": 1}
    return _with_sft(_with_data(context, **settings), questions=3, rows=config.RowsConfig(prefix=300, segment=200))


def _contents(batch_: tuple[list[Group], list[str]]) -> tuple:
    groups, ids = batch_
    return ids, [(list(g.prefix), [(list(s.tokens), list(s.weight), *s[3:]) for s in g.segments]) for g in groups]


def test_groups_made_when_needed_are_those_made_at_the_start(large_file: RunContext) -> None:
    lazy, eager = load_groups(large_file), load_groups(_with_data(large_file, index_from_megabytes=0))
    assert isinstance(lazy, LazyGroupSet)
    assert not isinstance(eager, LazyGroupSet)
    for number in (0, 3, 1, 2):
        lazy.make_ahead(4, 3, number + 1)
        assert _contents(lazy.batch(4, 3, number)) == _contents(eager.batch(4, 3, number))
    assert lazy.layout == eager.layout == RowLayout(300, 3, 200)


@pytest.mark.parametrize("layout", ["packed", "shared_prefix"])
def test_examples_that_cannot_be_learned_are_missing_from_their_group(large_file: RunContext, layout: str) -> None:
    whole, _ = load_groups(large_file).batch(6, 3, 0)
    segments = sorted(len(segment.tokens) - 1 for group in whole for segment in group.segments)
    longest_rows = sorted(packing.packed_length(group) for group in whole)
    rows = {"prefix": 300, "segment": segments[-2], "length": longest_rows[-2]}
    limited = _with_sft(large_file, rows=config.RowsConfig(layout, **rows))
    lazy = load_groups(limited)
    groups, ids = lazy.batch(6, 3, 0)
    too_long = sum(length > segments[-2] for length in segments)
    if layout == "packed":
        too_long = sum(length > longest_rows[-2] for length in longest_rows)
    assert [len(whole), len(ids)] == [6, 6]
    assert sum(len(group.segments) for group in groups) == len(segments) - too_long
    batch.pack_groups(groups, lazy.layout, dataclasses.replace(limited.config.sft.rows, length=lazy.row_length))


@pytest.mark.parametrize(
    ("rows", "name"), [({"layout": "packed"}, "length"), ({"segment": 9}, "prefix"), ({"prefix": 9}, "segment")]
)
def test_a_large_file_needs_the_lengths_of_rows(large_file: RunContext, rows: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"config\.sft\.rows\.{name} is 0, .*set --config\.sft\.rows\.{name}"):
        load_groups(_with_sft(large_file, rows=config.RowsConfig(**rows)))
    with pytest.raises(ConfigError, match="100 items in a row cannot be used: none of its examples"):
        load_groups(_with_sft(large_file, max_answer_tokens=1)).batch(1, 3, 0)
