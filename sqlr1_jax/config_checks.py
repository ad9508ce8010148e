"""Checks of settings: the values that each one takes, and errors for typos, old names and values out of range."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sqlr1_jax.data import sources
from sqlr1_jax.errors import ConfigError

if TYPE_CHECKING:
    from sqlr1_jax.config import Config

SIZES = ("tiny", "0.5b", "1.5b", "3b", "7b", "14b", "32b")
STAGES = ("data", "sft", "grpo", "evaluate", "export")
SOURCES = ("synth", *sources.PREFIXES)  # prefixes of data sources; synth: the embedded data set
RULES = ("spider", "bird", "strict")

FORMS = ("reasoning", "direct")
SCHEMAS = ("qualified", "compact", "fixed", "retrieved", "rows")
PROMPTS = ("ours", "omnisql", "sql-r1", "qwen", "arctic")

CHOICES: dict[str, tuple[str, ...]] = {
    "model.size": SIZES,
    "model.param_dtype": ("float32", "bfloat16"),
    "model.dtype": ("float32", "bfloat16"),
    "model.activation_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "offload"),
    "model.attention": ("auto", "xla", "splash", "cudnn"),
    "data.form": FORMS,
    "data.schema": SCHEMAS,
    "data.prompt": PROMPTS,
    "data.instructions": ("brief", "full"),
    "sft.rows.layout": ("shared_prefix", "packed"),
    "grpo.rows.layout": ("shared_prefix", "packed"),
    "sft.optimizer.name": ("adamw", "muon"),
    "grpo.optimizer.name": ("adamw", "muon"),
    "sft.optimizer.schedule": ("constant", "cosine", "linear"),
    "grpo.optimizer.schedule": ("constant", "cosine", "linear"),
    "grpo.aggregation": ("token", "sample", "constant"),
    "grpo.old_logprobs": ("sampler", "trainer"),
    "grpo.advantage.normalize": ("group", "none", "parts"),
    "grpo.advantage.keep": ("mixed", "all"),
    "grpo.reward.length_unit": ("characters", "tokens"),
    "grpo.reward.rule": RULES,
    "grpo.reward.empty_match": ("mismatch", "match"),
    "rollout.weights": ("", "int8"),
    "rollout.cache": ("", "int8"),
    "evaluate.rule": RULES,
    "evaluate.form": ("", *FORMS),
    "evaluate.prompt": ("", *PROMPTS),
    "evaluate.schema": ("", *SCHEMAS),
    "evaluate.instructions": ("", "brief", "full"),
    "execute.backend": ("sqlite3", "apsw"),
    "export.dtype": ("", "float32", "bfloat16"),
}

LOWER_BOUNDS: dict[str, float] = {
    "mesh.replica": 1,
    "mesh.tensor": 1,
    "model.ffw_chunks": 1,
    "model.logits_chunk": 0,
    "model.unroll": 1,
    "data.limit": 0,
    "data.max_prompt_tokens": 1,
    "data.synth.workers": 1,
    "data.synth.heldout_databases": 1,
    "data.synth.heldout_questions": 1,
    "sft.steps": 0,
    "sft.databases": 1,
    "sft.questions": 1,
    "sft.rows.per_microbatch": 1,
    "sft.rows.length_buckets": 1,
    "grpo.steps": 0,
    "grpo.prompts": 1,
    "grpo.samples": 2,
    "grpo.sampling.temperature": 1e-3,
    "grpo.sampling.max_tokens": 1,
    "grpo.clip": 0,
    "grpo.clip_high": 0,
    "grpo.importance_cap": 0,
    "grpo.rows.per_microbatch": 1,
    "grpo.rows.length_buckets": 1,
    "rollout.max_concurrent_prompts": 0,
    "rollout.prefill_batch": 0,
    "rollout.prompt_buckets": 1,
    "rollout.decode_steps_per_sync": 0,
    "execute.workers": 1,
    "execute.max_steps": 1000,
    "execute.wall_seconds": 0.1,
    "execute.max_rows": 1,
    "evaluate.every": 0,
    "evaluate.subset": 1,
    "evaluate.votes": 1,
    "evaluate.temperature": 1e-3,
    "evaluate.max_concurrent_prompts": 0,
    "evaluate.databases": 0,
    "evaluate.limit": 0,
    "evaluate.max_tokens": 0,
    "evaluate.max_prompt_tokens": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "export.shard_gigabytes": 1e-6,
}

# Settings and values that had another name before 0.1. Using an old name is an error that says the new one.
RENAMED: dict[str, str] = {
    "cold_start": "sft",
    "data.cold_start": "data.sft",
    "data.synth.cold_start_databases": "data.synth.sft_databases",
    "data.synth.cold_start_questions": "data.synth.sft_questions",
    "model.activations": "model.activation_dtype",
    "model.residual": "model.activation_dtype",
    "sft.rows.buckets": "sft.rows.length_buckets",
    "grpo.rows.buckets": "grpo.rows.length_buckets",
    "grpo.advantage.normalise": "grpo.advantage.normalize",
    "rollout.slots": "rollout.max_concurrent_prompts",
    "rollout.refill": "rollout.prefill_batch",
    "rollout.buckets": "rollout.prompt_buckets",
    "rollout.chunk": "rollout.decode_steps_per_sync",
    "execute.golds": "execute.gold_cache_dir",
    "evaluate.prompts": "evaluate.max_concurrent_prompts",
}
RENAMED_VALUES: dict[str, str] = {"cold_start": "sft", "strided": "shared_prefix"}
REMOVED: dict[str, str] = {
    "grpo.ahead": "sampling one step ahead hid only the wait for rewards, 0.3 % of a step; leave the setting out.",
}


def check_name(name: str, known: Iterable[str], group: str) -> None:
    """Raises ConfigError if `name` is not one of the group's `known` settings; `group` is "" or ends with a dot."""
    if name in known:
        return
    path = group + name
    if path in RENAMED:
        raise ConfigError(f"config.{path} has a new name: set config.{RENAMED[path]}.")
    if path in REMOVED:
        raise ConfigError(f"config.{path} was removed: {REMOVED[path]}")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean config.{group}{close[0]}?" if close else f"The settings are: {', '.join(known)}."
    raise ConfigError(f"config.{path} does not exist. {hint}")


def check_values(config: Config) -> None:
    """Raises ConfigError for the first setting whose value cannot work."""
    for path, allowed in CHOICES.items():
        _check_choice(path, get(config, path), allowed)
    for path, low in LOWER_BOUNDS.items():
        if (value := get(config, path)) < low:
            raise ConfigError(f"config.{path} is {value}; it must be at least {low}.")
    for stage in config.stages:
        _check_choice("stages", stage, STAGES)
    for name in ("train", "sft", "evaluate"):
        _check_source(f"data.{name}", getattr(config.data, name))
    if not 0 <= (errors := config.data.synth.teacher_errors) <= 1:
        raise ConfigError(f"config.data.synth.teacher_errors is {errors}; it is a fraction, 0 to 1.")
    for path in ("grpo.sampling.top_p", "evaluate.top_p"):
        if not 0 < (top_p := get(config, path)) <= 1:
            raise ConfigError(f"config.{path} is {top_p}; it takes 0 < top_p ≤ 1.")
    if (step := config.export.step) not in ("last", "best") and not step.isdigit():
        raise ConfigError(f"config.export.step is {step!r}; it takes last, best or a step's number.")


def get(config: Any, path: str) -> Any:
    """The value at a dotted path, as in get(config, "grpo.sampling.top_p")."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _check_choice(path: str, value: str, allowed: tuple[str, ...]) -> None:
    if value in allowed:
        return
    if (new := RENAMED_VALUES.get(value)) in allowed:
        raise ConfigError(f"config.{path} is {value!r}, which has a new name: {new!r}.")
    close = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"config.{path} is {value!r}; it takes one of {', '.join(map(repr, allowed))}.{hint}")


def _check_source(path: str, source: str) -> None:
    prefix, colon, location = source.partition(":")
    if not colon:
        raise ConfigError(f"config.{path} is {source!r}; it takes PREFIX:PATH, as in spider:/data/spider.")
    _check_choice(path, prefix, SOURCES)
    if prefix != "synth" and not location:
        raise ConfigError(f"config.{path} is {source!r}: the path after the prefix is missing.")
