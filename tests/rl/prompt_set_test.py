from __future__ import annotations

import dataclasses
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax import config
from sqlr1_jax.data import order
from sqlr1_jax.data.prompt import PromptRenderer
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.rl.prompt_set import LazyPromptSet, PromptSet, load_prompts
from sqlr1_jax.train.context import RunContext


def with_data(context: RunContext, **changed: Any) -> RunContext:
    data = dataclasses.replace(context.config.data, **changed)
    return dataclasses.replace(context, config=dataclasses.replace(context.config, data=data))


def test_prompts_over_the_token_budget_are_left_out(context: RunContext, caplog: pytest.LogCaptureFixture) -> None:
    lengths = sorted(len(p.ids) for p in load_prompts(context).prompts)
    middle = lengths[len(lengths) // 2]

    def limited(budget: int) -> RunContext:
        data = dataclasses.replace(context.config.data, max_prompt_tokens=budget)
        return dataclasses.replace(context, config=dataclasses.replace(context.config, data=data))

    with caplog.at_level(logging.WARNING):
        prompt_set = load_prompts(limited(middle))
    assert [len(p.ids) for p in prompt_set.prompts if len(p.ids) > middle] == []
    assert [p.example_id for p in prompt_set.prompts] == [e.id for e in prompt_set.examples]
    assert f"{12 - len(prompt_set.prompts)} of 12 prompts are over the budget" in caplog.text
    with pytest.raises(ConfigError, match="gives no prompt within the budget"):
        load_prompts(limited(2))


def test_prompts_that_do_not_fit_a_row_are_left_out(context: RunContext, caplog: pytest.LogCaptureFixture) -> None:
    lengths = sorted(len(p.ids) for p in load_prompts(context).prompts)
    rows = config.RowsConfig(prefix=lengths[len(lengths) // 2] - 1)  # the last token belongs to the segments
    grpo_config = dataclasses.replace(context.config.grpo, rows=rows)
    context = dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=grpo_config))
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(context).prompts
    assert max(len(prompt.ids) - 1 for prompt in prompts) == rows.prefix
    assert f"{12 - len(prompts)} of 12 prompts exceed config.grpo.rows.prefix={rows.prefix}" in caplog.text


def test_prompts_contain_neither_reasoning_nor_gold_sql(context: RunContext) -> None:
    prompt_set = load_prompts(context)
    for example, prompt in zip(prompt_set.examples, prompt_set.prompts, strict=True):
        assert example.reasoning
        assert example.reasoning not in prompt.text
        assert example.sql not in prompt.text


@pytest.fixture
def large_file(context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    """The context with the questions of the embedded data's GRPO split in a file of more than a megabyte."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records = json.loads((context.data_dir / "grpo.json").read_text())
    records[0]["notes"] = "x" * 1_000_000
    (tmp_path / "data.json").write_text(json.dumps(records))
    databases = str(context.data_dir / "databases")
    return with_data(context, train=f"synsql:{tmp_path}/data.json", databases=databases, index_from_megabytes=1)


def lazy_and_eager(context: RunContext) -> tuple[LazyPromptSet, PromptSet]:
    lazy, eager = load_prompts(context), load_prompts(with_data(context, index_from_megabytes=0))
    assert isinstance(lazy, LazyPromptSet)
    assert not isinstance(eager, LazyPromptSet)
    return lazy, eager


def contents(batch: tuple) -> list[tuple]:
    examples, prompts, ids = batch
    return [ids, *((e, p.text, p.ids.tolist(), p.prefix_length) for e, p in zip(examples, prompts, strict=True))]


def test_prompts_rendered_when_needed_are_those_rendered_at_the_start(large_file: RunContext) -> None:
    lazy, eager = lazy_and_eager(large_file)
    for number in (0, 5, 1, 2, 11):
        lazy.render_ahead(4, 3, number + 1)
        assert contents(lazy.batch(4, 3, number)) == contents(eager.batch(4, 3, number))
    assert [(i, e.id, p.text) for i, e, p in lazy.at([7, 2])] == [(i, e.id, p.text) for i, e, p in eager.at([7, 2])]
    assert lazy.max_tokens == large_file.config.data.max_prompt_tokens


def test_a_batch_is_rendered_ahead_on_a_thread(large_file: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, _ = lazy_and_eager(large_file)
    threads, render_many = [], PromptRenderer.render_many

    def recording(*arguments: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        return render_many(*arguments, **named)

    monkeypatch.setattr(PromptRenderer, "render_many", recording)
    lazy.render_ahead(4, 3, 1)
    lazy.batch(4, 3, 0)
    lazy.batch(4, 3, 1)
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_a_question_over_the_budget_is_replaced_by_seed_and_turn(
    large_file: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = sorted(len(prompt.ids) for _, _, prompt in lazy_and_eager(large_file)[0].at(range(12)))
    middle = lengths[len(lengths) // 2]
    rows = config.RowsConfig(prefix=middle - 1)
    grpo_config = dataclasses.replace(large_file.config.grpo, rows=rows)
    limited = dataclasses.replace(large_file, config=dataclasses.replace(large_file.config, grpo=grpo_config))
    lazy = load_prompts(limited)
    in_order = [lazy.examples[i].id for i in order.batch_indices(12, 12, 3, 0)]
    examples, prompts, ids = lazy.batch(12, 3, 0)
    assert max(len(prompt.ids) for prompt in prompts) <= middle
    assert [one.id for one in examples] == [prompt.example_id for prompt in prompts] == ids
    kept = [before for before, after in zip(in_order, ids, strict=True) if before == after]
    fitting = {lazy.examples[i].id for i, _, _ in lazy.at(range(12))}
    assert kept == [one for one in in_order if one in fitting]
    assert len(kept) < 12
    assert contents(load_prompts(limited).batch(12, 3, 0)) == contents((examples, prompts, ids))
    assert caplog.text.count("others take the turns of all such") == 2
    with pytest.raises(ConfigError, match=r"100 items in a row cannot be used: its prompt has over 2 tokens"):
        load_prompts(with_data(large_file, max_prompt_tokens=2)).batch(1, 3, 0)
