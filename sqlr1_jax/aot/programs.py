"""The programs of a GRPO step: the functions that training jits, with abstract arrays as inputs.

StepPrograms describes one step under a config, without a device. Each of its programs can be compiled ahead of time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sqlr1_jax import config
from sqlr1_jax.data.packing import PackedRows, RowLayout
from sqlr1_jax.distributed import sharding
from sqlr1_jax.distributed.collectives import check_batch_sizes as check_hosts
from sqlr1_jax.model import flops, qwen2
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rollout import programs
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.train import context, optimizer, state
from sqlr1_jax.train.batch import Batch, max_microbatches

NUM_TOKENS = 151_665  # in Qwen2.5's tokenizer; the embedding has more rows, as padding
STOP = (151_643, 151_645)


@dataclasses.dataclass(frozen=True)
class AotProgram:
    """A function of training and the abstract arrays that it is compiled for.

    `resident` holds the arrays that the function does not read and that stay in device memory while it runs. They are
    inputs of the compiled program, so that the compiler's peak includes them.
    """

    mesh: Mesh
    function: Callable[..., Any]
    inputs: tuple[Any, ...]  # trees of jax.ShapeDtypeStruct with shardings
    resident: Any  # a tree of the same kind
    donated: tuple[int, ...] = ()  # positions of the inputs whose buffers the program may reuse
    flops: float = 0.0  # the model's, summed over all devices

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The compiled program; call it with `resident`, then the inputs.

        Raises:
          jax.errors.JaxRuntimeError: the compiler failed; RESOURCE_EXHAUSTED if the program needs too much memory.
        """

        def with_resident(resident: Any, *inputs: Any) -> Any:
            del resident
            return self.function(*inputs)

        donated = tuple(position + 1 for position in self.donated)
        with jax.set_mesh(self.mesh):
            jitted = jax.jit(with_resident, keep_unused=True, donate_argnums=donated)
            return jitted.lower(self.resident, *self.inputs).compile()


def model_config(cfg: config.ModelConfig) -> qwen2.Qwen2Config:
    """The architecture: that of the local folder `cfg.path`, else of `cfg.size`. It downloads nothing."""
    is_folder = bool(cfg.path) and Path(cfg.path).is_dir()
    local = cfg if is_folder else dataclasses.replace(cfg, path="")
    return context.model_config(local, min(NUM_TOKENS, qwen2.PRESETS[cfg.size].vocab_size))


class StepPrograms:
    """The programs of one GRPO step, each a property.

    The hosts share grpo.prompts prompts, and each feeds grpo.rows.per_microbatch rows to a microbatch, as in training.
    Lengths are the longest that the config allows: data.max_prompt_tokens tokens in a prompt, rounded up to a multiple
    of 16, and grpo.sampling.max_tokens in a completion. `unstack_layers` is the Engine's.

    Raises:
      ConfigError: the mesh does not fit the devices, or a batch does not divide among the hosts.
    """

    def __init__(self, cfg: config.Config, devices: Sequence[jax.Device], hosts: int, unstack_layers: bool | None = None):
        self.config, self.model, self.mesh = cfg, model_config(cfg.model), sharding.make_mesh(cfg.mesh, devices)
        grpo, S = cfg.grpo, -(-cfg.data.max_prompt_tokens // 16) * 16
        self.rollout_layout = RowLayout(S, grpo.samples, grpo.sampling.max_tokens)
        self.row_layout = RowLayout(grpo.rows.prefix or S, grpo.samples, grpo.rows.segment or grpo.sampling.max_tokens)
        self.prompts, self.microbatch_rows = grpo.prompts, grpo.rows.per_microbatch * hosts
        self.microbatches = max_microbatches(grpo.prompts, grpo.rows, hosts)
        strided = self.row_layout if grpo.rows.layout == "shared_prefix" else None
        self.row_tokens = self.row_layout.length if strided else grpo.rows.length or self.row_layout.length
        self.update_spec = state.UpdateSpec(self.model, grpo.optimizer, grpo.steps, strided, grpo.sampling.temperature)
        sampling_mesh = sharding.sampling_mesh(self.mesh, self.model.num_kv_heads)
        check_hosts(cfg, self.mesh, sampling_mesh)
        self.slots = cfg.rollout.max_concurrent_prompts or grpo.prompts
        self.engine = Engine(self.model, sampling_mesh, STOP, S, cfg.rollout, unstack_layers)
        self.prefill_prompts = self.engine.refill(self.slots, hosts)
        self.params = context.abstract_params(self.model, self.mesh)
        self.state = self._state()
        self.reference = self.params if grpo.kl else None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the properties that are this step's programs, in the order in which a step runs them."""
        return ("weights", "prefill", "decode", *(("score",) if self.reference else ()), "update")

    @functools.cached_property
    def weights(self) -> AotProgram:
        """Makes the sampler's copy of the weights."""
        resident = self.state.opt_state, self.reference
        return AotProgram(self.mesh, self.engine.prepare_weights, (self.params,), resident)

    @functools.cached_property
    def sampler_params(self) -> Any:
        """The sampler's weights, as `weights` returns them."""
        return _outputs(self.weights)

    @functools.cached_property
    def init_slots(self) -> AotProgram:
        """Makes empty slots. Its output is `prefill`'s input; `names` leaves it out."""
        (S, G, T), kind = dataclasses.astuple(self.rollout_layout), self.config.rollout.cache

        def function() -> Any:
            return programs.init_slots(self.slots, G, S, T, self.engine.model, kind)

        return AotProgram(self.engine.mesh, function, (), (self.state, self.reference))

    @functools.cached_property
    def prefill(self) -> AotProgram:
        """Computes keys and values of one batch of prompts."""
        R, (S, G, _) = self.prefill_prompts, dataclasses.astuple(self.rollout_layout)
        arrivals = programs.PrefillBatch(
            *(self._sampler_input((R, *more), jnp.int32) for more in ((S,), (), (), (), (), (G,)))
        )
        step = _abstract_array((), jnp.int32, self.engine.mesh)

        def function(params: Any, slots: Any, arrivals: Any, step: Any) -> Any:
            return programs.prefill(params, slots, arrivals, step, self.config.seed, self.engine.model)

        prefill_flops = flops.forward_flops(self.model, R * S, R * flops.row_keys(S, 0, 0), asked=0)
        inputs = self.sampler_params, _outputs(self.init_slots), arrivals, step
        resident = self.state, self.reference
        return AotProgram(self.engine.mesh, function, inputs, resident, donated=(1,), flops=prefill_flops)

    @functools.cached_property
    def decode(self) -> AotProgram:
        """Decodes one chunk of steps in all slots; the slots have the layout that `prefill` returns."""
        (S, G, T), P = dataclasses.astuple(self.rollout_layout), self.slots
        steps = self.engine.steps(self.config.grpo.sampling)
        inputs = self.sampler_params, _outputs(self.prefill), self._sampler_input((P, G), jnp.bool_)

        def function(params: Any, slots: Any, halt_PG: Any) -> Any:
            return programs.decode_steps(
                params, slots, halt_PG, steps, STOP, self.engine.model, self.config.grpo.sampling
            )

        keys = P * (flops.row_keys(S, G, T) - flops.row_keys(S, 0, 0)) * steps / T
        decode_flops = flops.forward_flops(self.model, P * G * steps, keys)
        resident = self.state, self.reference
        return AotProgram(self.engine.mesh, function, inputs, resident, donated=(1,), flops=decode_flops)

    @functools.cached_property
    def score(self) -> AotProgram:
        """Computes the reference model's log-probabilities of all microbatches."""

        def function(params: Any, batch: Batch) -> Any:
            return state.compute_logprobs(params, batch, self.update_spec)

        score_flops = flops.forward_flops(self.model, *self._training_work())
        return AotProgram(self.mesh, function, (self.reference, self._batch()), self.state, flops=score_flops)

    @functools.cached_property
    def update(self) -> AotProgram:
        """Takes one optimizer step over all microbatches. The sampler's weights are freed before it runs."""

        def function(train_state: state.TrainState, batch: Batch) -> Any:
            return state.update(train_state, batch, grpo_loss, self.config.grpo, self.update_spec)

        update_flops = flops.update_flops(self.model, *self._training_work())
        inputs = self.state, self._batch()
        return AotProgram(self.mesh, function, inputs, self.reference, donated=(0,), flops=update_flops)

    def _state(self) -> state.TrainState:
        tx = optimizer.make_optimizer(self.update_spec.optimizer, self.model, self.update_spec.steps)
        opt_state = jax.eval_shape(tx.init, self.params)
        replicated = sharding.replicated(self.mesh)
        shardings = state.opt_state_shardings(self.params, opt_state)
        opt_state = jax.tree.map(lambda leaf, own: _with_sharding(leaf, own or replicated), opt_state, shardings)
        return state.TrainState(_abstract_array((), jnp.int32, self.mesh), self.params, opt_state)

    def _sampler_input(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array with one entry per prompt, sharded over prompts."""
        return _abstract_array(shape, dtype, self.engine.mesh, ("rows",), sharding.SAMPLE_RULES)

    def _batch(self) -> Batch:
        shape = self.microbatches, self.microbatch_rows, self.row_tokens
        ints, floats = (_abstract_array(shape, dtype, self.mesh, (None, "rows")) for dtype in (jnp.int32, jnp.float32))
        rows = PackedRows(*[floats if name in ("weight", "logprob") else ints for name in PackedRows._fields])
        return Batch(rows, floats, floats, floats, _abstract_array((), jnp.int32, self.mesh))

    def _training_work(self) -> tuple[float, float, float]:
        """Tokens, attended keys and scored tokens of all microbatches, with every row as long as its layout."""
        rows, layout = self.microbatches * self.microbatch_rows, self.row_layout
        keys, scored = flops.row_keys(*dataclasses.astuple(layout)), layout.segments * layout.segment
        return rows * self.row_tokens, rows * keys, rows * scored


def _abstract_array(
    shape: tuple[int, ...],
    dtype: Any,
    mesh: Mesh,
    axes: sharding.LogicalAxes = (),
    rules: sharding.Rules = sharding.TRAIN_RULES,
) -> Any:
    """A shape with a sharding; `axes` names the first dimensions, the others are not sharded."""
    names = (*axes, *[None] * (len(shape) - len(axes)))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named_sharding(mesh, names, rules, shape))


def _with_sharding(leaf: jax.ShapeDtypeStruct, leaf_sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)


def _outputs(program: AotProgram) -> Any:
    """A program's outputs as abstract arrays, with the shardings that the compiler chose."""
    shapes = jax.eval_shape(program.function, *program.inputs)
    return jax.tree.map(_with_sharding, shapes, program.compiled.output_shardings)
