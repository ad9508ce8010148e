"""Which settings may change when a run resumes, and whether a run's folder may be used with a config."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from sqlr1_jax.config import Config, as_dict, load
from sqlr1_jax.config_checks import get
from sqlr1_jax.config_tree import leaves
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.io import write_json

log = logging.getLogger(__name__)

# These settings may change. Most do not affect the result of a step. The exceptions are sft.steps and grpo.steps if the
# learning rate decays: after the resume, it follows the schedule of the new length.
FREE = (
    "stages",
    "compile_cache",
    "mesh.stuck_minutes",
    "sft.steps",
    "grpo.steps",
    "grpo.idle_steps",
    "evaluate.every",
    "checkpoint.every",
    "checkpoint.minutes",
    "checkpoint.keep",
    "execute.workers",
    "execute.gold_cache_dir",
    "export.form",
    "export.step",
    "export.dtype",
    "export.shard_gigabytes",
    "data.staged",
    "data.synth.workers",
)
# These may change too, so that a run goes on with other hardware. They change the order of floating-point sums, so
# later steps are not the same bits.
FREE_UP_TO_ROUNDING = (
    "model.attention",
    "model.query_chunk",
    "model.ffw_chunks",
    "model.logits_chunk",
    "model.remat",
    "model.unroll",
    "mesh.replica",
    "mesh.fsdp",
    "mesh.tensor",
    "sft.rows.per_microbatch",
    "sft.rows.prefix_buckets",
    "sft.rows.segment_buckets",
    "grpo.rows.per_microbatch",
    "grpo.rows.prefix_buckets",
    "grpo.rows.segment_buckets",
    "rollout.max_concurrent_prompts",
    "rollout.prefill_batch",
    "rollout.prompt_buckets",
    "rollout.decode_steps_per_sync",
    "evaluate.max_concurrent_prompts",
)


def differences(old: Config, new: Config) -> dict[str, str]:
    """Paths of the settings that differ and are not in FREE, each with a line that gives both values."""
    return {
        path: f"config.{path}: {before!r} in the run, {get(new, path)!r} now"
        for path, before in leaves(as_dict(old))
        if before != get(new, path) and path not in FREE
    }


def claim(config: Config, workdir: Path) -> None:
    """Writes config.json, or compares it with the settings of the run that is already in the folder.

    A run that has not completed a step keeps nothing of its settings: a value that a stage refused can be corrected.

    Raises:
      ConfigError: that run has other settings, which the message lists, or its config.json is broken.
    """
    path = workdir / "config.json"
    changed = differences(load(path), config) if path.exists() else {}
    refused = [line for name, line in changed.items() if name not in FREE_UP_TO_ROUNDING]
    if changed and not _has_results(workdir):
        log.info("the run in %s has no results yet; its settings change: %s", workdir, "; ".join(changed.values()))
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)  # initial weights, of the other settings
    elif refused:
        raise ConfigError(
            f"{workdir} holds a run of another config: {'; '.join(refused)}. "
            "Choose another --workdir, or the settings that it was started with."
        )
    elif changed:
        log.warning("the run goes on, equal up to rounding but not in its bits: %s", "; ".join(changed.values()))
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, as_dict(config))


def _has_results(workdir: Path) -> bool:
    """Whether a stage has left more than generated data, which have their own check, and checkpoints of step 0."""
    steps = {path.name for path in workdir.glob("checkpoints/*/*")}
    return bool(steps - {"0"}) or any(
        (workdir / name).exists() for name in ("metrics.jsonl", "rollouts", "evaluation", "export")
    )
