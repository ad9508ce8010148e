"""A stage of GRPO whose sampler says what a test tells it to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sqlr1_jax import config
from sqlr1_jax.data.example import Example
from sqlr1_jax.rl import scoring, setup
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
    """The run under SETTINGS, samples of up to 96 tokens, and these settings of GRPO."""
    sampling = config.SamplingConfig(temperature=1.0, max_tokens=96)
    optimizer = config.OptimizerConfig(learning_rate=0.003)
    cfg = dataclasses.replace(context.config.grpo, sampling=sampling, optimizer=optimizer, **(SETTINGS | changed))
    return dataclasses.replace(context, config=dataclasses.replace(context.config, grpo=cfg))


def scripted_stage(context: RunContext, executor: Executor, say: Callable[[Example, int], str]) -> GrpoSetup:
    """A stage whose completions are `say(example, sample)`."""
    prompt_set = scoring.load_prompts(context)
    by_text = {prompt.text: example for example, prompt in zip(prompt_set.examples, prompt_set.prompts, strict=True)}
    engine: Any = ScriptedSampler(context, lambda text, g: say(by_text[text], g))
    cfg = context.config.grpo
    layout = setup.row_layout(cfg, engine)
    rows = batch.with_row_length(cfg.rows, 96 + 96 * cfg.samples)
    program = UpdateSpec(context.model, cfg.optimizer, cfg.steps, layout, cfg.sampling.temperature)
    reference = init_params(context) if cfg.kl else None
    return GrpoSetup(context, executor, prompt_set, engine, program, reference, rows, 2)


def values_of(taken: loop.StepResult) -> dict[str, float]:
    """All metrics of a step: those known on the host, and the means of those summed on the device."""
    return dict(taken.values) | state.mean_metrics(taken.sums)
