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
from sqlr1_jax.rl import grpo, rollout_log, scoring, setup
from sqlr1_jax.rl.setup import GrpoSetup
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import loop, state
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.state import TrainState, UpdateSpec
from testing import closeness, naive_decoding, training_data
from testing.compilation import compiled_programs
from testing.grpo_stages import scripted_stage, values_of, with_settings
from testing.scripted_sampler import ScriptedSampler

pytestmark = pytest.mark.usefixtures("compiles_fast")


def _step(stage: GrpoSetup, at: TrainState | None = None, step: int = 0) -> tuple[loop.StepResult, TrainState]:
    """A step, and a copy of the state before it, whose own memory the step spends."""
    with jax.set_mesh(stage.context.mesh):
        at = at or state.create_state(init_params(stage.context), stage.update_spec)
        before = jax.device_get(at)
        return grpo.train_step(stage, at, step), before


def _right_and_wrong(example: Any, g: int) -> str:
    return answer.write("tables", example.sql if g == 0 else "SELECT 'wrong'", "reasoning")


def _likelihood(stage: GrpoSetup, params: Any, items: tuple[str, ...], g: int) -> float:
    """Log-probability of what sample g says, summed over the prompts, one plain text each."""
    total = 0.0
    examples = {example.id: i for i, example in enumerate(stage.prompt_set.examples)}
    longest = 200
    for name in items:
        example, prompt = stage.prompt_set.examples[examples[name]], stage.prompt_set.prompts[examples[name]]
        ids = stage.context.tokenizer(_right_and_wrong(example, g), add_special_tokens=False)["input_ids"]
        text = np.array([*prompt.ids, *ids, stage.context.tokenizer.eos_token_id], np.int32)
        padded = np.pad(text, (0, longest - len(text)))
        logp, _ = naive_decoding.naive_logprobs(params, padded, stage.context.model)
        places = np.arange(len(prompt.ids) - 1, len(text) - 1)
        total += float(np.asarray(logp)[places, text[places + 1]].sum())
    return total


@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_a_step_makes_right_answers_likelier_than_wrong_ones(
    context: RunContext, executor: Executor, layout: str
) -> None:
    context = with_settings(context, rows=config.RowsConfig(layout=layout, per_microbatch=2), old_logprobs="trainer")
    stage = scripted_stage(context, executor, _right_and_wrong)
    taken, before = _step(stage)
    values = values_of(taken)
    assert (values["groups/mixed"], values["outcome/match"], values["outcome/mismatch"]) == (1, 0.5, 0.5)
    assert values["ratio/mean"] == pytest.approx(1, abs=1e-5), "the trainer's own log-probabilities"
    assert "kl" not in values
    items = tuple(taken.items)
    assert len(set(items)) == 4
    change = [
        _likelihood(stage, taken.state.params, items, g) - _likelihood(stage, before.params, items, g) for g in (0, 1)
    ]
    assert change[0] > change[1]
    assert int(taken.state.step) == 1


def test_the_two_layouts_take_the_same_step(context: RunContext, executor: Executor) -> None:
    after = []
    for layout in ("shared_prefix", "packed"):
        one = with_settings(context, rows=config.RowsConfig(layout=layout, per_microbatch=2), old_logprobs="trainer")
        taken, before = _step(scripted_stage(one, executor, _right_and_wrong))
        after.append(jax.tree.map(lambda new, old: np.asarray(new) - old, taken.state.params, before.params))
    assert closeness.relative_distance(after[1], after[0]) < 1e-2, (
        "Adam's first step is the gradient's sign, so tiny ones may flip"
    )


@pytest.mark.parametrize("kind", ["all right", "all wrong", "gold fails"])
def test_groups_that_teach_nothing_change_nothing(context: RunContext, executor: Executor, kind: str) -> None:
    context = with_settings(context, advantage=config.AdvantageConfig(keep="all" if kind == "gold fails" else "mixed"))

    def say(example: Any, g: int) -> str:
        del g
        return answer.write("t", example.sql if kind == "all right" else "SELECT 'wrong'", "reasoning")

    stage = scripted_stage(context, executor, say)
    if kind == "gold fails":
        broken = [dataclasses.replace(e, sql="SELECT nothing FROM nowhere") for e in stage.prompt_set.examples]
        stage = dataclasses.replace(stage, prompt_set=scoring.PromptSet(broken, stage.prompt_set.prompts))
    taken, before = _step(stage)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(taken.state.params), before.params)
    values = values_of(taken)
    assert values["not_finite"] == 0
    assert values["loss"] == 0
    if kind == "gold fails":
        assert values["outcome/gold_error"] == 1
    else:
        assert values[f"groups/{kind.replace(' ', '_')}"] == 1


def test_a_step_writes_its_rollouts_and_takes_the_data_in_order(context: RunContext, executor: Executor) -> None:
    stage = scripted_stage(with_settings(context), executor, _right_and_wrong)
    seen: list[str] = []
    taken, _ = _step(stage, step=0)
    seen += taken.items
    for step in (1, 2):
        taken, _ = _step(stage, taken.state, step)
        seen += taken.items
    assert sorted(seen) == sorted(example.id for example in stage.prompt_set.examples), "an epoch is each question once"
    assert [path.name for path in sorted((context.workdir / "rollouts").iterdir())] == [
        rollout_log.path(context.workdir, step).name for step in (1, 2, 3)
    ]
    engine: Any = stage.engine
    assert engine.requests == [(0, 4, 1.0, step) for step in range(3)]


@pytest.mark.parametrize("steps", [4, pytest.param(200, marks=pytest.mark.nightly)])
def test_all_sizes_are_compiled_before_the_first_step(context: RunContext, executor: Executor, steps: int) -> None:
    """Answers of a few words and of dozens."""

    def say(example: Any, g: int) -> str:
        words = 1 if g == 0 else int(rng.integers(longest // 2, longest))
        return answer.write("the " * words, example.sql if g == 0 else "SELECT 'wrong'", "reasoning")

    rng, longest = np.random.default_rng(0), 4
    rows = config.RowsConfig(per_microbatch=2, length_buckets=3, prefix=192, segment=96)
    stage = scripted_stage(with_settings(context, rows=rows, kl=0.1, old_logprobs="trainer"), executor, say)
    assert [layout.segment for layout in packing.layout_ladder(packing.RowLayout(192, 2, 96), 3)] == [48, 72, 96]
    compiled: list[list[str]] = []
    lengths = []
    with jax.set_mesh(context.mesh):
        with compiled_programs() as ahead:
            at = setup.compile_programs(stage, state.create_state(init_params(context), stage.update_spec))
        assert int(at.step) == 0
        for step in range(steps):
            longest = 70 if step % 2 else 4
            with compiled_programs() as names:
                taken = grpo.train_step(stage, at, step)
            at = taken.state
            compiled.append(names)
            lengths.append(values_of(taken)["completion/max_tokens"])
    assert min(lengths) <= 48 and max(lengths) > 72
    assert {"jit(update)", "jit(compute_logprobs)"} <= set(ahead)
    assert not {"jit(update)", "jit(compute_logprobs)"} & set(compiled[0])
    assert not any(compiled[1:])


@given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_drop_filtered_keeps_exactly_the_rows_of_kept_groups(seed: int, keep: list[bool]) -> None:
    rows = packing.pack_rows(training_data.random_groups(6, 2, seed), 40)
    kept = grpo.drop_filtered(rows, np.array(keep))
    want = [(p, g) for p in range(6) for g in range(2) if keep[p]]
    weighed = kept.weight > 0
    assert sorted(set(zip(kept.prompt[weighed].tolist(), kept.sample[weighed].tolist(), strict=True))) == want
    assert weighed.any(axis=1).all()
    assert weighed.sum() == ((rows.weight > 0) & np.array(keep)[rows.prompt]).sum()


def test_the_reference_is_where_the_stage_began_also_after_a_resume(context: RunContext) -> None:
    context = with_settings(context, kl=0.1)
    program = UpdateSpec(context.model, context.config.grpo.optimizer, 4)
    first = state.create_state(init_params(context), program)
    begun = jax.device_get(first.params)
    fresh = setup.load_reference(context, first)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(fresh), begun)
    checkpoints = context.checkpoints("grpo")
    for step in range(4):
        checkpoints.save(step, {"params": jax.tree.map(lambda x, step=step: x + np.float32(step), first.params)})
    moved = dataclasses.replace(first, params=jax.tree.map(lambda x: x + 3, first.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(setup.load_reference(context, moved)), begun)
    assert setup.load_reference(with_settings(context, kl=0.0), moved) is None


def test_sizes_of_the_config_win_over_those_of_the_data(context: RunContext) -> None:
    engine: Any = ScriptedSampler(context, lambda text, g: "")
    assert setup.row_layout(with_settings(context).config.grpo, engine) == packing.RowLayout(96, 2, 96)
    wider = with_settings(context, rows=config.RowsConfig(prefix=128, segment=112))
    assert setup.row_layout(wider.config.grpo, engine) == packing.RowLayout(128, 2, 112)
    assert setup.row_layout(with_settings(context, rows=config.RowsConfig(layout="packed")).config.grpo, engine) is None
