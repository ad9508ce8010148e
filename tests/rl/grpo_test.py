from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.data import answer, packing
from sqlr1_jax.rl import grpo, rollout_log, scoring
from sqlr1_jax.rl.setup import GrpoSetup
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import loop, state
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.state import TrainState
from testing import closeness, naive_decoding, training_data
from testing.grpo_stages import scripted_stage, values_of, with_settings

pytestmark = pytest.mark.usefixtures("compiles_fast")


def _step(stage: GrpoSetup, train_state: TrainState | None = None, step: int = 0) -> tuple[loop.StepResult, TrainState]:
    """A step's result, and a copy of the state before it: the step donates that state's buffers."""
    with jax.set_mesh(stage.context.mesh):
        train_state = train_state or state.create_state(init_params(stage.context), stage.update_spec)
        before = jax.device_get(train_state)
        return grpo.train_step(stage, train_state, step), before


def _right_and_wrong(example: Any, g: int) -> str:
    return answer.write("tables", example.sql if g == 0 else "SELECT 'wrong'", "reasoning")


def _likelihood(stage: GrpoSetup, params: Any, items: tuple[str, ...], g: int) -> float:
    """Log-probability of sample g, summed over the prompts, each as one plain text."""
    total = 0.0
    examples = {example.id: i for i, example in enumerate(stage.prompt_set.examples)}
    longest = 200
    for name in items:
        example, prompt = stage.prompt_set.examples[examples[name]], stage.prompt_set.prompts[examples[name]]
        ids = stage.context.tokenizer(_right_and_wrong(example, g), add_special_tokens=False)["input_ids"]
        text = np.array([*prompt.ids, *ids, stage.context.tokenizer.eos_token_id], np.int32)
        padded = np.pad(text, (0, longest - len(text)))
        logp, _ = naive_decoding.naive_logprobs(params, padded, stage.context.model)
        positions = np.arange(len(prompt.ids) - 1, len(text) - 1)
        total += float(np.asarray(logp)[positions, text[positions + 1]].sum())
    return total


@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_a_step_raises_the_likelihood_of_right_answers_over_wrong_ones(
    context: RunContext, executor: Executor, layout: str
) -> None:
    context = with_settings(context, rows=config.RowsConfig(layout=layout, per_microbatch=2), old_logprobs="trainer")
    stage = scripted_stage(context, executor, _right_and_wrong)
    result, before = _step(stage)
    values = values_of(result)
    assert (values["groups/mixed"], values["outcome/match"], values["outcome/mismatch"]) == (1, 0.5, 0.5)
    assert values["ratio/mean"] == pytest.approx(1, abs=1e-5), "old log-probabilities are the trainer's own"
    assert "kl" not in values
    items = tuple(result.items)
    assert len(set(items)) == 4
    change = [
        _likelihood(stage, result.state.params, items, g) - _likelihood(stage, before.params, items, g) for g in (0, 1)
    ]
    assert change[0] > change[1]
    assert int(result.state.step) == 1


def test_both_row_layouts_give_the_same_update(context: RunContext, executor: Executor) -> None:
    updates = []
    for layout in ("shared_prefix", "packed"):
        layout_context = with_settings(
            context, rows=config.RowsConfig(layout=layout, per_microbatch=2), old_logprobs="trainer"
        )
        result, before = _step(scripted_stage(layout_context, executor, _right_and_wrong))
        updates.append(jax.tree.map(lambda new, old: np.asarray(new) - old, result.state.params, before.params))
    assert closeness.relative_distance(updates[1], updates[0]) < 1e-2, (
        "Adam's first step is the sign of the gradient, so signs of tiny gradients may differ"
    )


@pytest.mark.parametrize("kind", ["all right", "all wrong", "gold fails"])
def test_a_step_with_only_dropped_groups_changes_no_weight(context: RunContext, executor: Executor, kind: str) -> None:
    context = with_settings(context, advantage=config.AdvantageConfig(keep="all" if kind == "gold fails" else "mixed"))

    def completion(example: Any, g: int) -> str:
        del g
        return answer.write("t", example.sql if kind == "all right" else "SELECT 'wrong'", "reasoning")

    stage = scripted_stage(context, executor, completion)
    if kind == "gold fails":
        broken = [dataclasses.replace(e, sql="SELECT nothing FROM nowhere") for e in stage.prompt_set.examples]
        stage = dataclasses.replace(stage, prompt_set=scoring.PromptSet(broken, stage.prompt_set.prompts))
    result, before = _step(stage)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.state.params), before.params)
    values = values_of(result)
    assert values["not_finite"] == 0
    assert values["loss"] == 0
    if kind == "gold fails":
        assert values["outcome/gold_error"] == 1
    else:
        assert values[f"groups/{kind.replace(' ', '_')}"] == 1


def test_steps_write_rollouts_and_follow_the_data_order(context: RunContext, executor: Executor) -> None:
    stage = scripted_stage(with_settings(context), executor, _right_and_wrong)
    example_ids: list[str] = []
    result, _ = _step(stage, step=0)
    example_ids += result.items
    for step in (1, 2):
        result, _ = _step(stage, result.state, step)
        example_ids += result.items
    assert sorted(example_ids) == sorted(example.id for example in stage.prompt_set.examples), (
        "an epoch has each question once"
    )
    assert [path.name for path in sorted((context.workdir / "rollouts").iterdir())] == [
        rollout_log.path(context.workdir, step).name for step in (1, 2, 3)
    ]
    engine: Any = stage.engine
    assert engine.requests == [(0, 4, 1.0, step) for step in range(3)]


@given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_drop_filtered_keeps_all_loss_of_kept_groups_and_no_row_without_loss(seed: int, keep: list[bool]) -> None:
    rows = packing.pack_rows(training_data.random_groups(6, 2, seed), 40)
    kept = grpo.drop_filtered(rows, np.array(keep))
    want = [(p, g) for p in range(6) for g in range(2) if keep[p]]
    has_loss = kept.weight > 0
    assert sorted(set(zip(kept.prompt[has_loss].tolist(), kept.sample[has_loss].tolist(), strict=True))) == want
    assert has_loss.any(axis=1).all()
    assert has_loss.sum() == ((rows.weight > 0) & np.array(keep)[rows.prompt]).sum()
