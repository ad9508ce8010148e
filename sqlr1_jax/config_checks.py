"""Checks of settings: the values that each one takes, and errors for typos, old names and values out of range."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlr1_jax.data import sources
from sqlr1_jax.errors import ConfigError

if TYPE_CHECKING:
    from sqlr1_jax.config import Config, GrpoConfig

SIZES = ("tiny", "0.5b", "1.5b", "3b", "7b", "14b", "32b")
STAGES = ("data", "sft", "grpo", "evaluate", "export")
SOURCES = ("synth", *sources.PREFIXES)  # prefixes of data sources; synth: the embedded data set
RULES = ("spider", "bird", "strict")

FORMS = ("reasoning", "direct")
SCHEMAS = ("qualified", "compact", "fixed", "retrieved", "rows")
PROMPTS = ("ours", "omnisql", "sql-r1", "qwen", "arctic")

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")

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
    "grpo.advantage.keep": ("mixed", "varied", "all"),
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
    "export.form": ("merged", "adapter"),
    "export.dtype": ("", "float32", "bfloat16"),
}


class Range(NamedTuple):
    """The numbers that a setting takes: those from `low` to `high`, and `also`. str() is how messages say it."""

    low: float
    high: float = math.inf  # inf: every finite number from `low` on
    above_low: bool = False  # whether `low` itself is left out
    below_high: bool = False  # whether `high` itself is left out
    also: float | None = None  # a number outside the interval with a meaning of its own

    def allows(self, value: float) -> bool:
        """Whether the setting takes this number; never true of nan and inf."""
        if value == self.also:
            return True
        above = value > self.low if self.above_low else value >= self.low
        return above and (value < self.high if self.below_high or self.high == math.inf else value <= self.high)

    def __str__(self) -> str:
        parts = [f"{'above' if self.above_low else 'at least'} {self.low:.10g}"]
        if self.high < math.inf:
            parts.append(f"{'below' if self.below_high else 'at most'} {self.high:.10g}")
        return (f"{self.also:.10g}, or " if self.also is not None else "") + " and ".join(parts)


NOT_NEGATIVE, POSITIVE, COUNT = Range(0), Range(0, above_low=True), Range(1)
FRACTION, NUCLEUS, DECAY = Range(0, 1), Range(0, 1, above_low=True), Range(0, 1, below_high=True)
# Sampling divides by it: below 0.001, logits / temperature loses the precision of float32.
TEMPERATURE = Range(1e-3)
# Steps count from 0 in int32 on the device; 2**31 - 1 and 2**31 - 2 are the steps of evaluations (evaluate/run.py) and
# of measuring difficulty (rl/difficulty.py).
STEPS = Range(0, 2**31 - 2)

_ROWS = {
    "prefix_buckets": COUNT,
    "segment_buckets": COUNT,
    "prefix": NOT_NEGATIVE,
    "segment": NOT_NEGATIVE,
    "length": NOT_NEGATIVE,
} | {"per_microbatch": COUNT}
_OPTIMIZER = {
    "learning_rate": POSITIVE,
    "adam_learning_rate": NOT_NEGATIVE,
    "warmup_steps": STEPS,
    "end_fraction": FRACTION,
    "b1": DECAY,
    "b2": DECAY,
    "eps": POSITIVE,  # with 0, a parameter without gradient becomes 0 / 0
    "weight_decay": NOT_NEGATIVE,
    "clip_norm": NOT_NEGATIVE,
}


def _in_groups(names: Mapping[str, Range], *groups: str) -> dict[str, Range]:
    return {f"{group}.{name}": allowed for group in groups for name, allowed in names.items()}


# The range of every numeric setting, in the order of config.py; docs/config.md lists them.
RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1),  # JAX's keys take 32 bits
    "model.lora.rank": NOT_NEGATIVE,
    "model.lora.alpha": POSITIVE,
    "model.query_chunk": NOT_NEGATIVE,
    "model.ffw_chunks": COUNT,
    "model.logits_chunk": NOT_NEGATIVE,
    "model.unroll": COUNT,
    "mesh.replica": COUNT,
    "mesh.fsdp": Range(1, also=-1),
    "mesh.tensor": COUNT,
    "mesh.stuck_minutes": NOT_NEGATIVE,
    "data.limit": NOT_NEGATIVE,
    "data.index_from_megabytes": NOT_NEGATIVE,
    "data.max_prompt_tokens": COUNT,
    "data.synth.sft_databases": COUNT,
    "data.synth.sft_questions": COUNT,
    "data.synth.grpo_databases": COUNT,
    "data.synth.grpo_questions": COUNT,
    "data.synth.heldout_databases": COUNT,
    "data.synth.heldout_questions": COUNT,
    "data.synth.newnames_databases": NOT_NEGATIVE,
    "data.synth.newnames_questions": NOT_NEGATIVE,
    "data.synth.teacher_errors": FRACTION,
    "data.synth.workers": COUNT,
    "sft.steps": STEPS,
    "sft.databases": COUNT,
    "sft.questions": COUNT,
    "sft.max_answer_tokens": NOT_NEGATIVE,
    **_in_groups(_ROWS, "sft.rows", "grpo.rows"),
    **_in_groups(_OPTIMIZER, "sft.optimizer", "grpo.optimizer"),
    "grpo.steps": STEPS,
    "grpo.prompts": COUNT,
    "grpo.samples": Range(2),  # an advantage compares the samples of a prompt
    "grpo.refill": NOT_NEGATIVE,
    "grpo.sampling.temperature": TEMPERATURE,
    "grpo.sampling.top_p": NUCLEUS,
    "grpo.sampling.top_k": NOT_NEGATIVE,  # train/context.py compares it with the vocabulary
    "grpo.sampling.min_p": FRACTION,
    "grpo.sampling.max_tokens": COUNT,
    "grpo.clip": Range(0, 1, above_low=True, below_high=True),
    "grpo.clip_high": POSITIVE,
    "grpo.idle_steps": NOT_NEGATIVE,
    "grpo.kl": NOT_NEGATIVE,
    "grpo.entropy": NOT_NEGATIVE,
    "grpo.importance_cap": NOT_NEGATIVE,
    "grpo.difficulty.samples": Range(2, also=0),  # one completion says whether a question is right, not how often
    "grpo.difficulty.min_right": NOT_NEGATIVE,
    "grpo.difficulty.max_right": NOT_NEGATIVE,
    "grpo.difficulty.limit": NOT_NEGATIVE,
    **_in_groups(
        dict.fromkeys(
            ("format", "execution", "result", "length", "arctic", "overlap", "schema_recall", "clauses"), NOT_NEGATIVE
        ),
        "grpo.reward",
    ),
    "rollout.max_concurrent_prompts": NOT_NEGATIVE,
    "rollout.prefill_batch": NOT_NEGATIVE,
    "rollout.prompt_buckets": COUNT,
    "rollout.decode_steps_per_sync": NOT_NEGATIVE,
    "execute.workers": COUNT,
    "execute.max_steps": Range(1000),
    "execute.gold_factor": Range(1, also=0),  # below 1, the gold query itself would time out
    "execute.min_steps": COUNT,
    "execute.wall_seconds": Range(0.1),
    "execute.max_rows": COUNT,
    "execute.max_bytes": COUNT,
    "execute.heap_bytes": Range(2**20, also=0),  # less leaves no room for a page cache; 0: no limit
    "evaluate.every": NOT_NEGATIVE,
    "evaluate.subset": COUNT,
    "evaluate.databases": NOT_NEGATIVE,
    "evaluate.limit": NOT_NEGATIVE,
    "evaluate.votes": COUNT,
    "evaluate.temperature": TEMPERATURE,
    "evaluate.top_p": NUCLEUS,
    "evaluate.max_tokens": NOT_NEGATIVE,
    "evaluate.max_prompt_tokens": NOT_NEGATIVE,
    "evaluate.max_concurrent_prompts": NOT_NEGATIVE,
    "checkpoint.every": NOT_NEGATIVE,
    "checkpoint.minutes": NOT_NEGATIVE,
    "checkpoint.keep": COUNT,
    "export.shard_gigabytes": Range(1e-6),
}

# Settings and values that had another name before 0.1. Using an old name is an error that says the new one.
RENAMED: dict[str, str] = {
    "cold_start": "sft",
    "data.cold_start": "data.sft",
    "data.synth.cold_start_databases": "data.synth.sft_databases",
    "data.synth.cold_start_questions": "data.synth.sft_questions",
    "model.activations": "model.activation_dtype",
    "model.residual": "model.activation_dtype",
    "sft.rows.buckets": "sft.rows.segment_buckets",
    "sft.rows.length_buckets": "sft.rows.segment_buckets",
    "grpo.rows.buckets": "grpo.rows.segment_buckets",
    "grpo.rows.length_buckets": "grpo.rows.segment_buckets",
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
    for path, allowed_range in RANGES.items():
        check_range(path, get(config, path), allowed_range)
    if not config.stages:
        raise ConfigError(f"config.stages is empty; it takes one or more of {', '.join(map(repr, STAGES))}.")
    for stage in config.stages:
        _check_choice("stages", stage, STAGES)
    for name in ("train", "sft", "evaluate"):
        _check_source(f"data.{name}", getattr(config.data, name))
    _check_lora(config)
    rows, max_tokens = config.grpo.rows, config.grpo.sampling.max_tokens
    if rows.layout == "shared_prefix" and 0 < rows.segment < max_tokens:
        raise ConfigError(
            f"config.grpo.rows.segment is {rows.segment}, but a completion may have "
            f"config.grpo.sampling.max_tokens={max_tokens} tokens; raise the first or lower the second."
        )
    if (step := config.export.step) not in ("last", "best") and not step.isdigit():
        raise ConfigError(f"config.export.step is {step!r}; it takes last, best or a step's number.")
    _check_groups(config.grpo)


def _check_groups(grpo: GrpoConfig) -> None:
    """Raises ConfigError if the settings that choose questions and groups contradict one another."""
    if grpo.refill and grpo.advantage.keep == "all":
        raise ConfigError(
            f"config.grpo.refill is {grpo.refill}, but config.grpo.advantage.keep='all' drops no group that could be "
            "replaced. Set keep to 'mixed', or refill to 0."
        )
    samples, low = grpo.difficulty.samples, grpo.difficulty.min_right
    high = grpo.difficulty.max_right or samples - 1
    if samples and not low <= high <= samples:
        raise ConfigError(
            f"config.grpo.difficulty keeps questions right in {low} to {high} of {samples} completions, which none can "
            "be: set min_right to at most max_right, and max_right to at most samples."
        )


def _check_lora(config: Config) -> None:
    """Checks what depends on whether adapters train."""
    rank, trains = config.model.lora.rank, {"sft", "grpo"} & set(config.stages)
    for name in config.model.lora.matrices:
        _check_choice("model.lora.matrices", name, MATRICES)
    if rank and not config.model.lora.matrices:
        raise ConfigError("config.model.lora.matrices is empty: name the matrices that get an adapter.")
    if trains and not rank and config.model.param_dtype == "bfloat16":
        raise ConfigError(
            "config.model.param_dtype is 'bfloat16', and all weights train: at the learning rates of fine-tuning, "
            "rounding to bfloat16 undoes 99 % of the steps. Train float32 weights, or set model.lora.rank, which "
            "freezes them."
        )
    for stage in trains if rank else ():
        if get(config, f"{stage}.optimizer.frozen"):
            raise ConfigError(
                f"config.{stage}.optimizer.frozen is set, but with model.lora.rank all weights are frozen. Set it "
                "to ()."
            )
    if config.export.form == "adapter" and not rank:
        raise ConfigError("config.export.form is 'adapter', and without model.lora.rank there is none to export.")


def check_range(path: str, value: float, allowed: Range) -> None:
    """Raises ConfigError unless the range of the setting at `path` holds the value."""
    if not allowed.allows(value):
        raise ConfigError(f"config.{path} is {value}; it must be {allowed}.")


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
