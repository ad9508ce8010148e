"""Every setting of a run: a tree of frozen dataclasses, checked once.

`default()` gives the tree as an `ml_collections.ConfigDict` for config files and `--config.x=y`; `freeze` turns one
back into a `Config` and raises `ConfigError` for what cannot work. Everything past the command line takes frozen
dataclasses, which are hashable and so can be static arguments of `jax.jit`.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlr1_jax.data import sources  # imports neither config nor anything that does
from sqlr1_jax.errors import ConfigError

if TYPE_CHECKING:  # only config files need it, and a machine that samples or trains by other means may lack it
    from ml_collections import ConfigDict

SIZES = ("tiny", "0.5b", "1.5b", "3b", "7b", "14b", "32b")
STAGES = ("data", "sft", "grpo", "evaluate", "export")
SOURCES = ("synth", *sources.PREFIXES)  # prefixes; synth: the embedded data set


def _one_of(key: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"config.{key} is {value!r}; it takes one of {', '.join(map(repr, allowed))}.{hint}")


def _at_least(key: str, value: float, low: float) -> None:
    if value < low:
        raise ConfigError(f"config.{key} is {value}; it must be at least {low}.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which weights, and how they are computed with."""

    size: str = "tiny"  # a preset's shape; a folder's own config.json wins over it
    path: str = ""  # Hugging Face folder or repository id; empty: random weights
    param_dtype: str = "float32"
    dtype: str = "float32"  # of activations and of the sampler's weights
    activation_dtype: str = (
        "float32"  # between matrix products, under bfloat16: float32 brings sampler and trainer closer
    )
    # none: keep every residual; full: each layer's input alone; offload: that in the host's memory (on CPU: as full).
    remat: str = "none"
    attention: str = "auto"  # of rows: xla, splash (TPU) or cudnn (GPU); auto: docs/attention.md; packed rows are xla's
    query_chunk: int = 0  # queries at a time in XLA's attention, 0 for all: bounds the [T, S] scores
    ffw_chunks: int = 1  # time chunks of the feed-forward: at long rows it holds the peak
    logits_chunk: int = 1024  # places at a time whose logits exist, 0 for all
    unroll: int = 1  # layers in one turn of the loop over them: more compiles longer; the sampler on CPU takes all


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what the others leave."""

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class SynthConfig:
    """The embedded data set: how much of it, and how wrong its teacher is."""

    sft_databases: int = 2000
    sft_questions: int = 8  # a database
    grpo_databases: int = 400
    grpo_questions: int = 8
    heldout_databases: int = 60
    heldout_questions: int = 10
    newnames_databases: int = 25
    newnames_questions: int = 8
    teacher_errors: float = 0.75  # of the cold start's golds that a habit can spoil; 0 for a sound teacher
    workers: int = 2


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where questions come from and how they are put to the model."""

    train: str = "synth:"  # of GRPO, PREFIX:PATH
    sft: str = "synth:"
    evaluate: str = "synth:"
    databases: str = ""  # folder of <db_id>/<db_id>.sqlite; empty: where the source keeps them
    exclude: str = ""  # JSONL of {id, …} to leave out, as check writes it
    limit: int = 0  # first N examples of each source after its selection; 0 for all
    form: str = "reasoning"  # or direct: question to SQL
    schema: str = "qualified"  # or compact, fixed, retrieved: data/schema.py
    instructions: str = "brief"  # or full: what a model that never saw the answer form is told
    max_prompt_tokens: int = 4096
    synth: SynthConfig = SynthConfig()


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: str = "adamw"  # or muon: on the layers' matrices, AdamW on the rest
    learning_rate: float = 5e-5
    adam_learning_rate: float = 0.0  # under muon, of all but the layers' matrices: embeddings above all; 0: the same
    schedule: str = "constant"  # or cosine, linear, down to end_fraction
    warmup_steps: int = 0
    end_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0  # 0: no clipping
    frozen: tuple[str, ...] = ()  # names of parameters that keep their values


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """What training eats: rows of one shared prefix and the segments that see it."""

    # shared_prefix: a group a row, each part padded to one length; for long prompts. packed: several groups a row, without
    # holes, but under a mask of [T, T]; for groups that are short or differ much.
    layout: str = "shared_prefix"
    length_buckets: int = 1  # sizes of shared-prefix rows, down from the longest by √2; each is compiled for
    prefix: int = 0  # tokens a strided prefix takes; 0: the longest of the stage's data
    segment: int = 0  # likewise of a segment
    length: int = 0  # tokens of a packed row; 0: the longest group
    per_microbatch: int = 8  # rows of each host whose activations exist at once


@dataclasses.dataclass(frozen=True)
class SftConfig:
    steps: int = 1000
    databases: int = 8  # groups a step: each a schema and its questions
    questions: int = 8  # a group at most
    rows: RowsConfig = RowsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    temperature: float = 1.0  # 0 for greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 2048
    stop: tuple[str, ...] = ()  # texts that end a completion beside the model's own stop tokens, and stay in it


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How the sampler works; but for rounding, only weights and cache change what it samples."""

    max_concurrent_prompts: int = 0  # prompts at work at a time, on all hosts; 0: all of a step's
    prefill_batch: int = (
        0  # prompts of a host that one prefill takes, up to whole turns of the mesh's rows; 0: all its slots
    )
    prompt_buckets: int = 1  # lengths that prefill pads prompts to: fewer tokens wasted, each compiled for
    decode_steps_per_sync: int = 32  # decode steps between two looks at which samples are done
    weights: str = ""  # int8: the layers' matrices; empty: model.dtype
    cache: str = ""  # int8: keys and values; empty: model.dtype


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The four parts of sql-r1.md §2 and others of the field, each with a weight; 0 leaves a part out."""

    format: float = 1.0
    execution: float = 1.0
    result: float = 1.0
    length: float = 1.0
    arctic: float = 0.0  # Arctic-Text2SQL-R1's: 1 right, 0.1 runs, else 0; alone, with the four above at 0
    overlap: float = 0.0  # F1 of the result's cells and gold's: partial credit
    schema_recall: float = 0.0  # of gold's tables and columns, those that the SQL names
    length_unit: str = "characters"  # as the released code counts; tokens: as the paper reads
    rule: str = "spider"  # sql/compare.py
    empty_match: str = "mismatch"  # an empty result equal to an empty gold; match: the paper's


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    normalize: str = "group"  # (r − mean) / std; none: r − mean (Dr. GRPO); parts: each part alone (GDPO)
    keep: str = "mixed"  # groups with right and wrong answers; all: the paper's, defect 11
    shuffled: bool = False  # a control: advantages permuted within the batch


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """Constants of the paper (sql-r1.md §1) unless said otherwise."""

    steps: int = 1000
    prompts: int = 8
    samples: int = 8
    sampling: SamplingConfig = SamplingConfig(temperature=1.1)
    clip: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.001
    entropy: float = 0.001
    aggregation: str = "token"  # token mean over the global batch; sample: mean of means; constant: Dr. GRPO's
    old_logprobs: str = "sampler"  # or trainer: recomputed under the weights that are updated
    # With the trainer's: a token's policy term weighs min(p_trainer / p_sampler, cap), which corrects for a sampler in
    # another precision (truncated importance sampling); 0: 1.
    importance_cap: float = 0.0
    advantage: AdvantageConfig = AdvantageConfig()
    reward: RewardConfig = RewardConfig()
    rows: RowsConfig = RowsConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-7)


@dataclasses.dataclass(frozen=True)
class ExecuteConfig:
    """The sandbox of sql/executor.py."""

    workers: int = 2
    backend: str = "sqlite3"  # or apsw, whose SQLite is the same on every machine (extra `apsw`)
    max_steps: int = 50_000_000  # SQLite virtual-machine steps a query may take
    gold_factor: float = 0.0  # past 0: a prediction may take this many times gold's own steps, at least min_steps
    min_steps: int = 1_000_000
    wall_seconds: float = 30.0  # backstop, after which the worker is killed and counted
    max_rows: int = 100_000
    max_bytes: int = 64 * 2**20
    heap_bytes: int = 256 * 2**20
    gold_cache_dir: str = ""  # folder where golds' results are kept for other runs, as check's are; empty: nowhere


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    every: int = 50  # steps of GRPO between greedy evaluations of the subset; 0 for none
    subset: int = 200
    votes: int = 8
    temperature: float = 0.8  # of the vote's candidates
    max_concurrent_prompts: int = 64  # at work at a time
    rule: str = "spider"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 50  # steps; 0: at a stage's end alone
    keep: int = 2  # the last N, and the best


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    step: str = "last"  # or a step's number; best: the highest greedy accuracy on the evaluation subset
    dtype: str = ""  # empty: the parameters' own
    shard_gigabytes: float = 5.0


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    stages: tuple[str, ...] = STAGES
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    rollout: RolloutConfig = RolloutConfig()
    execute: ExecuteConfig = ExecuteConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export: ExportConfig = ExportConfig()


# Keys that change nothing that a run has already done, so that it may resume under others.
FREE_ON_RESUME = (
    "stages", "sft.steps", "grpo.steps", "evaluate.every", "checkpoint.every", "checkpoint.keep",
    "execute.workers", "execute.gold_cache_dir", "export.step", "export.dtype", "export.shard_gigabytes", "data.synth.workers",
)  # fmt: skip


def default() -> ConfigDict:
    """The settings' defaults as a ConfigDict, for a config file to change and to return."""
    return _thaw(Config())


def _thaw(node: Any) -> Any:
    from ml_collections import ConfigDict

    if not dataclasses.is_dataclass(node):
        return node
    return ConfigDict({f.name: _thaw(getattr(node, f.name)) for f in dataclasses.fields(node)})


def freeze(tree: ConfigDict | dict) -> Config:
    """A checked `Config` from a ConfigDict (or the plain dict that config.json holds).

    Raises:
      ConfigError: a key that does not exist (with the one that was meant), a value of another type or out of range.
    """
    cfg = _freeze(tree if isinstance(tree, dict) else tree.to_dict(), Config, "")
    check(cfg)
    return cfg


def _freeze(values: dict, cls: type, path: str) -> Any:
    types = typing.get_type_hints(cls)
    for key in values:
        _check_name(key, types, path)
    return cls(**{key: _value(value, types[key], f"{path}{key}") for key, value in values.items()})


def _check_name(key: str, types: dict[str, Any], path: str) -> None:
    if key not in types:
        close = difflib.get_close_matches(key, types, n=1)
        meant = f" Did you mean config.{path}{close[0]}?" if close else f" There are: {', '.join(types)}."
        raise ConfigError(f"config.{path}{key} does not exist.{meant}")


def check_path(path: str) -> None:
    """Raises ConfigError where no setting has this dotted path; the message names the one that was meant."""
    node: Any = Config
    done = ""
    for name in path.split("."):
        if not dataclasses.is_dataclass(node):
            raise ConfigError(f"config.{path} does not exist: config.{done.rstrip('.')} is a single setting.")
        types = typing.get_type_hints(node)
        _check_name(name, types, done)
        node, done = types[name], f"{done}{name}."


def _value(value: Any, want: Any, path: str) -> Any:
    if dataclasses.is_dataclass(want):
        if not isinstance(value, dict):
            raise ConfigError(f"config.{path} is {value!r}; it is a group of settings: set config.{path}.NAME.")
        return _freeze(value, typing.cast(type, want), path + ".")
    if typing.get_origin(want) is tuple:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"config.{path} is {value!r}; it takes a tuple of names, as in ('a', 'b').")
        return tuple(value)
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not want:
        raise ConfigError(f"config.{path} is {value!r}, a {type(value).__name__}; it takes a {want.__name__}.")
    return value


CHOICES: dict[str, tuple] = {
    "model.size": SIZES,
    "model.param_dtype": ("float32", "bfloat16"),
    "model.dtype": ("float32", "bfloat16"),
    "model.activation_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "offload"),
    "model.attention": ("auto", "xla", "splash", "cudnn"),
    "data.form": ("reasoning", "direct"),
    "data.schema": ("qualified", "compact", "fixed", "retrieved"),
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
    "grpo.reward.rule": ("spider", "bird", "strict"),
    "grpo.reward.empty_match": ("mismatch", "match"),
    "rollout.weights": ("", "int8"),
    "rollout.cache": ("", "int8"),
    "evaluate.rule": ("spider", "bird", "strict"),
    "execute.backend": ("sqlite3", "apsw"),
    "export.dtype": ("", "float32", "bfloat16"),
}
LOWER_BOUNDS: dict[str, float] = {
    "mesh.replica": 1, "mesh.tensor": 1, "model.ffw_chunks": 1, "model.logits_chunk": 0, "model.unroll": 1,
    "data.limit": 0, "data.max_prompt_tokens": 1, "data.synth.workers": 1,
    "data.synth.heldout_databases": 1, "data.synth.heldout_questions": 1,
    "sft.steps": 0, "sft.databases": 1, "sft.questions": 1, "sft.rows.per_microbatch": 1,
    "sft.rows.length_buckets": 1, "grpo.rows.length_buckets": 1,
    "grpo.steps": 0, "grpo.prompts": 1, "grpo.samples": 2, "grpo.sampling.temperature": 1e-3,
    "grpo.sampling.max_tokens": 1, "grpo.clip": 0, "grpo.clip_high": 0, "grpo.importance_cap": 0,
    "grpo.rows.per_microbatch": 1,
    "rollout.max_concurrent_prompts": 0, "rollout.prefill_batch": 0, "rollout.prompt_buckets": 1, "rollout.decode_steps_per_sync": 1,
    "execute.workers": 1, "execute.max_steps": 1000, "execute.wall_seconds": 0.1, "execute.max_rows": 1,
    "evaluate.every": 0, "evaluate.subset": 1, "evaluate.votes": 1, "evaluate.temperature": 1e-3,
    "evaluate.max_concurrent_prompts": 1, "checkpoint.every": 0, "checkpoint.keep": 1, "export.shard_gigabytes": 1e-6,
}  # fmt: skip


def get(cfg: Any, path: str) -> Any:
    """The value at a dotted path of a config, as in get(cfg, "grpo.sampling.top_p")."""
    for name in path.split("."):
        cfg = getattr(cfg, name)
    return cfg


def check(cfg: Config) -> None:
    """Raises ConfigError for the first setting that cannot work."""
    for path, allowed in CHOICES.items():
        _one_of(path, get(cfg, path), allowed)
    for path, low in LOWER_BOUNDS.items():
        _at_least(path, get(cfg, path), low)
    for stage in cfg.stages:
        _one_of("stages", stage, STAGES)
    for name in ("train", "sft", "evaluate"):
        _check_source(f"data.{name}", getattr(cfg.data, name))
    if not 0 <= cfg.data.synth.teacher_errors <= 1:
        errors = cfg.data.synth.teacher_errors
        raise ConfigError(f"config.data.synth.teacher_errors is {errors}; it is a fraction, 0 to 1.")
    if not 0 < cfg.grpo.sampling.top_p <= 1:
        raise ConfigError(f"config.grpo.sampling.top_p is {cfg.grpo.sampling.top_p}; it takes 0 < top_p ≤ 1.")
    if cfg.export.step not in ("last", "best") and not cfg.export.step.isdigit():
        raise ConfigError(f"config.export.step is {cfg.export.step!r}; it takes last, best or a step's number.")


def _check_source(key: str, spec: str) -> None:
    prefix, colon, path = spec.partition(":")
    if not colon:
        raise ConfigError(f"config.{key} is {spec!r}; it takes PREFIX:PATH, as in spider:/data/spider.")
    _one_of(key, prefix, SOURCES)
    if prefix != "synth" and not path:
        raise ConfigError(f"config.{key} is {spec!r}: the path behind the prefix is missing.")


def as_dict(cfg: Config) -> dict:
    """The tree as plain dicts and lists, as config.json holds it."""
    return dataclasses.asdict(cfg)


def differences(old: Config, new: Config) -> list[str]:
    """One line for each setting that differs and may not when a run resumes."""
    lines = []
    for path, before in leaves(as_dict(old)):
        after = get(new, path)
        if before != after and path not in FREE_ON_RESUME:
            lines.append(f"config.{path}: {before!r} in the run, {after!r} now")
    return lines


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted path, value) of each setting of a tree of dicts, as `as_dict` and config.json have it."""
    found = []
    for name, value in tree.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return found
