"""What all stages of a run share: settings, workdir, mesh, tokenizer and model config, and the run's weights."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sqlr1_jax.config import Config, ModelConfig, SamplingConfig
from sqlr1_jax.data import example
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt, PromptRenderer
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import huggingface, init, lora, peft_folder, qwen2, tokenizer
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.rollout.request import Request
from sqlr1_jax.train import training_data
from sqlr1_jax.train.checkpoint import Checkpoints
from sqlr1_jax.train.interrupt import abandon_if_requested

log = logging.getLogger(__name__)
TRAINING_STAGES = ("sft", "grpo")  # in order; each starts from the last weights of the one before it


class CheckpointRef(NamedTuple):
    """A stage and a step of it; str() is the description of these weights in evaluations and exports."""

    stage: str
    step: int

    def __str__(self) -> str:
        return f"{self.stage}, step {self.step}"


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What all stages of a run share. Made by `create_context` once the data stage is done."""

    config: Config
    workdir: Path
    mesh: Mesh
    tokenizer: Any  # a transformers tokenizer
    model: qwen2.Qwen2Config

    @property
    def data_dir(self) -> Path:
        """The folder of the embedded data set and its tokenizer."""
        return self.workdir / "data"

    @property
    def tokenizer_dir(self) -> Path:
        """The folder of the model's tokenizer."""
        return _tokenizer_dir(self.config, self.workdir)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The token ids that end a completion, those of generation_config.json included.

        Cached, because `texts` needs them for every completion.
        """
        return tokenizer.stop_ids(self.tokenizer, self.tokenizer_dir)

    @functools.cached_property
    def frozen_params(self) -> Any:
        """The weights that no stage trains, sharded for training: with LoRA the model's own, else none.

        Cached, because all stages use them, and none donates their buffers.
        """
        return _base_params(self) if self.model.lora_rank else {}

    def full_params(self, trained: Any) -> Any:
        """The model's parameters: what trains, as TrainState.params and checkpoints hold it, and the frozen rest."""
        return trained | self.frozen_params

    def checkpoints(self, stage: str) -> Checkpoints:
        """The stage's checkpoints. Step 0 is never deleted, because the reference model is loaded from it."""
        return Checkpoints(self.workdir / "checkpoints" / stage, self.config.checkpoint.keep, pinned=(0,))

    def engine(self, prompts: Sequence[Prompt], prompt_tokens: int = 0) -> Engine:
        """A sampling engine for the longest of `prompts` within the budget, and for prompts of `prompt_tokens`."""
        longest = max(prompt_tokens, 1, *(len(prompt.ids) for prompt in prompts if not prompt.over_budget))
        mesh = sharding.sampling_mesh(self.mesh, self.model.num_kv_heads)
        return Engine(self.model, mesh, self.stop_ids, -(-longest // 16) * 16, self.config.rollout)

    def request(self, prompts: Sequence[Prompt], samples: int, sampling: SamplingConfig, step: int) -> Request:
        """A request for `samples` completions of each prompt; `step` is folded into the sampling keys.

        Its rollout raises interrupt.StepAbandoned if a signal asks the training loop to stop.
        """
        stop_fn = tokenizer.stop_text_matcher(self.tokenizer, sampling.stop) if sampling.stop else None
        return Request(
            prompts=[prompt.ids for prompt in prompts],
            samples=samples,
            sampling=sampling,
            seed=self.config.seed,
            step=step,
            prefix_length_P=[prompt.prefix_length for prompt in prompts],
            stop_fn=stop_fn,
            on_read=lambda _: abandon_if_requested(),
        )

    def examples(self, spec: str, split: str) -> Sequence[Example]:
        """Reads the examples of a data source.

        Args:
          spec: the source, as PREFIX:PATH.
          split: what the examples are for: "sft" or "grpo", or the name of a held-out set. The embedded data set
            (`synth:`) has one split for each.

        Raises:
          ConfigError: `spec` names the embedded data set, and this run has not generated it.
          example.ExampleError: the source, or a list of config.data.exclude, cannot be read.
        """
        data = self.config.data
        if spec.startswith("synth:"):
            if not self.data_dir.exists():
                raise ConfigError(
                    f"config.data takes {split} from {spec}, the embedded data, which this run has not generated: put "
                    "'data' into config.stages, or name sources in config.data.train, sft and evaluate."
                )
            spec, databases = f"synsql:{self.data_dir / split}.json", str(self.data_dir / "databases")
        else:
            databases = data.databases
        return example.read_examples(
            spec,
            databases=databases,
            exclude=data.exclude,
            limit=data.limit,
            seed=self.config.seed,
            training=split in TRAINING_STAGES,
            index_from=data.index_from_megabytes * 1_000_000,
        )

    def training_examples(self, stage: str) -> Sequence[Example]:
        """Reads the examples that a stage, sft or grpo, trains on. Collective.

        Raises:
          ConfigError: see `examples`; or they are not those of the stage's steps so far.
          example.ExampleError: see `examples`.
        """
        source = self.config.data.sft if stage == "sft" else self.config.data.train
        examples = self.examples(source, stage)
        collectives.run_on_primary(training_data.check_unchanged, self.workdir, stage, source, examples)
        return examples

    def prompts(self, examples: Sequence[Example]) -> list[Prompt]:
        """The examples' prompts; training, evaluation and `ask` all render them here."""
        return PromptRenderer(self.tokenizer, self.config.data).render_many(list(examples))

    def texts(self, ids: Sequence[Any]) -> list[str]:
        """Decodes completions, each a sequence of token ids, without a stop token at the end."""
        return self.tokenizer.batch_decode(
            [list(tokens[:-1] if len(tokens) and int(tokens[-1]) in self.stop_ids else tokens) for tokens in ids],
            clean_up_tokenization_spaces=False,  # cleaning up would change spaces inside SQL strings
        )


def create_context(config: Config, workdir: Path) -> RunContext:
    """Makes the mesh, loads the tokenizer and builds the model config. Loads no weights.

    Raises:
      ConfigError: no setting names a model, the mesh does not fit the devices, or a batch does not divide evenly among
        the processes.
    """
    if jax.process_count() > collectives.process_count():
        raise ConfigError(
            f"this machine is one of {jax.process_count()} hosts: start the command on each of them with --distributed."
        )
    mesh = sharding.make_mesh(config.mesh)
    tokenizer_dir = _tokenizer_dir(config, workdir)
    if not tokenizer_dir.exists():
        raise ConfigError(
            "config.model.path is empty and the run has generated no data: name a Hugging Face folder or repository, "
            "or put 'data' in config.stages."
        )
    run_tokenizer = tokenizer.load(tokenizer_dir)
    model = model_config(config.model, *tokenizer.id_holes(run_tokenizer))
    _check_top_k(config.grpo.sampling.top_k, model)
    log.info("mesh %s over %d hosts", dict(mesh.shape), collectives.process_count())
    collectives.check_batch_sizes(config, mesh)
    return RunContext(config, workdir, mesh, run_tokenizer, model)


def _check_top_k(top_k: int, model: qwen2.Qwen2Config) -> None:
    tokens = model.num_tokens or model.vocab_size
    if top_k > tokens:
        raise ConfigError(
            f"config.grpo.sampling.top_k is {top_k}; it must be at most {tokens}, the number of tokens that the model "
            "can sample. Set it to 0 for all of them."
        )


def trains(config: Config, workdir: Path) -> bool:
    """Whether a run trains, or has trained, a model; otherwise it only evaluates or exports model.path."""
    return bool(set(TRAINING_STAGES) & set(config.stages)) or (workdir / "checkpoints").exists()


def _tokenizer_dir(config: Config, workdir: Path) -> Path:
    return huggingface.resolve_folder(config.model.path) if config.model.path else workdir / "data" / "tokenizer"


def model_config(config: ModelConfig, num_tokens: int, holes: tuple[tuple[int, int], ...] = ()) -> qwen2.Qwen2Config:
    """The architecture of `config.path`, or of the preset `config.size`, with the other settings of `config`.

    Args:
      config: the model settings.
      num_tokens: one more than the tokenizer's largest id. The `tiny` preset takes it as its vocabulary size; in other
        models the embedding may have more rows, as padding.
      holes: ranges [start, end) of ids below num_tokens that no token has.

    Raises:
      ConfigError: the folder's model is not a plain Qwen2, or its vocabulary lacks ids of the tokenizer.
    """
    if config.path:
        model = huggingface.config_from_folder(huggingface.resolve_folder(config.path))
    else:
        model = qwen2.PRESETS[config.size]
        if config.size == "tiny":
            model = dataclasses.replace(model, vocab_size=num_tokens)
    if num_tokens > model.vocab_size:
        raise ConfigError(
            f"the tokenizer has ids up to {num_tokens - 1}, and the model {config.path or config.size} a vocabulary of "
            f"{model.vocab_size}: use the tokenizer that belongs to the model."
        )
    return dataclasses.replace(
        model,
        num_tokens=num_tokens,
        holes=holes,
        param_dtype=config.param_dtype,
        dtype=config.dtype,
        activation_dtype=config.activation_dtype,
        remat=config.remat,
        attention=config.attention,
        query_chunk=config.query_chunk,
        ffw_chunks=config.ffw_chunks,
        logits_chunk=config.logits_chunk,
        unroll=config.unroll,
        lora_rank=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_matrices=config.lora.matrices,
    )


def find_checkpoint(
    context: RunContext, step: str = "last", stages: Sequence[str] = TRAINING_STAGES
) -> CheckpointRef | None:
    """The checkpoint of the run's weights: `step` of the last of `stages` that has a checkpoint; None if none has.

    Evaluation, export and the next stage all call it, so they agree on which weights are the run's.

    Args:
      context: the run.
      step: "last", "best" or a number, as in config.export.step. A number is not checked; `load_params` does.
      stages: in the order in which they train.
    """
    latest = None
    for stage in stages:
        if (context.workdir / "checkpoints" / stage).exists():
            checkpoints = context.checkpoints(stage)
            latest = CheckpointRef(stage, checkpoints.resolve(step)) if checkpoints.steps() else latest
    # The answer is process 0's, because another process may not see a new checkpoint in the shared folder yet.
    return collectives.broadcast(latest)


def describe_weights(context: RunContext, checkpoint: CheckpointRef | None) -> str:
    """The checkpoint's description; without one, model.path and its adapter; "" if the initial weights are random."""
    model = context.config.model
    initial = f"{model.path} with {model.adapter}" if model.adapter else model.path
    return str(checkpoint) if checkpoint else initial


def load_params(context: RunContext, checkpoint: CheckpointRef | None) -> Any:
    """The checkpoint's weights, or without one the run's initial weights, sharded for training.

    Raises:
      CheckpointNotFoundError: the stage has no such step; the message lists the existing ones.
    """
    if checkpoint is None:
        return init_params(context)
    log.info("weights: %s", checkpoint)
    return context.full_params(load_trained(context, checkpoint))


def load_trained(context: RunContext, checkpoint: CheckpointRef) -> Any:
    """The part of the weights that the checkpoint holds: what its stage trained.

    Raises:
      CheckpointNotFoundError: the stage has no such step; the message lists the existing ones.
    """
    trained, _ = lora.split(abstract_params(context.model, context.mesh))
    return context.checkpoints(checkpoint.stage).load(checkpoint.step, {"params": trained})["params"]


def init_params(context: RunContext) -> Any:
    """The run's initial weights, sharded for training: those of model.path, or random ones from the seed.

    model.adapter is merged into them; with LoRA it is what the adapters start from.

    Raises:
      ConfigError: model.adapter does not fit the model, or the settings of its LoRA.
    """
    model, adapter = context.model, context.config.model.adapter
    if model.lora_rank:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(model, context.mesh)[lora.KEY])
        if adapter:
            adapters = peft_folder.load(adapter, model, shardings)
        else:
            make_adapters = jax.jit(lambda key: init.init_adapters(model, key), out_shardings=shardings)
            adapters = make_adapters(jax.random.key(context.config.seed))
        return context.full_params({lora.KEY: adapters})
    return peft_folder.merge(adapter, _base_params(context), model, context.mesh) if adapter else _base_params(context)


def _base_params(context: RunContext) -> Any:
    model = qwen2.without_adapters(context.model)
    if context.config.model.path:
        return huggingface.load_params(context.config.model.path, model, context.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(model, context.mesh))
    make_params = jax.jit(lambda key: init.init_params(model, key), out_shardings=shardings)
    return make_params(jax.random.key(context.config.seed))


def abstract_params(model: qwen2.Qwen2Config, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the training weights, as a tree of jax.ShapeDtypeStruct."""

    def abstract_leaf(spec: qwen2.ParamSpec) -> jax.ShapeDtypeStruct:
        leaf_sharding = sharding.named_sharding(mesh, spec.logical_axes, sharding.TRAIN_RULES, spec.shape)
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=leaf_sharding)

    return jax.tree.map(abstract_leaf, qwen2.abstract_params(model), is_leaf=qwen2.is_spec)
