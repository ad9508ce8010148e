"""Every setting of a run: a tree of frozen dataclasses, checked once.

`default()` gives the tree as an `ml_collections.ConfigDict` for config files and `--config.x=y`; `freeze` turns one back
into a `Config` and raises `ConfigError` for what cannot work. Everything past the command line takes frozen dataclasses,
which are hashable and so can be static arguments of `jax.jit`.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from ml_collections import ConfigDict

SIZES = ("tiny", "0.5b", "1.5b", "3b", "7b", "14b", "32b")
STAGES = ("data", "cold_start", "grpo", "evaluate", "export")
SOURCES = ("synth", "synsql", "synsql-200k", "complex-5k", "spider", "bird", "parquet", "jsonl", "hub")


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key and the fix."""


def _one_of(key: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"config.{key} is {value!r}; it takes one of {', '.join(map(repr, allowed))}.{hint}")


def _at_least(key: str, value: float, low: float) -> None:
    if value < low:
        raise ConfigError(f"config.{key} is {value}; it must be at least {low}.")


@dataclasses.dataclass(frozen=True)
class Model:
    """Which weights, and how they are computed with."""

    size: str = "tiny"  # a preset's shape; a folder's own config.json wins over it
    path: str = ""  # Hugging Face folder or repository id; empty: random weights
    param_dtype: str = "float32"
    dtype: str = "float32"  # of activations and of the sampler's weights
    remat: str = "none"  # none: keep every residual; full: keep each layer's input alone
    query_chunk: int = 0  # queries at a time in attention, 0 for all: bounds the [T, S] scores
    ffw_chunks: int = 1  # time chunks of the feed-forward: at long rows it holds the peak
    logits_chunk: int = 1024  # places at a time whose logits exist


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1 takes what the others leave."""

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Synth:
    """The embedded data set: how much of it, and how wrong its teacher is."""

    cold_start_databases: int = 2000
    cold_start_questions: int = 8  # a database
    grpo_databases: int = 400
    grpo_questions: int = 8
    heldout_databases: int = 60
    heldout_questions: int = 10
    newnames_databases: int = 25
    newnames_questions: int = 8
    teacher_errors: float = 0.75  # of the cold start's golds that a habit can spoil; 0 for a sound teacher
    workers: int = 2


@dataclasses.dataclass(frozen=True)
class Data:
    """Where questions come from and how they are put to the model."""

    train: str = "synth:"  # of GRPO, PREFIX:PATH
    cold_start: str = "synth:"
    evaluate: str = "synth:"
    databases: str = ""  # folder of <db_id>/<db_id>.sqlite; empty: where the source keeps them
    exclude: str = ""  # JSONL of {id, …} to leave out, as check writes it
    limit: int = 0  # first N examples of each source after its selection; 0 for all
    form: str = "reasoning"  # or direct: question to SQL
    schema: str = "compact"  # or fixed, retrieved: sql-r1.md §6
    instructions: str = "brief"  # or full: what a model that never saw the answer form is told
    max_prompt_tokens: int = 4096
    synth: Synth = Synth()


@dataclasses.dataclass(frozen=True)
class Optimizer:
    name: str = "adamw"  # or muon: on the layers' matrices, AdamW on the rest
    learning_rate: float = 5e-5
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
class Rows:
    """What training eats: rows of one shared prefix and the segments that see it."""

    layout: str = "strided"  # every prefix and segment padded to one length; packed: several groups a row, no holes
    prefix: int = 0  # tokens a strided prefix takes; 0: the longest of the stage's data
    segment: int = 0  # likewise of a segment
    length: int = 0  # tokens of a packed row; 0: the longest group
    per_microbatch: int = 8  # rows whose activations exist at once


@dataclasses.dataclass(frozen=True)
class ColdStart:
    steps: int = 1000
    databases: int = 8  # groups a step: each a schema and its questions
    questions: int = 8  # a group at most
    rows: Rows = Rows()
    optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0  # 0 for greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 2048


@dataclasses.dataclass(frozen=True)
class Reward:
    """The four parts of sql-r1.md §2, each with a weight; 0 leaves a part out."""

    format: float = 1.0
    execution: float = 1.0
    result: float = 1.0
    length: float = 1.0
    length_unit: str = "characters"  # as the released code counts; tokens: as the paper reads
    rule: str = "spider"  # sql/compare.py
    empty_match: str = "mismatch"  # an empty result equal to an empty gold; match: the paper's


@dataclasses.dataclass(frozen=True)
class Advantage:
    normalise: str = "group"  # (r − mean) / std; none: r − mean (Dr. GRPO); parts: each part alone (GDPO)
    keep: str = "mixed"  # groups with right and wrong answers; all: the paper's, defect 11
    shuffled: bool = False  # a control: advantages permuted within the batch


@dataclasses.dataclass(frozen=True)
class Grpo:
    """Constants of the paper (sql-r1.md §1) unless said otherwise."""

    steps: int = 1000
    prompts: int = 8
    samples: int = 8
    sampling: Sampling = Sampling(temperature=1.1)
    clip: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.001
    entropy: float = 0.001
    aggregation: str = "token"  # token mean over the global batch; sample: mean of means; constant: Dr. GRPO's
    old_logprobs: str = "sampler"  # or trainer: recomputed under the weights that sampled
    advantage: Advantage = Advantage()
    reward: Reward = Reward()
    rows: Rows = Rows()
    optimizer: Optimizer = Optimizer(learning_rate=3e-7)


@dataclasses.dataclass(frozen=True)
class Execute:
    """The sandbox of sql/executor.py."""

    workers: int = 2
    max_steps: int = 20_000_000  # SQLite virtual-machine steps a query may take
    gold_factor: float = 0.0  # past 0: a prediction may take this many times gold's own steps, at least min_steps
    min_steps: int = 1_000_000
    wall_seconds: float = 30.0  # backstop, after which the worker is killed and counted
    max_rows: int = 100_000
    max_bytes: int = 64 * 2**20
    heap_bytes: int = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Evaluate:
    every: int = 50  # steps of GRPO between greedy evaluations of the subset; 0 for none
    subset: int = 200
    votes: int = 8
    temperature: float = 0.8  # of the vote's candidates
    prompts: int = 64  # a batch
    rule: str = "spider"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every: int = 50  # steps; 0: at a stage's end alone
    keep: int = 2  # the last N, and the best


@dataclasses.dataclass(frozen=True)
class Export:
    step: str = "best"  # or last, or a number
    dtype: str = ""  # empty: the parameters' own
    shard_gigabytes: float = 5.0


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    stages: tuple[str, ...] = STAGES
    model: Model = Model()
    mesh: Mesh = Mesh()
    data: Data = Data()
    cold_start: ColdStart = ColdStart()
    grpo: Grpo = Grpo()
    execute: Execute = Execute()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    export: Export = Export()
