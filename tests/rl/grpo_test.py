from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.data import answer, order, packing
from sqlr1_jax.rl import grpo, rollout_log
from sqlr1_jax.rl.prompt_set import PromptSet, load_prompts
from sqlr1_jax.rl.setup import GrpoSetup
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import loop, state
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.state import TrainState
from testing import closeness, naive_decoding, training_data
from testing.compilation import compiled_programs
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
        stage = dataclasses.replace(stage, prompt_set=PromptSet(broken, stage.prompt_set.prompts))
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


def _mixed_at(stage_context: RunContext, executor: Executor, positions: dict[int, list[int]]) -> GrpoSetup:
    """A stage in which the groups at these positions of each step's block of the data order are mixed, by step.

    The others have no right completion.
    """
    prompt_set = load_prompts(stage_context)
    count, block = len(prompt_set.examples), 4 * (1 + stage_context.config.grpo.refill)
    orders = {step: order.batch_indices(count, block, stage_context.config.seed, step) for step in positions}
    # A step's block is one epoch of the 12 examples, so that each step needs a list of its own.
    current = {"step": 0}
    stage = scripted_stage(
        stage_context,
        executor,
        lambda example, g: answer.write(
            "tables" * (1 + g),
            example.sql if g == 0 and example.id in mixed_ids(current["step"]) else "SELECT 'wrong'",
            "reasoning",
        ),
    )

    def mixed_ids(step: int) -> set[str]:
        return {prompt_set.examples[orders[step][position]].id for position in positions[step]}

    engine: Any = stage.engine
    rollout = engine.rollout

    def rollout_of_step(weights: Any, request: Any) -> Any:
        current["step"] = request.step
        return rollout(weights, request)

    engine.rollout = rollout_of_step
    return stage


def _trained(workdir: Path, step: int) -> list[int]:
    """Positions in the step's block of the groups whose advantages are not 0."""
    lines = [json.loads(line) for line in rollout_log.path(workdir, step + 1).open()]
    return [i for i, line in enumerate(lines) if any(sample["advantage"] for sample in line["samples"])]


@pytest.mark.parametrize(
    ("mixed", "rounds", "trained"),
    [
        ([0, 1, 2, 3, 4], 1, [0, 1, 2, 3]),
        ([0, 2, 5, 6, 7, 8], 2, [0, 2, 5, 6]),
        ([3, 4, 9, 10, 11], 3, [3, 4, 9, 10]),
        ([1, 11], 3, [1, 11]),
        ([], 3, []),
    ],
)
def test_rounds_are_sampled_until_the_batch_is_full_of_mixed_groups(
    context: RunContext, executor: Executor, mixed: list[int], rounds: int, trained: list[int]
) -> None:
    context = with_settings(context, refill=2, rows=config.RowsConfig(per_microbatch=2))
    stage = _mixed_at(context, executor, {1: mixed})
    result, before = _step(stage, step=1)
    values, engine = values_of(result), typing.cast(Any, stage.engine)
    # The index of a round's first prompt continues that of the round before, so all samples have their own randomness.
    assert engine.requests == [(4 * r, 4, 1.0, 1) for r in range(rounds)]
    block = order.batch_indices(12, 12, context.config.seed, 1)
    assert list(result.items) == [stage.prompt_set.examples[i].id for i in block[: 4 * rounds]]
    assert _trained(context.workdir, 1) == trained
    names = ("groups/rounds", "groups/sampled", "groups/trained")
    assert tuple(values[name] for name in names) == (rounds, 4 * rounds, len(trained))
    assert values["groups/mixed"] == len([p for p in mixed if p < 4 * rounds]) / (4 * rounds)
    moved = closeness.relative_distance(jax.device_get(result.state.params), before.params) > 0
    assert moved == bool(trained)


@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_refilled_groups_train_as_if_sampled_in_one_round(context: RunContext, executor: Executor, layout: str) -> None:
    """Also where advantages are normalized over the batch: dropped groups are no part of it."""
    updates = []
    for refill, mixed in ((2, [0, 2, 5, 9]), (0, [0, 1, 2, 3])):
        changed = with_settings(
            context, refill=refill, rows=config.RowsConfig(layout=layout, per_microbatch=2),
            advantage=config.AdvantageConfig(normalize="parts"),
        )  # fmt: skip
        stage = _mixed_at(changed, executor, {0: mixed})
        if not refill:  # the same four questions, in one batch
            block = order.batch_indices(12, 12, context.config.seed, 0)
            chosen = [block[p] for p in (0, 2, 5, 9)]
            stage = scripted_stage(changed, executor, lambda e, g: _long_if_wrong(e, g))
            examples, prompts = stage.prompt_set.examples, stage.prompt_set.prompts
            chosen_set = PromptSet([examples[i] for i in chosen], [prompts[i] for i in chosen])
            stage = dataclasses.replace(stage, prompt_set=chosen_set)
        result, before = _step(stage)
        assert values_of(result)["groups/trained"] == 4
        updates.append(jax.tree.map(lambda new, old: np.asarray(new) - old, result.state.params, before.params))
    assert closeness.relative_distance(updates[1], updates[0]) < 1e-2, "Adam's first step is the gradient's sign"


def _long_if_wrong(example: Any, g: int) -> str:
    return answer.write("tables" * (1 + g), example.sql if g == 0 else "SELECT 'wrong'", "reasoning")


def test_further_rounds_compile_nothing(context: RunContext, executor: Executor) -> None:
    stage = _mixed_at(with_settings(context, refill=2), executor, {0: [0, 1, 2, 3], 1: [0, 5, 9, 10], 2: [3, 4]})
    result, _ = _step(stage)
    for step in (1, 2):
        with jax.set_mesh(stage.context.mesh), compiled_programs() as names:
            result = grpo.train_step(stage, result.state, step)
        assert values_of(result)["groups/rounds"] == 3
        assert names == []


def _train(stage: GrpoSetup, steps: int, stop_after: int | None = None) -> TrainState:
    """Runs the training loop, from the stage's latest checkpoint; raises KeyboardInterrupt after a step if asked to."""

    def step_fn(train_state: TrainState, step: int) -> loop.StepResult:
        result = grpo.train_step(stage, train_state, step)
        if step == stop_after:
            raise KeyboardInterrupt
        return result

    with jax.set_mesh(stage.context.mesh):
        initial = state.create_state(init_params(stage.context), stage.update_spec)
        return loop.run_steps(
            stage.context, "grpo", steps, initial, step_fn,
            on_resume=lambda step: rollout_log.truncate(stage.context.workdir, step),
        )  # fmt: skip


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_refilled_run_stopped_in_any_step_resumes_to_the_bit(
    context: RunContext, executor: Executor, tmp_path: Path, stop_after: int
) -> None:
    """Steps take one to three rounds. Checkpoints are two steps apart, so that most stops repeat a step."""
    mixed = {0: [0, 1, 5, 6], 1: [0, 1, 2, 3], 2: [3, 9], 3: [1, 2, 4, 5, 6]}
    checkpoint = config.CheckpointConfig(every=2)
    ends = []
    for name, stop in (("whole", None), ("stopped", stop_after)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(context.data_dir)
        run_context = dataclasses.replace(with_settings(context, refill=2), workdir=tmp_path / name)
        run_context = dataclasses.replace(
            run_context, config=dataclasses.replace(run_context.config, checkpoint=checkpoint)
        )
        stage = _mixed_at(run_context, executor, mixed)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                _train(stage, 4, stop)
        end = jax.device_get(_train(stage, 4).params)
        files = {path.name: path.read_bytes() for path in (tmp_path / name / "rollouts").iterdir()}
        ends.append((end, files))
    jax.tree.map(np.testing.assert_array_equal, ends[1][0], ends[0][0])
    assert ends[1][1] == ends[0][1]
    assert [_trained(tmp_path / "stopped", step) for step in mixed] == [
        [0, 1, 5, 6],
        [0, 1, 2, 3],
        [3, 9],
        [1, 2, 4, 5],
    ]


@given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_drop_filtered_keeps_all_loss_of_kept_groups_and_no_row_without_loss(seed: int, keep: list[bool]) -> None:
    rows = packing.pack_rows(training_data.random_groups(6, 2, seed), 40)
    kept = grpo.drop_filtered(rows, np.array(keep))
    want = [(p, g) for p in range(6) for g in range(2) if keep[p]]
    has_loss = kept.weight > 0
    assert sorted(set(zip(kept.prompt[has_loss].tolist(), kept.sample[has_loss].tolist(), strict=True))) == want
    assert has_loss.any(axis=1).all()
    assert has_loss.sum() == ((rows.weight > 0) & np.array(keep)[rows.prompt]).sum()
