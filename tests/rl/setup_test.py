from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from sqlr1_jax import config
from sqlr1_jax.data import answer, packing
from sqlr1_jax.rl import grpo, setup
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import state
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.state import UpdateSpec
from testing.compilation import compiled_programs
from testing.grpo_stages import scripted_stage, values_of, with_settings
from testing.scripted_sampler import ScriptedSampler

pytestmark = pytest.mark.usefixtures("compiles_fast")


@pytest.mark.parametrize("steps", [4, pytest.param(200, marks=pytest.mark.nightly)])
def test_every_row_size_is_compiled_before_the_first_step(context: RunContext, executor: Executor, steps: int) -> None:
    """Completions have a few words in even steps and dozens in odd ones, so that steps need different row sizes."""

    def completion(example: Any, g: int) -> str:
        words = 1 if g == 0 else int(rng.integers(longest // 2, longest))
        return answer.write("the " * words, example.sql if g == 0 else "SELECT 'wrong'", "reasoning")

    rng, longest = np.random.default_rng(0), 4
    rows = config.RowsConfig(per_microbatch=2, prefix_buckets=1, segment_buckets=3, prefix=192, segment=96)
    stage = scripted_stage(with_settings(context, rows=rows, kl=0.1, old_logprobs="trainer"), executor, completion)
    assert packing.Buckets(1, 3).sizes(packing.RowLayout(192, 2, 96)) == ((192,), (48, 72, 96))
    compiled: list[list[str]] = []
    lengths = []
    with jax.set_mesh(context.mesh):
        with compiled_programs() as before_training:
            train_state = setup.compile_programs(stage, state.create_state(init_params(context), stage.update_spec))
        assert int(train_state.step) == 0
        for step in range(steps):
            longest = 70 if step % 2 else 4
            with compiled_programs() as names:
                result = grpo.train_step(stage, train_state, step)
            train_state = result.state
            compiled.append(names)
            lengths.append(values_of(result)["completion/max_tokens"])
    assert min(lengths) <= 48 and max(lengths) > 72
    assert {"jit(update)", "jit(compute_logprobs)"} <= set(before_training)
    assert not {"jit(update)", "jit(compute_logprobs)"} & set(compiled[0])
    assert not any(compiled[1:])


def test_the_reference_has_the_weights_of_step_0_also_after_a_resume(context: RunContext) -> None:
    context = with_settings(context, kl=0.1)
    update_spec = UpdateSpec(context.model, context.config.grpo.optimizer, 4)
    initial = state.create_state(init_params(context), update_spec)
    initial_params = jax.device_get(initial.params)
    fresh = setup.load_reference(context, initial)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(fresh), initial_params)
    checkpoints = context.checkpoints("grpo")
    for step in range(4):
        checkpoints.save(step, {"params": jax.tree.map(lambda x, step=step: x + np.float32(step), initial.params)})
    moved = dataclasses.replace(initial, params=jax.tree.map(lambda x: x + 3, initial.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(setup.load_reference(context, moved)), initial_params)
    assert setup.load_reference(with_settings(context, kl=0.0), moved) is None


def test_row_sizes_of_the_config_override_the_default_ones(context: RunContext) -> None:
    engine: Any = ScriptedSampler(context, lambda text, g: "")
    assert setup.row_layout(with_settings(context).config.grpo, engine) == packing.RowLayout(96, 2, 96)
    wider = with_settings(context, rows=config.RowsConfig(prefix=128, segment=112))
    assert setup.row_layout(wider.config.grpo, engine) == packing.RowLayout(128, 2, 112)
    assert setup.row_layout(with_settings(context, rows=config.RowsConfig(layout="packed")).config.grpo, engine) is None
