"""Every setting of a run, as a tree of frozen dataclasses. docs/config.md is generated from this file.

`default()` returns the tree as an `ml_collections.ConfigDict`, which config files and `--config.NAME=VALUE` change.
`freeze` turns a ConfigDict into a checked `Config`. All code behind the command line takes these frozen dataclasses:
they are hashable, so they can be static arguments of `jax.jit`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlr1_jax import config_checks
from sqlr1_jax.config_checks import STAGES, get
from sqlr1_jax.errors import ConfigError

if TYPE_CHECKING:  # imported late: only config files need ml_collections
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model's weights, precision, and the memory that its forward and backward passes take."""

    size: str = "tiny"  # preset of the architecture; the config.json of a folder in `path` takes precedence
    path: str = ""  # Hugging Face folder or repository id; empty: random weights
    param_dtype: str = "float32"  # of the trained parameters
    dtype: str = "float32"  # of matmul inputs, and of the sampler's weights
    # Of values between matmuls (residual stream, gates, heads before RoPE), if wider than dtype. float32 under bfloat16
    # halves the log-probability mismatch between sampler and trainer.
    activation_dtype: str = "float32"
    # Rematerialization. none: save every residual; full: save only each layer's input; offload: save it in host memory
    # (on CPU the same as full).
    remat: str = "none"
    # Kernel for training rows: xla, splash (TPU) or cudnn (GPU); auto chooses (docs/attention.md). Packed rows use xla.
    attention: str = "auto"
    query_chunk: int = 0  # queries per block of XLA attention, which bounds the [T, S] scores; 0: all queries
    ffw_chunks: int = 1  # time chunks of the feed-forward, which holds the peak memory in long rows
    logits_chunk: int = 1024  # positions whose logits exist at once; 0: all positions
    unroll: int = 1  # layers per iteration of the layer scan; the sampler on CPU always unrolls all layers


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes the devices that the other axes leave."""

    replica: int = 1  # data parallel, parameters replicated
    fsdp: int = -1  # data parallel, parameters sharded
    tensor: int = 1  # tensor parallel


@dataclasses.dataclass(frozen=True)
class SynthConfig:
    """The embedded data set: its size, and how often its teacher is wrong."""

    sft_databases: int = 2000  # of the SFT set
    sft_questions: int = 8  # per database
    grpo_databases: int = 400  # of the GRPO set
    grpo_questions: int = 8  # per database
    heldout_databases: int = 60  # of the held-out set, whose databases no stage trains on
    heldout_questions: int = 10  # per database
    newnames_databases: int = 25  # of a held-out set half of whose names no stage trains on
    newnames_questions: int = 8  # per database
    # Fraction of the SFT set's gold queries that are spoiled, of those that a teacher's habit applies to; 0: none.
    teacher_errors: float = 0.75
    workers: int = 2  # processes that generate the data


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where questions come from and how prompts present them."""

    train: str = "synth:"  # source of GRPO's questions, PREFIX:PATH
    sft: str = "synth:"  # source of the SFT stage
    evaluate: str = "synth:"  # source of the held-out questions
    databases: str = ""  # folder of <db_id>/<db_id>.sqlite; empty: the source's own folder
    exclude: str = ""  # JSONL of {id, …} to leave out, as `check --output` writes it
    limit: int = 0  # first N examples of each source, after its selection; 0: all
    form: str = "reasoning"  # of answers; direct: SQL without reasoning
    schema: str = "qualified"  # form of the schema text: qualified, compact, fixed or retrieved (data/schema.py)
    instructions: str = "brief"  # full: also explains the answer form, to a model that was not trained on it
    max_prompt_tokens: int = 4096  # longer prompts get a shorter schema form, or count as over budget
    synth: SynthConfig = SynthConfig()


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    name: str = "adamw"  # or muon: Muon for the layers' matrices, AdamW for the rest
    learning_rate: float = 5e-5  # the schedule's peak
    adam_learning_rate: float = 0.0  # under muon, of the parameters that AdamW updates; 0: learning_rate
    schedule: str = "constant"  # or cosine or linear, which decay to end_fraction
    warmup_steps: int = 0  # of linear warm-up
    end_fraction: float = 0.1  # of learning_rate at the last step
    b1: float = 0.9  # Adam's decay of the first moment
    b2: float = 0.95  # Adam's decay of the second moment
    eps: float = 1e-8  # Adam's epsilon
    weight_decay: float = 0.0  # decoupled
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping
    frozen: tuple[str, ...] = ()  # names of parameters that are not trained


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Training rows: a shared prefix followed by the segments that attend to it."""

    # shared_prefix: one group per row, every part padded to a fixed length; best for long prompts. packed: several
    # groups per row without padding between them, under a [T, T] mask; best for short groups or very unequal ones.
    layout: str = "shared_prefix"
    length_buckets: int = 1  # sizes of shared-prefix rows, each √2 shorter than the next; each is compiled
    prefix: int = 0  # tokens of the prefix in a shared-prefix row; 0: the longest in the stage's data
    segment: int = 0  # tokens of each segment; 0: the longest in the stage's data
    length: int = 0  # tokens of a packed row; 0: the longest group
    per_microbatch: int = 8  # rows per host whose activations exist at once


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """The cold start: supervised fine-tuning."""

    steps: int = 1000  # optimizer steps
    databases: int = 8  # groups per step; a group is a schema with its questions
    questions: int = 8  # per group, at most
    rows: RowsConfig = RowsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn."""

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # nucleus: the fewest tokens with this much probability
    top_k: int = 0  # the k likeliest tokens; 0: all
    min_p: float = 0.0  # tokens with at least this fraction of the likeliest token's probability
    max_tokens: int = 2048  # of a completion
    stop: tuple[str, ...] = ()  # texts that end a completion, besides the stop tokens; they stay in it


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """The sampler. Apart from rounding, only `weights` and `cache` change what it samples."""

    max_concurrent_prompts: int = 0  # slots, on all hosts; 0: one for each prompt of a step
    # Prompts per host in one prefill batch, rounded up to a multiple of the data-parallel size; 0: all slots.
    prefill_batch: int = 0
    prompt_buckets: int = 1  # lengths that prompts are padded to, in equal steps; each is compiled
    decode_steps_per_sync: int = 32  # decode steps on the device before the host reads which samples are done
    weights: str = ""  # int8: quantize the layers' matrices; empty: model.dtype
    cache: str = ""  # int8: quantize keys and values; empty: model.dtype


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Weights of the reward's parts (docs/method.md, "Reward"); 0 removes a part."""

    format: float = 1.0  # the answer form is kept
    execution: float = 1.0  # the SQL runs
    result: float = 1.0  # its result is gold's
    length: float = 1.0  # of a correct answer
    arctic: float = 0.0  # Arctic-Text2SQL-R1's reward: 1 correct, 0.1 runs, else 0; set the four above to 0
    overlap: float = 0.0  # partial credit: F1 between the cells of the result and of gold's result
    schema_recall: float = 0.0  # fraction of the gold query's tables and columns that the SQL names
    length_unit: str = "characters"  # as the released code counts; tokens: as the paper reads
    rule: str = "spider"  # comparison of results (sql/compare.py): spider, bird or strict
    empty_match: str = "mismatch"  # how an empty result that equals an empty gold result counts; the paper's: match


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """Advantages, and which groups are trained on."""

    normalize: str = "group"  # (r − mean) / std; none: r − mean (Dr. GRPO); parts: each reward part by itself (GDPO)
    keep: str = "mixed"  # groups with both correct and wrong completions; all: the paper's choice (defect 11)
    shuffled: bool = False  # control experiment: permute advantages within the batch


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """GRPO. Defaults are the paper's constants unless a comment says otherwise (docs/method.md, "Constants")."""

    steps: int = 1000  # optimizer steps
    prompts: int = 8  # per step, on all hosts
    samples: int = 8  # completions per prompt: the group size G
    sampling: SamplingConfig = SamplingConfig(temperature=1.1)
    clip: float = 0.2  # lower bound of the ratio: 1 − clip
    clip_high: float = 0.2  # upper bound of the ratio: 1 + clip_high
    kl: float = 0.001  # weight of the KL term
    entropy: float = 0.001  # weight of the entropy bonus
    aggregation: str = "token"  # token: mean over the batch's tokens; sample: mean of means; constant: Dr. GRPO's
    old_logprobs: str = "sampler"  # denominator of the ratio; trainer: recomputed with the weights before the update
    # Under old_logprobs=trainer, the cap of the importance weight p_trainer / p_sampler, which corrects a sampler in
    # another precision (truncated importance sampling); 0: no correction.
    importance_cap: float = 0.0
    advantage: AdvantageConfig = AdvantageConfig()
    reward: RewardConfig = RewardConfig()
    rows: RowsConfig = RowsConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-7)


@dataclasses.dataclass(frozen=True)
class ExecuteConfig:
    """The SQL workers and the limits of a query (docs/sql.md)."""

    workers: int = 2  # processes per host
    backend: str = "sqlite3"  # or apsw, which brings one SQLite version to every machine (extra `apsw`)
    max_steps: int = 50_000_000  # virtual-machine steps of a query
    gold_factor: float = 0.0  # above 0: limits a prediction to this multiple of the gold query's steps
    min_steps: int = 1_000_000  # the least limit under gold_factor
    wall_seconds: float = 30.0  # a worker that takes longer is killed and the query counted as a timeout
    max_rows: int = 100_000  # of a result
    max_bytes: int = 64 * 2**20  # of a result
    heap_bytes: int = 256 * 2**20  # of SQLite in a worker
    gold_cache_dir: str = ""  # folder that keeps results of gold queries for other runs; empty: not kept


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on the held-out questions."""

    every: int = 50  # GRPO steps between greedy evaluations on the subset; 0: none
    subset: int = 200  # questions of those evaluations
    votes: int = 8  # candidates per question
    temperature: float = 0.8  # of the candidates
    max_concurrent_prompts: int = 64  # slots of the sampler
    rule: str = "spider"  # comparison of results (sql/compare.py)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 50  # steps; 0: only at the end of a stage
    keep: int = 2  # the last N, besides the best and step 0


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The Hugging Face folder that a run writes."""

    step: str = "last"  # or best (flattered: chosen on a subset of the held-out questions), or a step's number
    dtype: str = ""  # float32 or bfloat16; empty: param_dtype
    shard_gigabytes: float = 5.0  # of one file, at most


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = 0  # of weights, data order, sampling and the embedded data
    stages: tuple[str, ...] = STAGES  # run in the order given
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


# A run may resume with other values of these settings: they change nothing that it has already done.
FREE_ON_RESUME = (
    "stages",
    "sft.steps",
    "grpo.steps",
    "evaluate.every",
    "checkpoint.every",
    "checkpoint.keep",
    "execute.workers",
    "execute.gold_cache_dir",
    "export.step",
    "export.dtype",
    "export.shard_gigabytes",
    "data.synth.workers",
)


def default() -> ConfigDict:
    """The default settings as a ConfigDict, for a config file to change and return."""
    return _to_config_dict(Config())


def _to_config_dict(node: Any) -> Any:
    from ml_collections import ConfigDict

    if not dataclasses.is_dataclass(node):
        return node
    return ConfigDict({f.name: _to_config_dict(getattr(node, f.name)) for f in dataclasses.fields(node)})


def freeze(tree: ConfigDict | dict) -> Config:
    """A checked `Config` from a ConfigDict, or from the plain dict of a config.json.

    Raises:
      ConfigError: a setting does not exist, or its value has the wrong type or cannot work. The message names the
        setting, and where it can the one that was meant.
    """
    config = _freeze_group(tree if isinstance(tree, dict) else tree.to_dict(), Config, "")
    check(config)
    return config


def check(config: Config) -> None:
    """Raises ConfigError for the first setting whose value cannot work."""
    config_checks.check_values(config)


def check_path(path: str) -> None:
    """Raises ConfigError if no setting has this dotted path; the message names the one that was meant."""
    node: Any = Config
    prefix = ""
    for name in path.split("."):
        if not dataclasses.is_dataclass(node):
            raise ConfigError(f"config.{path} does not exist: config.{prefix.rstrip('.')} is a single setting.")
        types = typing.get_type_hints(node)
        config_checks.check_name(name, types, prefix)
        node, prefix = types[name], f"{prefix}{name}."


def _freeze_group(values: dict, group: type, path: str) -> Any:
    types = typing.get_type_hints(group)
    for name in values:
        config_checks.check_name(name, types, path)
    return group(**{name: _freeze_value(value, types[name], path + name) for name, value in values.items()})


def _freeze_value(value: Any, wanted: Any, path: str) -> Any:
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, dict):
            raise ConfigError(f"config.{path} is {value!r}; it is a group of settings: set config.{path}.NAME.")
        return _freeze_group(value, typing.cast(type, wanted), path + ".")
    if typing.get_origin(wanted) is tuple:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"config.{path} is {value!r}; it takes a tuple of names, as in ('a', 'b').")
        return tuple(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"config.{path} is {value!r}, a {type(value).__name__}; it takes a {wanted.__name__}.")
    return value


def as_dict(config: Config) -> dict:
    """The tree as plain dicts, as config.json holds it."""
    return dataclasses.asdict(config)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted path, value) of every setting in a tree of dicts, such as `as_dict` returns."""
    found = []
    for name, value in tree.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return found


def differences(old: Config, new: Config) -> list[str]:
    """One line for each setting that differs and may not differ when a run resumes."""
    lines = []
    for path, before in leaves(as_dict(old)):
        after = get(new, path)
        if before != after and path not in FREE_ON_RESUME:
            lines.append(f"config.{path}: {before!r} in the run, {after!r} now")
    return lines
