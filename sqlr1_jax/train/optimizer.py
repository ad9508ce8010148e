"""Optimizers by name, from optax: AdamW, or Muon on the layers' matrices."""

from __future__ import annotations

from typing import Any

import jax
import optax

from sqlr1_jax import config
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import qwen2


def make_optimizer(cfg: config.OptimizerConfig, model: qwen2.Qwen2Config, steps: int) -> optax.GradientTransformation:
    """The gradient transformation of a stage of `steps` steps; clipping by global norm comes first.

    Building it costs nothing, so a jitted function makes its own from static settings.
    """
    specs = qwen2.abstract_params(model)
    rate = schedule(cfg, steps)
    if cfg.name == "muon":
        inner = _muon(cfg, rate, specs)
    else:
        inner = optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay)
    if cfg.frozen:
        labels = _labels(specs, cfg.frozen)
        inner = optax.partition({"trained": inner, "frozen": optax.set_to_zero()}, labels)
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, inner)


def schedule(cfg: config.OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up, then constant, or cosine or linear down to end_fraction."""
    peak, decay = cfg.learning_rate, max(1, steps - cfg.warmup_steps)
    if cfg.schedule == "cosine":
        body = optax.cosine_decay_schedule(peak, decay, cfg.end_fraction)
    elif cfg.schedule == "linear":
        body = optax.linear_schedule(peak, peak * cfg.end_fraction, decay)
    else:
        body = optax.constant_schedule(peak)
    # The first step of a warm-up takes a rate of 1/warmup, not 0: a step that changes nothing is a wasted step.
    warm = optax.linear_schedule(peak / max(1, cfg.warmup_steps), peak, max(1, cfg.warmup_steps - 1))
    return optax.join_schedules([warm, body], [cfg.warmup_steps])


def _muon(cfg: config.OptimizerConfig, rate: optax.Schedule, specs: Any) -> optax.GradientTransformation:
    dimensions = jax.tree.map(_matrix, specs, is_leaf=qwen2.is_spec)
    share = (cfg.adam_learning_rate or cfg.learning_rate) / cfg.learning_rate
    return optax.contrib.muon(
        rate,
        adam_learning_rate=lambda step: share * rate(step),
        weight_decay=cfg.weight_decay,
        eps=cfg.eps,
        adam_b1=cfg.b1,
        adam_b2=cfg.b2,
        adam_weight_decay=cfg.weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )


def _matrix(spec: qwen2.ParamSpec) -> optax.contrib.MuonDimensionNumbers | None:
    """How a stacked layer weight is a batch of matrices between the residual stream and something else."""
    axes = spec.logical_axes
    if "layers" not in axes or "embed" not in axes or len(axes) < 3:
        return None
    embed = (axes.index("embed"),)
    other = tuple(i for i, name in enumerate(axes) if name not in ("layers", "embed"))
    reads = embed < other
    return optax.contrib.MuonDimensionNumbers(*((embed, other) if reads else (other, embed)))


def _labels(specs: Any, frozen: tuple[str, ...]) -> Any:
    found: set[str] = set()

    def label(path: tuple, _: Any) -> str:
        names = {part.key for part in path}
        found.update(names & set(frozen))
        return "frozen" if names & set(frozen) else "trained"

    labels = jax.tree_util.tree_map_with_path(label, specs, is_leaf=qwen2.is_spec)
    if missing := set(frozen) - found:
        raise ConfigError(f"optimizer.frozen names {sorted(missing)}, which the model's parameters don't have.")
    return labels
