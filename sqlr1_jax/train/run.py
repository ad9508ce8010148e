"""What every stage of a run shares: its settings, folder, mesh, tokenizer and the weights it has so far."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sqlr1_jax import config, hosts, sharding
from sqlr1_jax.data import example
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt, PromptRenderer
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import huggingface, qwen2, random_weights, tokenizer
from sqlr1_jax.rollout.engine import Engine, Request
from sqlr1_jax.train.checkpoint import Checkpoints

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """Made once by a command, after the data stage; immutable."""

    cfg: config.Config
    workdir: Path
    mesh: Mesh
    tokenizer: Any  # of transformers
    model: qwen2.Qwen2Config

    @property
    def data(self) -> Path:
        """Where the embedded data set lives."""
        return self.workdir / "data"

    def checkpoints(self, stage: str) -> Checkpoints:
        """The stage's checkpoints; where it began is never deleted, since the reference model is read from there."""
        return Checkpoints(self.workdir / "checkpoints" / stage, self.cfg.checkpoint.keep, always=(0,))

    def engine(self, prompts: Sequence[Prompt]) -> Engine:
        """A sampler that takes the longest of `prompts` that are within the budget."""
        longest = max((len(prompt.ids) for prompt in prompts if not prompt.over_budget), default=1)
        mesh = sharding.sampling_mesh(self.mesh, self.model.num_kv_heads)
        return Engine(self.model, mesh, tokenizer.stop_ids(self.tokenizer), -(-longest // 16) * 16, self.cfg.rollout)

    def request(self, prompts: Sequence[Prompt], samples: int, settings: config.Sampling, step: int) -> Request:
        """What an engine is asked for those prompts."""
        ends = tokenizer.Ends(self.tokenizer, settings.stop) if settings.stop else None
        return Request([prompt.ids for prompt in prompts], samples, settings, self.cfg.seed, step, ends=ends)

    def examples(self, spec: str, split: str) -> list[Example]:
        """The examples that a source names; of the embedded data set, its `split`.

        Raises:
          ConfigError: the embedded data set was asked for, and this run made none.
        """
        data = self.cfg.data
        if spec.startswith("synth:"):
            if not self.data.exists():
                raise ConfigError(
                    f"config.data takes {split} from {spec}, the embedded data, which this run has not made: put "
                    "'data' into config.stages, or name sources in config.data.train, cold_start and evaluate."
                )
            spec, databases = f"synsql:{self.data / split}.json", str(self.data / "databases")
        else:
            databases = data.databases
        return example.read(spec, databases=databases, exclude=data.exclude, limit=data.limit, seed=self.cfg.seed)

    def prompts(self, examples: Sequence[Example]) -> list[Prompt]:
        """Each example as the model is asked it: the same text in training, evaluation and use."""
        return PromptRenderer(self.tokenizer, self.cfg.data).render_many(list(examples))

    def texts(self, ids: Sequence[Any]) -> list[str]:
        """Completions as text, without the token that ended them."""
        stop = set(tokenizer.stop_ids(self.tokenizer))
        return self.tokenizer.batch_decode(
            [list(one[:-1] if len(one) and int(one[-1]) in stop else one) for one in ids],
            clean_up_tokenization_spaces=False,  # SQL is read to the character
        )


def start(cfg: config.Config, workdir: Path) -> Run:
    """Loads the tokenizer and fixes the model's shape and the mesh; reads no weights yet.

    Raises:
      ConfigError: nothing says which model this is, or its batches do not part evenly over the hosts.
    """
    if jax.process_count() > hosts.count():
        raise ConfigError(f"this is one of {jax.process_count()} hosts: start it on each, with --distributed.")
    mesh = sharding.make_mesh(cfg.mesh)
    folder = huggingface.resolve(cfg.model.path) if cfg.model.path else workdir / "data" / "tokenizer"
    if not folder.exists():
        raise ConfigError(
            "config.model.path is empty and the run made no data of its own: name a Hugging Face folder or repository, "
            "or put 'data' in config.stages."
        )
    words = tokenizer.load(folder)
    model = shape(cfg.model, len(words))
    log.info("mesh %s over %d hosts", dict(mesh.shape), hosts.count())
    hosts.check(cfg, mesh, sharding.sampling_mesh(mesh, model.num_kv_heads))
    return Run(cfg, workdir, mesh, words, model)


def shape(cfg: config.Model, num_tokens: int) -> qwen2.Qwen2Config:
    """The model that a config computes with, under a tokenizer of `num_tokens` ids."""
    model = huggingface.config_from_folder(huggingface.resolve(cfg.path)) if cfg.path else qwen2.PRESETS[cfg.size]
    if not cfg.path and cfg.size == "tiny":
        model = dataclasses.replace(model, vocab_size=num_tokens)
    how = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}  # all but which weights
    del how["size"], how["path"]
    return dataclasses.replace(model, num_tokens=num_tokens, **how)


def parameters(run: Run, stages: Sequence[str]) -> Any:
    """Weights from the last of `stages` that has a checkpoint; else those the run starts from."""
    stage, step = newest(run, stages)
    if not stage:
        return initial(run)
    log.info("weights: %s at step %d", stage, step)
    return run.checkpoints(stage).load(step, {"params": abstract(run)})["params"]


def newest(run: Run, stages: Sequence[str]) -> tuple[str, int]:
    """The last of `stages` that has a checkpoint, and its last step; ("", 0) where none has."""
    there = [stage for stage in stages if (run.workdir / "checkpoints" / stage).exists()]
    steps = [(stage, step) for stage in there if (step := run.checkpoints(stage).latest()) is not None]
    return hosts.agreed(steps[-1] if steps else ("", 0))


def initial(run: Run) -> Any:
    """The weights of model.path, or random ones from the seed, in the training layout."""
    if run.cfg.model.path:
        return huggingface.load(run.cfg.model.path, run.model, run.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(run))
    make = jax.jit(lambda key: random_weights.init_params(run.model, key), out_shardings=shardings)
    return make(jax.random.key(run.cfg.seed))


def abstract(run: Run) -> Any:
    """Shapes, dtypes and shardings of the training weights."""

    def one(spec: qwen2.ParamSpec) -> jax.ShapeDtypeStruct:
        layout = sharding.named(run.mesh, spec.logical_axes, sharding.TRAIN_RULES, spec.shape)
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=layout)

    return jax.tree.map(one, qwen2.abstract(run.model), is_leaf=qwen2.is_spec)
