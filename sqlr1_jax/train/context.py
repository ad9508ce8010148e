"""RunContext: the settings, folder, mesh, tokenizer and model config that all stages of a run share."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sqlr1_jax import config
from sqlr1_jax.data import example
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt, PromptRenderer
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import huggingface, init, qwen2, tokenizer
from sqlr1_jax.rollout.engine import Engine, Request
from sqlr1_jax.train.checkpoint import Checkpoints

log = logging.getLogger(__name__)
TRAINING_STAGES = ("sft", "grpo")  # in order: each begins with the weights that the one before it left


class CheckpointRef(NamedTuple):
    """A step of a stage; as text what evaluations and exports call their weights."""

    stage: str
    step: int

    def __str__(self) -> str:
        return f"{self.stage}, step {self.step}"


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What all stages of a run share; immutable. `create_context` makes it, after the data stage."""

    cfg: config.Config
    workdir: Path
    mesh: Mesh
    tokenizer: Any  # of transformers
    model: qwen2.Qwen2Config

    @property
    def data_dir(self) -> Path:
        """Folder of the embedded data set and its tokenizer."""
        return self.workdir / "data"

    @property
    def tokenizer_dir(self) -> Path:
        """Folder of the model's tokenizer."""
        return _tokenizer_dir(self.cfg, self.workdir)

    def checkpoints(self, stage: str) -> Checkpoints:
        """A stage's checkpoints; step 0 is never deleted, since the reference model is read from it."""
        return Checkpoints(self.workdir / "checkpoints" / stage, self.cfg.checkpoint.keep, always=(0,))

    def engine(self, prompts: Sequence[Prompt]) -> Engine:
        """A sampler with room for the longest of `prompts` that is within the token budget."""
        longest = max((len(prompt.ids) for prompt in prompts if not prompt.over_budget), default=1)
        mesh = sharding.sampling_mesh(self.mesh, self.model.num_kv_heads)
        return Engine(self.model, mesh, tokenizer.stop_ids(self.tokenizer), -(-longest // 16) * 16, self.cfg.rollout)

    def request(self, prompts: Sequence[Prompt], samples: int, settings: config.SamplingConfig, step: int) -> Request:
        """An engine's request for `samples` completions of each prompt; `step` is folded into the sampling keys."""
        ends = tokenizer.StopTextMatcher(self.tokenizer, settings.stop) if settings.stop else None
        return Request([prompt.ids for prompt in prompts], samples, settings, self.cfg.seed, step, stop_fn=ends)

    def examples(self, spec: str, split: str) -> list[Example]:
        """The examples of a source, PREFIX:PATH; `split` picks a part of the embedded data set and of no other.

        Raises:
          ConfigError: `spec` names the embedded data set, and this run has not made it.
          example.ExampleError: the source cannot be read.
        """
        data = self.cfg.data
        if spec.startswith("synth:"):
            if not self.data_dir.exists():
                raise ConfigError(
                    f"config.data takes {split} from {spec}, the embedded data, which this run has not made: put "
                    "'data' into config.stages, or name sources in config.data.train, sft and evaluate."
                )
            spec, databases = f"synsql:{self.data_dir / split}.json", str(self.data_dir / "databases")
        else:
            databases = data.databases
        return example.read_examples(
            spec, databases=databases, exclude=data.exclude, limit=data.limit, seed=self.cfg.seed
        )

    def prompts(self, examples: Sequence[Example]) -> list[Prompt]:
        """The examples' prompts: the same text in training, evaluation and `ask`."""
        return PromptRenderer(self.tokenizer, self.cfg.data).render_many(list(examples))

    def texts(self, ids: Sequence[Any]) -> list[str]:
        """Completions decoded to text, without their stop token."""
        stop = set(tokenizer.stop_ids(self.tokenizer))
        return self.tokenizer.batch_decode(
            [list(one[:-1] if len(one) and int(one[-1]) in stop else one) for one in ids],
            clean_up_tokenization_spaces=False,  # it would change the spaces inside SQL strings
        )


def create_context(cfg: config.Config, workdir: Path) -> RunContext:
    """Makes the mesh, loads the tokenizer and settles the model config; loads no weights.

    Raises:
      ConfigError: no setting names a model, the mesh does not suit the devices, or a batch does not divide
        evenly among the hosts.
    """
    if jax.process_count() > collectives.process_count():
        raise ConfigError(f"this is one of {jax.process_count()} hosts: start it on each, with --distributed.")
    mesh = sharding.make_mesh(cfg.mesh)
    folder = _tokenizer_dir(cfg, workdir)
    if not folder.exists():
        raise ConfigError(
            "config.model.path is empty and the run made no data of its own: name a Hugging Face folder or repository, "
            "or put 'data' in config.stages."
        )
    tokens = tokenizer.load(folder)
    model = model_config(cfg.model, len(tokens))
    log.info("mesh %s over %d hosts", dict(mesh.shape), collectives.process_count())
    collectives.check_batch_sizes(cfg, mesh, sharding.sampling_mesh(mesh, model.num_kv_heads))
    return RunContext(cfg, workdir, mesh, tokens, model)


def _tokenizer_dir(cfg: config.Config, workdir: Path) -> Path:
    return huggingface.resolve_folder(cfg.model.path) if cfg.model.path else workdir / "data" / "tokenizer"


def model_config(cfg: config.ModelConfig, num_tokens: int) -> qwen2.Qwen2Config:
    """The shape of the model's folder or preset, computed with as `cfg` says, for a tokenizer of `num_tokens` ids."""
    model = (
        huggingface.config_from_folder(huggingface.resolve_folder(cfg.path)) if cfg.path else qwen2.PRESETS[cfg.size]
    )
    if not cfg.path and cfg.size == "tiny":
        model = dataclasses.replace(model, vocab_size=num_tokens)
    return dataclasses.replace(
        model,
        num_tokens=num_tokens,
        param_dtype=cfg.param_dtype,
        dtype=cfg.dtype,
        activation_dtype=cfg.activation_dtype,
        remat=cfg.remat,
        attention=cfg.attention,
        query_chunk=cfg.query_chunk,
        ffw_chunks=cfg.ffw_chunks,
        logits_chunk=cfg.logits_chunk,
        unroll=cfg.unroll,
    )


def find_checkpoint(
    context: RunContext, step: str = "last", stages: Sequence[str] = TRAINING_STAGES
) -> CheckpointRef | None:
    """The checkpoint of the run's weights: `step` of the last of `stages` that has any; None where none has.

    Nothing else decides which weights are the run's: evaluation, export and the next stage all ask here.

    Args:
      context: the run.
      step: "last", "best" or a number, as in config.export.step; a number is not checked.
      stages: in the order in which they train.
    """
    found = None
    for stage in stages:
        if (context.workdir / "checkpoints" / stage).exists():
            checkpoints = context.checkpoints(stage)
            found = CheckpointRef(stage, checkpoints.resolve(step)) if checkpoints.steps() else found
    return collectives.broadcast(found)


def describe_weights(context: RunContext, checkpoint: CheckpointRef | None) -> str:
    """A checkpoint's name, or model.path for the weights that the run starts from ("" where these are random)."""
    return str(checkpoint) if checkpoint else context.cfg.model.path


def load_params(context: RunContext, checkpoint: CheckpointRef | None) -> Any:
    """A checkpoint's weights in the training layout; for None those that the run starts from.

    Raises:
      CheckpointNotFoundError: the stage has no such step; the message lists those it has.
    """
    if checkpoint is None:
        return init_params(context)
    log.info("weights: %s", checkpoint)
    tree = {"params": abstract_params(context.model, context.mesh)}
    return context.checkpoints(checkpoint.stage).load(checkpoint.step, tree)["params"]


def init_params(context: RunContext) -> Any:
    """The weights that the run starts from, in the training layout: those of model.path, or random from the seed."""
    if context.cfg.model.path:
        return huggingface.load_params(context.cfg.model.path, context.model, context.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(context.model, context.mesh))
    make_params = jax.jit(lambda key: init.init_params(context.model, key), out_shardings=shardings)
    return make_params(jax.random.key(context.cfg.seed))


def abstract_params(model: qwen2.Qwen2Config, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the training weights: what they are loaded into, or compiled for."""

    def abstract_leaf(spec: qwen2.ParamSpec) -> jax.ShapeDtypeStruct:
        layout = sharding.named_sharding(mesh, spec.logical_axes, sharding.TRAIN_RULES, spec.shape)
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=layout)

    return jax.tree.map(abstract_leaf, qwen2.abstract_params(model), is_leaf=qwen2.is_spec)
