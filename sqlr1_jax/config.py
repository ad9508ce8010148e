"""Every setting of a run, as a tree of frozen dataclasses. docs/config.md is generated from this file.

`default()` returns the tree as an `ml_collections.ConfigDict`, which config files and `--config.NAME=VALUE` change.
`freeze` turns a ConfigDict into a checked `Config`. All code behind the command line takes these frozen dataclasses:
they are hashable, so they can be static arguments of `jax.jit`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sqlr1_jax import config_checks, config_tree
from sqlr1_jax.config_checks import STAGES
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.io import JsonError, read_json_object

if TYPE_CHECKING:  # imported late: only config files need ml_collections
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA: low-rank adapters train, and the model's own weights are frozen (model/lora.py)."""

    rank: int = 0  # rank of the adapters; 0: no LoRA, all weights train
    alpha: float = 32.0  # an adapter's product is multiplied by alpha / rank
    matrices: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")  # the layers' matrices with an adapter


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model's weights and precision, and what bounds the memory of its forward and backward passes."""

    size: str = "tiny"  # architecture preset; the config.json of a folder in `path` takes precedence
    path: str = ""  # Hugging Face folder or repository id; empty: random weights
    # PEFT folder of a LoRA adapter for `path`, or its repository id; empty: none. It is merged into the weights, or if
    # lora.rank is set, it is what the adapters start from.
    adapter: str = ""
    lora: LoraConfig = LoraConfig()
    param_dtype: str = "float32"  # dtype of the weights; bfloat16 only if none of them trains, which LoRA makes so
    dtype: str = "float32"  # dtype of matmul inputs and of the sampler's weights
    # Dtype of values between matmuls (residual stream, gates, heads before RoPE); used only if wider than dtype. Under
    # bfloat16, float32 here halves the log-probability mismatch between sampler and trainer.
    activation_dtype: str = "float32"
    # Values that the forward pass saves for the backward pass, which recomputes the others. none: every residual; full:
    # only each layer's input; offload: only each layer's input, in host memory (on CPU the same as full).
    remat: str = "none"
    # Attention kernel for training rows: xla, splash (TPU) or cudnn (GPU); auto chooses one (docs/attention.md). Packed
    # rows always use xla.
    attention: str = "auto"
    query_chunk: int = 0  # queries per block of XLA attention, which bounds the memory of its scores; 0: all queries
    ffw_chunks: int = 1  # time chunks of the feed-forward layer, whose activations are the peak memory in long rows
    logits_chunk: int = 1024  # positions whose logits are in memory at once; 0: all positions
    unroll: int = 1  # layers per iteration of the layer scan; decoding on CPU always unrolls all layers


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each mesh axis, -1 for all remaining devices; and when hosts give up."""

    replica: int = 1  # devices for data parallelism with replicated parameters
    fsdp: int = -1  # devices for data parallelism with sharded parameters
    tensor: int = 1  # devices for tensor parallelism
    # With --distributed: if one host keeps the others waiting for that long, all exit with status 75. 0: never.
    stuck_minutes: int = 60


@dataclasses.dataclass(frozen=True)
class SynthConfig:
    """The embedded data set: its size, and how often its simulated teacher is wrong."""

    sft_databases: int = 2000  # databases of the SFT set
    sft_questions: int = 8  # questions per database
    grpo_databases: int = 400  # databases of the GRPO set
    grpo_questions: int = 8  # questions per database
    heldout_databases: int = 60  # databases of the held-out set, on which no stage trains
    heldout_questions: int = 10  # questions per database
    newnames_databases: int = 25  # databases of a held-out set in which half of the names never occur in training
    newnames_questions: int = 8  # questions per database
    # Fraction of wrong gold queries in the SFT set, among those that a systematic error of the simulated teacher can
    # affect (synth/teacher.py); 0: none.
    teacher_errors: float = 0.75
    workers: int = 2  # processes that generate the data


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where questions come from and how prompts present them."""

    train: str = "synth:"  # source of GRPO's questions, PREFIX:PATH
    sft: str = "synth:"  # source of the SFT stage's questions
    evaluate: str = "synth:"  # source of the held-out questions
    databases: str = ""  # folder of <db_id>/<db_id>.sqlite; empty: the source's own folder
    # Folder that `python -m sqlr1_jax.stage` has filled on every host; a run does not start without it. Empty: none.
    staged: str = ""
    # JSONL files that list what to leave out (docs/data.md): questions of one source, as `check --output` writes them,
    # and databases, as in configs/judged_databases.jsonl. Records that name no source apply to train and sft only.
    exclude: tuple[str, ...] = ()
    limit: int = 0  # takes only each source's first N examples, counted after a selection such as synsql-200k; 0: all
    # A JSON file of at least so many megabytes is indexed once, in the user's cache (data/record_index.py), and its
    # prompts are rendered when a step needs them; 0: no file is.
    index_from_megabytes: int = 256
    form: str = "reasoning"  # answer form; reasoning: reasoning, then SQL; direct: SQL without reasoning
    schema: str = "qualified"  # format of the schema text (data/schema.py)
    # Text of the prompt (data/templates.py). ours: this project's; the others are those that published models were
    # trained with: OmniSQL, SQL-R1, Qwen2.5-Coder's text-to-SQL form (which has a schema format of its own) and
    # Arctic-Text2SQL-R1.
    prompt: str = "ours"
    # Instructions in the prompt `ours`. full: also explains the answer form, for a model that was not trained on it.
    instructions: str = "brief"
    max_prompt_tokens: int = 4096  # prompts with more tokens get a shorter schema format, or count as over budget
    synth: SynthConfig = SynthConfig()


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    name: str = "adamw"  # optimizer; muon: Muon for the layers' matrices and AdamW for all other parameters
    learning_rate: float = 5e-5  # peak of the learning rate
    adam_learning_rate: float = 0.0  # peak for the parameters that AdamW updates under muon; 0: learning_rate
    schedule: str = "constant"  # learning rate after warmup; cosine and linear decay to end_fraction
    warmup_steps: int = 0  # steps of linear warmup
    end_fraction: float = 0.1  # learning rate of the last step, as a fraction of the peak
    b1: float = 0.9  # decay rate of Adam's first moment
    b2: float = 0.95  # decay rate of Adam's second moment
    eps: float = 1e-8  # Adam's epsilon
    weight_decay: float = 0.0  # decoupled weight decay
    clip_norm: float = 1.0  # limit of the global gradient norm; 0: no clipping
    frozen: tuple[str, ...] = ()  # names of parameters that are not trained


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Training rows: a shared prefix followed by the segments that attend to it."""

    # Layout of training rows. shared_prefix: one group per row, every part padded to a fixed length; best for long
    # prompts. packed: several groups per row without padding between them, under a [T, T] mask; best for short groups
    # or groups of very unequal length.
    layout: str = "shared_prefix"
    # Number of sizes of the prefix in shared-prefix rows, and of the segments; each is smaller than the next by a
    # factor of √2. A microbatch is computed in the smallest that fit it; every pair of sizes is compiled.
    prefix_buckets: int = 1
    segment_buckets: int = 1
    prefix: int = 0  # tokens of the prefix in a shared-prefix row; 0: the longest in the stage's data
    segment: int = 0  # tokens of each segment; 0: the longest in the stage's data
    length: int = 0  # tokens of a packed row; 0: the longest group
    # Largest number of rows of a microbatch on each data-parallel group of the mesh (replica × fsdp); only one
    # microbatch's activations are in memory at once.
    per_microbatch: int = 8


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """The cold start: supervised fine-tuning."""

    steps: int = 1000  # optimizer steps
    databases: int = 8  # groups per step; a group is a schema with its questions
    questions: int = 8  # largest number of questions in a group
    # Token limit of an answer; examples with longer ones are left out, because all rows are as long as the longest
    # example needs. 0: none.
    max_answer_tokens: int = 4096
    rows: RowsConfig = RowsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn."""

    temperature: float = 1.0  # sampling temperature; 0: greedy
    top_p: float = 1.0  # nucleus sampling: keeps the smallest set of most likely tokens with at least this probability
    top_k: int = 0  # number of likeliest tokens to keep; 0: all
    min_p: float = 0.0  # smallest probability to keep, as a fraction of the likeliest token's; 0: all
    max_tokens: int = 2048  # token limit of a completion
    stop: tuple[str, ...] = ()  # texts that end a completion and stay in it, in addition to the stop tokens


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """The sampler. Apart from rounding, only `weights` and `cache` change its samples."""

    max_concurrent_prompts: int = 0  # prompts sampled at once (slots), on all hosts; 0: all prompts of a step
    # Prompts per host in one prefill batch, rounded up to a multiple of the data-parallel size; 0: all slots.
    prefill_batch: int = 0
    prompt_buckets: int = 1  # number of lengths that prompts are padded to, in equal steps; each is compiled
    # Decode steps on the device before the host reads which samples are done, and refills slots; 0: 2 on CPU, 32
    # elsewhere.
    decode_steps_per_sync: int = 0
    weights: str = ""  # number format of the layers' matrices; int8: quantized; empty: model.dtype
    cache: str = ""  # number format of the KV cache; int8: quantized; empty: model.dtype


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Weights of the reward's parts (docs/method.md, "Reward"); 0 removes a part."""

    format: float = 1.0  # weight of the format part: the completion has the answer form
    execution: float = 1.0  # weight of the execution part: the SQL runs
    result: float = 1.0  # weight of the result part: the result equals the gold result
    length: float = 1.0  # weight of the length part; only correct answers get it
    # Weight of Arctic-Text2SQL-R1's reward: 1 for a correct result, 0.1 for SQL that runs, else 0; set the four weights
    # above to 0.
    arctic: float = 0.0
    overlap: float = 0.0  # weight of partial credit: the F1 score of the result's cells and the gold result's cells
    schema_recall: float = 0.0  # weight of the fraction of the gold query's tables and columns that the SQL names
    # Weight of clause agreement: the mean, over the clauses that either query has, of the F1 of their parts (select,
    # from, where, group, order …), 0 to 1 (rl/clause_agreement.py).
    clauses: float = 0.0
    # Accepts a reasoning answer whose </answer> is missing before the stop token. Off, as in the paper.
    open_answer: bool = False
    length_unit: str = "characters"  # unit of lengths; the released code counts characters, the paper tokens
    rule: str = "spider"  # comparison of results (sql/compare.py)
    empty_match: str = "mismatch"  # verdict on an empty result that equals an empty gold result; the paper's: match


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """Advantages, and which groups are trained on."""

    # Formula of advantages. group: (r − mean) / std; none: r − mean (Dr. GRPO); parts: each reward part normalized by
    # itself (GDPO).
    normalize: str = "group"
    # Groups that are trained on. mixed: those with both correct and wrong completions; varied: those with different
    # rewards, so a group without a correct completion still teaches to write SQL that runs; all: every group, as in the
    # paper (docs/method.md, section 8, defect 11).
    keep: str = "mixed"
    shuffled: bool = False  # control experiment that permutes advantages within the batch


@dataclasses.dataclass(frozen=True)
class DifficultyConfig:
    """Which questions GRPO trains on, by how often its initial weights answer them right (docs/method.md)."""

    samples: int = 0  # completions of each question, sampled before step 0; 0: all questions are trained on
    min_right: int = 1  # fewest right completions of a question that is trained on
    max_right: int = 0  # most right completions of a question that is trained on; 0: samples − 1
    # The most questions to look at, drawn in turns from the databases by seed; the others are not trained on; 0: all.
    limit: int = 0


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """GRPO. Defaults are the paper's constants unless a comment says otherwise (docs/method.md, "Constants")."""

    steps: int = 1000  # optimizer steps
    prompts: int = 8  # prompts per step, on all hosts
    samples: int = 8  # completions per prompt: the group size G
    # The most further rounds of sampling in a step, each of `prompts` other questions, to replace the groups that
    # advantage.keep drops (docs/method.md, "Refill"); 0: none, a step trains on the groups that are left.
    refill: int = 0
    # First steps after which the run stops if no group had both right and wrong completions, or nearly every one was
    # badly formed; 0: never.
    idle_steps: int = 20
    sampling: SamplingConfig = SamplingConfig(temperature=1.1)
    clip: float = 0.2  # clip range below 1: the ratio's lower bound is 1 − clip
    clip_high: float = 0.2  # clip range above 1: the ratio's upper bound is 1 + clip_high
    kl: float = 0.001  # weight of the KL term
    entropy: float = 0.001  # weight of the entropy bonus
    # Mean of the losses in a batch. token: over all tokens; sample: over completions, of each completion's mean;
    # constant: over completions, of each completion's sum divided by sampling.max_tokens (Dr. GRPO).
    aggregation: str = "token"
    # Log-probabilities in the ratio's denominator. sampler: the sampler's; trainer: recomputed with the weights before
    # the update.
    old_logprobs: str = "sampler"
    # Cap of the importance weight p_trainer / p_sampler under old_logprobs=trainer, which corrects for a sampler in
    # another precision (truncated importance sampling); 0: no correction.
    importance_cap: float = 0.0
    difficulty: DifficultyConfig = DifficultyConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    reward: RewardConfig = RewardConfig()
    rows: RowsConfig = RowsConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-7)


@dataclasses.dataclass(frozen=True)
class ExecuteConfig:
    """The SQL workers and the limits of a query (docs/sql.md)."""

    workers: int = 2  # worker processes per host
    backend: str = "sqlite3"  # SQLite library; apsw brings one SQLite version to every machine (extra `apsw`)
    max_steps: int = 50_000_000  # limit of a query, in steps of SQLite's virtual machine
    gold_factor: float = 0.0  # limit of a prediction, as a multiple of the gold query's steps; 0: max_steps
    min_steps: int = 1_000_000  # lowest limit that gold_factor can set
    wall_seconds: float = 30.0  # wall-clock limit of a query, which then counts as a timeout; its worker is killed
    max_rows: int = 100_000  # largest number of rows of a result
    max_bytes: int = 64 * 2**20  # largest size of a result
    heap_bytes: int = 256 * 2**20  # limit of SQLite's heap in a worker; 0: none
    gold_cache_dir: str = ""  # folder that keeps results of gold queries for other runs; empty: none


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on the held-out questions."""

    every: int = 50  # GRPO steps between greedy evaluations on the subset; the last step has one too; 0: none
    subset: int = 200  # questions in that subset of the held-out set
    databases: int = 0  # databases to evaluate on, each with all its questions, chosen by seed; 0: all
    limit: int = 0  # the most questions to evaluate, drawn in turns from the databases by seed; 0: all
    votes: int = 8  # candidates per question, among which a vote chooses
    temperature: float = 0.8  # sampling temperature of the candidates
    top_p: float = 1.0  # nucleus of the candidates' sampling
    max_tokens: int = 0  # token limit of an answer; 0: grpo.sampling.max_tokens, and at most 256 in the direct form
    # Texts that end an answer; empty: grpo.sampling.stop, and if the prompt asks for one block, the end of a block.
    stop: tuple[str, ...] = ()
    # Answer form. Empty, as for the next four: that of `data`, or, if the run only evaluates model.path, that of the
    # model's sqlr1.json; a model without one is asked for one block of SQL.
    form: str = ""
    prompt: str = ""  # prompt by name
    schema: str = ""  # format of the schema text
    instructions: str = ""  # instructions in the prompt
    max_prompt_tokens: int = 0  # tokens of the longest prompt
    max_concurrent_prompts: int = 0  # prompts sampled at once (slots); 0: 8 on CPU, 64 elsewhere
    rule: str = "spider"  # comparison of results (sql/compare.py)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 50  # steps between checkpoints; 0: only at the end of a stage, and by minutes
    minutes: float = 20.0  # after a step, a checkpoint is written if the last is so many minutes old; 0: only by steps
    keep: int = 2  # number of latest checkpoints to keep, in addition to the best and step 0


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The Hugging Face folder that a run writes."""

    # Checkpoint to export: last, best or a step's number. The accuracy of best is biased upward, because it was chosen
    # on a subset of the held-out questions.
    step: str = "last"
    dtype: str = ""  # dtype of the exported weights; empty: param_dtype, or float32 for adapters
    shard_gigabytes: float = 5.0  # largest size of one file
    # What is written. merged: a model's folder; adapter: the LoRA adapters alone, as a PEFT folder.
    form: str = "merged"


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = 0  # seed of weights, data order, sampling and the generated data set
    stages: tuple[str, ...] = STAGES  # stages to run, in the order given
    # Folder that keeps compiled programs for later runs. auto: $JAX_COMPILATION_CACHE_DIR, or if that is not set,
    # sqlr1_jax/xla in the user's cache folder; empty: none. A program that is read computes the same bits.
    compile_cache: str = "auto"
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


def default() -> ConfigDict:
    """The default settings as a ConfigDict, for a config file to change and return."""
    return config_tree.to_config_dict(Config())


def freeze(tree: ConfigDict | dict) -> Config:
    """A checked `Config` from a ConfigDict, or from the plain dict of a config.json.

    Raises:
      ConfigError: a setting does not exist, or its value has the wrong type or cannot work. The message names the
        setting and, if possible, suggests the intended one.
    """
    config = config_tree.build(tree if isinstance(tree, dict) else tree.to_dict(), Config)
    check(config)
    return config


def load(path: Path) -> Config:
    """The checked settings in a run's config.json.

    Raises:
      ConfigError: the file is broken, or a setting cannot work; the message names the file.
    """
    try:
        return freeze(read_json_object(path))
    except JsonError as error:
        raise ConfigError(
            f"the settings of this run are lost: {error} If you remove it, the next command writes its own."
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def check(config: Config) -> None:
    """Raises ConfigError for the first setting whose value cannot work."""
    config_checks.check_values(config)


def check_path(path: str) -> None:
    """Raises ConfigError if no setting has this dotted path; the message suggests the intended one."""
    config_tree.check_path(path, Config)


def as_dict(config: Config) -> dict:
    """The tree as plain dicts, as config.json holds it."""
    return dataclasses.asdict(config)
