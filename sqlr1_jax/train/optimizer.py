"""Optimizers from optax by name: AdamW, or Muon for the layers' matrices and AdamW for all other parameters."""

from __future__ import annotations

from typing import Any

import jax
import optax

from sqlr1_jax.config import OptimizerConfig
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import lora, qwen2


def make_optimizer(config: OptimizerConfig, model: qwen2.Qwen2Config, steps: int) -> optax.GradientTransformation:
    """The gradient transformation of a stage of `steps` steps: clipping by global norm, then the optimizer.

    It is cheap to build, so a jitted function builds it from its static arguments.

    Raises:
      ConfigError: `config.frozen` names a parameter that the model does not have.
    """
    specs, _ = lora.split(qwen2.abstract_params(model))
    learning_rate = schedule(config, steps)
    if config.name == "muon":
        tx = _muon(config, learning_rate, specs)
    else:
        tx = optax.adamw(learning_rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay)
    if config.frozen:
        tx = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, _frozen_labels(specs, config.frozen))
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, tx)


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warmup, then constant, or cosine or linear decay to end_fraction of the peak."""
    peak, decay_steps = config.learning_rate, max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, config.end_fraction)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * config.end_fraction, decay_steps)
    else:
        decay = optax.constant_schedule(peak)
    # Warmup starts at peak / warmup_steps, because a rate of 0 would make the first step useless.
    warmup = optax.linear_schedule(peak / max(1, config.warmup_steps), peak, max(1, config.warmup_steps - 1))
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def at_step(opt_state: Any, step: jax.Array) -> Any:
    """The optimizer state with its schedules at `step`, the number of completed steps.

    optax's own count leaves out the steps that changed no weights, so its learning rate would lag behind the one that
    `schedule` gives for the step. Adam's count stays: it is the number of gradients in its moments.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda node: node._replace(count=step) if is_schedule(node) else node, opt_state, is_leaf=is_schedule
    )


def _muon(config: OptimizerConfig, learning_rate: optax.Schedule, specs: Any) -> optax.GradientTransformation:
    adam_ratio = (config.adam_learning_rate or config.learning_rate) / config.learning_rate
    return optax.contrib.muon(
        learning_rate,
        adam_learning_rate=lambda step: adam_ratio * learning_rate(step),
        weight_decay=config.weight_decay,
        eps=config.eps,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_weight_decay=config.weight_decay,
        consistent_rms=0.2,  # scales updates to the RMS of Adam's, so that one learning rate suits both (Moonlight)
        muon_weight_dimension_numbers=jax.tree.map(_muon_dimensions, specs, is_leaf=qwen2.is_spec),
    )


def _muon_dimensions(spec: qwen2.ParamSpec) -> optax.contrib.MuonDimensionNumbers | None:
    """How Muon sees a stacked layer weight: a batch of matrices from or to `embed`. None: AdamW updates it."""
    axes = spec.logical_axes
    if "layers" not in axes or "embed" not in axes or len(axes) < 3:
        return None
    embed = (axes.index("embed"),)
    other = tuple(i for i, name in enumerate(axes) if name not in ("layers", "embed"))
    inputs, outputs = (embed, other) if embed < other else (other, embed)
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)


def _frozen_labels(specs: Any, frozen: tuple[str, ...]) -> Any:
    """A tree of labels: "frozen" for parameters whose path contains a name in `frozen`, else "trained"."""
    matched: set[str] = set()

    def label(path: tuple, _: Any) -> str:
        names = {key.key for key in path} & set(frozen)
        matched.update(names)
        return "frozen" if names else "trained"

    labels = jax.tree_util.tree_map_with_path(label, specs, is_leaf=qwen2.is_spec)
    if missing := set(frozen) - matched:
        raise ConfigError(f"optimizer.frozen names {sorted(missing)}, which the model's parameters don't have.")
    return labels
