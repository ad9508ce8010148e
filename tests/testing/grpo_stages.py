"""A GRPO stage whose completions are scripted by a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sqlr1_jax import config
from sqlr1_jax.data.example import Example
from sqlr1_jax.rl import setup
from sqlr1_jax.rl.learning_check import LearningCheck
from sqlr1_jax.rl.prompt_set import load_prompts
from sqlr1_jax.rl.setup import GrpoSetup
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import batch, loop, state
from sqlr1_jax.train.context import RunContext, init_params
from sqlr1_jax.train.state import UpdateSpec
from testing.scripted_sampler import ScriptedSampler

SETTINGS: dict[str, Any] = {
    "prompts": 4,
    "samples": 2,
    "kl": 0.0,
    "entropy": 0.0,
    "advantage": config.AdvantageConfig(),
}


def with_settings(context: RunContext, **changed: Any) -> RunContext:
    """The context with GRPO settings `SETTINGS | changed` and completions of at most 96 tokens."""
    sampling = config.SamplingConfig(temperature=1.0, max_tokens=96)
    optimizer = config.OptimizerConfig(learning_rate=0.003)
    settings = SETTINGS | changed
    grpo_config = dataclasses.replace(context.config.grpo, sampling=sampling, optimizer=optimizer, **settings)
    return dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=grpo_config))


def scripted_stage(context: RunContext, executor: Executor, say: Callable[[Example, int], str]) -> GrpoSetup:
    """The setup of a stage in which sample number g of an example is the text `say(example, g)`."""
    prompt_set = load_prompts(context)
    by_text = {prompt.text: example for example, prompt in zip(prompt_set.examples, prompt_set.prompts, strict=True)}
    engine: Any = ScriptedSampler(context, lambda text, g: say(by_text[text], g))
    grpo_config = context.config.grpo
    update_spec = UpdateSpec(
        context.model,
        grpo_config.optimizer,
        grpo_config.steps,
        setup.row_layout(grpo_config, engine),
        grpo_config.sampling.temperature,
    )
    rows_config = batch.with_row_length(grpo_config.rows, 96 + 96 * grpo_config.samples)
    reference_params = init_params(context) if grpo_config.kl else None
    microbatches = batch.microbatches(grpo_config.prompts, grpo_config.rows, context.mesh)
    return GrpoSetup(
        context, executor, prompt_set, engine, None, update_spec, reference_params, rows_config, microbatches,
        LearningCheck(0),
    )  # fmt: skip


def values_of(result: loop.StepResult) -> dict[str, float]:
    """All metrics of a step: those on the host, and the means of those summed on the device."""
    return dict(result.values) | state.mean_metrics(result.sums)
