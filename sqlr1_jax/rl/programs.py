"""The programs of a GRPO step as training jits them, with shapes and layouts for inputs, to compile ahead of time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sqlr1_jax import config, sharding
from sqlr1_jax.data.packing import Layout, Rows
from sqlr1_jax.hosts import check as check_hosts
from sqlr1_jax.model import flops, qwen2
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rollout import decode
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.train import optimizer, run, state
from sqlr1_jax.train.batch import Batch, microbatches

NUM_TOKENS = 151_665  # of Qwen2.5's tokenizer; the embedding's rows past them are padding
STOP = (151_643, 151_645)


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function of training, and what it is called with."""

    mesh: Mesh
    function: Callable[..., Any]
    inputs: tuple[Any, ...]  # shapes with layouts
    living: Any  # what else is on the chips while it runs
    donated: tuple[int, ...] = ()  # which inputs it may overwrite
    turns: int = 1  # of the loop whose length it learns when it runs: microbatches, decode steps
    flops: float = 0.0  # of all chips together

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """What XLA makes of it, with `living` as inputs that it must keep."""

        def beside(living: Any, *inputs: Any) -> Any:
            del living
            return self.function(*inputs)

        donated = tuple(place + 1 for place in self.donated)
        with jax.set_mesh(self.mesh):
            program = jax.jit(beside, keep_unused=True, donate_argnums=donated)
            return program.lower(self.living, *self.inputs).compile()


def shape(cfg: config.Model) -> qwen2.Qwen2Config:
    """The model that the config computes with: its folder's, else its size's; a repository is not asked."""
    here = cfg if Path(cfg.path).is_dir() and cfg.path else dataclasses.replace(cfg, path="")
    return run.shape(here, min(NUM_TOKENS, qwen2.PRESETS[cfg.size].vocab_size))


class Step:
    """A GRPO step as shapes with layouts: what its programs are compiled from.

    The hosts share grpo.prompts prompts and each feeds grpo.rows.per_microbatch rows at a time, as in training. Prompts
    are data.max_prompt_tokens long and completions grpo.sampling.max_tokens: the longest that the config allows.
    `layers_apart` is the Engine's.

    Raises:
      config.ConfigError: the mesh does not suit the devices, or a batch the hosts.
    """

    def __init__(
        self, cfg: config.Config, devices: Sequence[jax.Device], hosts: int, layers_apart: bool | None = None
    ):
        self.cfg, self.model, self.mesh = cfg, shape(cfg.model), sharding.make_mesh(cfg.mesh, devices)
        grpo, S = cfg.grpo, -(-cfg.data.max_prompt_tokens // 16) * 16
        self.sampled = Layout(S, grpo.samples, grpo.sampling.max_tokens)  # a prompt and its samples
        self.layout = Layout(grpo.rows.prefix or S, grpo.samples, grpo.rows.segment or grpo.sampling.max_tokens)
        self.prompts, self.rows = grpo.prompts, grpo.rows.per_microbatch * hosts
        self.microbatches = microbatches(grpo.prompts, grpo.rows, hosts)
        strided = self.layout if grpo.rows.layout == "strided" else None
        self.row_tokens = self.layout.length if strided else grpo.rows.length or self.layout.length
        self.program = state.Program(self.model, grpo.optimizer, grpo.steps, strided, grpo.sampling.temperature)
        sampling_mesh = sharding.sampling_mesh(self.mesh, self.model.num_kv_heads)
        check_hosts(cfg, self.mesh, sampling_mesh)
        self.slots = cfg.rollout.slots or grpo.prompts
        self.engine = Engine(self.model, sampling_mesh, STOP, S, cfg.rollout, layers_apart)
        self.refill = self.engine.refill(self.slots, hosts)
        self.params = _weights(self.model, self.mesh)
        self.state = self._state()
        self.reference = self.params if grpo.kl else None

    @property
    def names(self) -> tuple[str, ...]:
        """The step's programs in the order in which it runs them; each is an attribute here."""
        return ("weights", "prefill", "decode", *(("score",) if self.reference else ()), "update")

    @functools.cached_property
    def weights(self) -> Program:
        """The sampler's copy of the weights."""
        living = self.state.opt_state, self.reference
        return Program(self.mesh, self.engine.weights, (self.params,), living)

    @functools.cached_property
    def sampler(self) -> Any:
        """The sampler's weights, as `weights` makes them."""
        return _made_by(self.weights)

    @functools.cached_property
    def empty(self) -> Program:
        """The slots, with nothing in them."""
        (S, G, T), kind = dataclasses.astuple(self.sampled), self.cfg.rollout.cache

        def function() -> Any:
            return decode.empty(self.slots, G, S, T, self.engine.model, kind)

        return Program(self.engine.mesh, function, (), (self.state, self.reference))

    @functools.cached_property
    def prefill(self) -> Program:
        """The keys and values of as many prompts as one prefill takes."""
        R, (S, G, _) = self.refill, dataclasses.astuple(self.sampled)
        arrivals = decode.Arrivals(
            *(self._asked((R, *more), jnp.int32) for more in ((S,), (), (), (), (), (G,)))
        )
        step = _array((), jnp.int32, self.engine.mesh)

        def function(params: Any, slots: Any, arrivals: Any, step: Any) -> Any:
            return decode.fill(params, slots, arrivals, step, self.cfg.seed, self.engine.model)

        work = flops.forward_flops(self.model, R * S, R * flops.row_keys(S, 0, 0), asked=0)
        inputs, living = (self.sampler, _made_by(self.empty), arrivals, step), (self.state, self.reference)
        return Program(self.engine.mesh, function, inputs, living, donated=(1,), flops=work)

    @functools.cached_property
    def decode(self) -> Program:
        """A chunk of steps of all slots, from a cache that lies as `prefill` hands it over."""
        (S, G, T), P, steps = dataclasses.astuple(self.sampled), self.slots, self.engine.steps(self.cfg.grpo.sampling)
        inputs = self.sampler, _made_by(self.prefill), self._asked((P, G), jnp.bool_)

        def function(params: Any, slots: Any, halt_PG: Any) -> Any:
            return decode.chunk(params, slots, halt_PG, steps, STOP, self.engine.model, self.cfg.grpo.sampling)

        keys = P * (flops.row_keys(S, G, T) - flops.row_keys(S, 0, 0)) * steps / T
        work = flops.forward_flops(self.model, P * G * steps, keys)
        living = self.state, self.reference
        return Program(self.engine.mesh, function, inputs, living, donated=(1,), turns=steps, flops=work)

    @functools.cached_property
    def score(self) -> Program:
        """The reference's log-probabilities of the rows."""

        def function(params: Any, fed: Batch) -> Any:
            return state.score(params, fed, self.program)

        inputs, work = (self.reference, self._batch()), flops.forward_flops(self.model, *self._work())
        return Program(self.mesh, function, inputs, self.state, turns=self.microbatches, flops=work)

    @functools.cached_property
    def update(self) -> Program:
        """One optimiser step over all microbatches; the sampler's weights are gone by then."""

        def function(at: state.TrainState, fed: Batch) -> Any:
            return state.update(at, fed, grpo_loss, self.cfg.grpo, self.program)

        inputs, work = (self.state, self._batch()), flops.update_flops(self.model, *self._work())
        return Program(self.mesh, function, inputs, self.reference, donated=(0,), turns=self.microbatches, flops=work)

    def _state(self) -> state.TrainState:
        tx = optimizer.make(self.program.optimizer, self.model, self.program.steps)
        opt_state = jax.eval_shape(tx.init, self.params)
        everywhere = sharding.replicated(self.mesh)
        layouts = state.beside(self.params, opt_state)
        opt_state = jax.tree.map(lambda leaf, layout: _laid_out(leaf, layout or everywhere), opt_state, layouts)
        return state.TrainState(_array((), jnp.int32, self.mesh), self.params, opt_state)

    def _asked(self, dimensions: tuple[int, ...], dtype: Any) -> Any:
        """One of the sampler's inputs: an entry a prompt."""
        return _array(dimensions, dtype, self.engine.mesh, ("rows",), sharding.SAMPLE_RULES)

    def _batch(self) -> Batch:
        dimensions = self.microbatches, self.rows, self.row_tokens
        whole, real = (_array(dimensions, kind, self.mesh, (None, "rows")) for kind in (jnp.int32, jnp.float32))
        rows = Rows(*[real if name in ("weight", "logprob") else whole for name in Rows._fields])
        return Batch(rows, real, real, real, _array((), jnp.int32, self.mesh))

    def _work(self) -> tuple[float, float, float]:
        """Tokens of all microbatches, the keys that they see, and those asked: of groups as long as they may be."""
        rows, layout = self.microbatches * self.rows, self.layout
        keys, asked = flops.row_keys(*dataclasses.astuple(layout)), layout.segments * layout.segment
        return rows * self.row_tokens, rows * keys, rows * asked


def _array(
    dimensions: tuple[int, ...],
    dtype: Any,
    mesh: Mesh,
    axes: sharding.LogicalAxes = (),
    rules: sharding.Rules = sharding.TRAIN_RULES,
) -> Any:
    names = (*axes, *[None] * (len(dimensions) - len(axes)))
    return jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding.named(mesh, names, rules, dimensions))


def _laid_out(leaf: jax.ShapeDtypeStruct, layout: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)


def _made_by(program: Program) -> Any:
    """What a program hands to the next one, as it lies there."""
    return jax.tree.map(
        _laid_out, jax.eval_shape(program.function, *program.inputs), program.compiled.output_shardings
    )


def _weights(model: qwen2.Qwen2Config, mesh: Mesh) -> Any:
    def one(spec: qwen2.ParamSpec) -> jax.ShapeDtypeStruct:
        return _array(spec.shape, model.param_dtype, mesh, spec.logical_axes)

    return jax.tree.map(one, qwen2.abstract(model), is_leaf=qwen2.is_spec)
