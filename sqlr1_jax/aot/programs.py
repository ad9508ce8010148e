"""The programs of a GRPO step, described by abstract arrays, so that they compile without a device.

They are the functions that training jits. While one of them runs, other arrays of the step stay in device memory
(resident); a step runs them in this order:

    program             function                       inputs                     donated   resident
    weights             Engine.prepare_weights         params, frozen                       opt_state, reference
    prefill             rollout.programs.prefill       weights, slots, prompts    slots     state, frozen, reference
    decode              rollout.programs.decode_steps  weights, slots             slots     state, frozen, reference
    reference_logprobs  train.state.compute_logprobs   reference, frozen, batch             state
    update              train.state.update             state, batch, frozen       state     reference

`state` is the TrainState; `frozen` is the model's weights if LoRA adapters train, else nothing. `reference` is the KL
term's model, of which the frozen weights are part; without that term there is none, and no program
`reference_logprobs`.
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

from sqlr1_jax.config import Config, ModelConfig
from sqlr1_jax.data.packing import PackedRows, RowLayout
from sqlr1_jax.distributed import sharding
from sqlr1_jax.distributed.collectives import check_batch_sizes, count_processes
from sqlr1_jax.model import flops, lora, qwen2
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rollout import programs
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.train import context, optimizer, state
from sqlr1_jax.train.batch import Batch, microbatches

NUM_TOKENS = 151_665  # in Qwen2.5's tokenizer; the embedding has more rows, as padding
STOP_IDS = (151_643, 151_645)  # Qwen2.5's


@dataclasses.dataclass(frozen=True)
class AotProgram:
    """A function of training and the abstract arrays that it is compiled for."""

    mesh: Mesh
    function: Callable[..., Any]
    inputs: tuple[Any, ...]  # trees of jax.ShapeDtypeStruct with shardings
    # Arrays that the function does not read and that stay in device memory while it runs. They are inputs of the
    # compiled program, so that the compiler's peak includes them.
    resident: Any
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

    @functools.cached_property
    def outputs(self) -> Any:
        """The program's outputs as abstract arrays, with the shardings that the compiler chose."""
        shapes = jax.eval_shape(self.function, *self.inputs)
        return jax.tree.map(_with_sharding, shapes, self.compiled.output_shardings)


class StepPrograms:
    """The programs of one GRPO step, each a property; the module's docstring lists them.

    As in training, the processes (one per host) share grpo.prompts prompts, and each data-parallel group computes at
    most grpo.rows.per_microbatch rows of a microbatch. Lengths are the longest that the config allows:
    data.max_prompt_tokens tokens in a prompt, rounded up to a multiple of 16, and grpo.sampling.max_tokens in a
    completion.
    """

    def __init__(
        self,
        config: Config,
        devices: Sequence[jax.Device],
        unstack_layers: bool | None = None,
    ):
        """`unstack_layers` is the Engine's.

        Raises:
          ConfigError: the mesh does not fit the devices, or a batch does not divide among the hosts.
        """
        grpo = config.grpo
        self.config = config
        self.model_config = offline_model_config(config.model)
        self.mesh = sharding.make_mesh(config.mesh, devices)
        sampling_mesh = sharding.sampling_mesh(self.mesh, self.model_config.num_kv_heads)
        check_batch_sizes(config, self.mesh)

        # Rollout: P slots for prompts of S tokens with G samples of T tokens each.
        S = -(-config.data.max_prompt_tokens // 16) * 16
        self.rollout_layout = RowLayout(S, grpo.samples, grpo.sampling.max_tokens)
        self.engine = Engine(
            self.model_config, sampling_mesh, STOP_IDS, S, config.rollout, unstack_layers=unstack_layers
        )
        self.prompts, hosts = grpo.prompts, count_processes(devices)
        self.slots = self.engine.num_slots(grpo.prompts)
        self.prefill_prompts = self.engine.prefill_batch_size(self.slots, hosts)

        # Update: microbatches [M, b, T] of rows that hold one group each, or several if they are packed.
        self.row_layout = RowLayout(grpo.rows.prefix or S, grpo.samples, grpo.rows.segment or grpo.sampling.max_tokens)
        shared_prefix = self.row_layout if grpo.rows.layout == "shared_prefix" else None
        self.row_tokens = self.row_layout.length if shared_prefix else grpo.rows.length or self.row_layout.length
        local_rows, self.microbatches = microbatches(grpo.prompts, grpo.rows, self.mesh)
        self.microbatch_rows = local_rows * hosts
        self.update_spec = state.UpdateSpec(
            self.model_config, grpo.optimizer, grpo.steps, shared_prefix, grpo.sampling.temperature
        )

        self.params, self.frozen = lora.split(context.abstract_params(self.model_config, self.mesh))
        self.state = self._abstract_state()
        self.reference = self.params if grpo.kl else None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the properties that are this step's programs, in the order in which a step runs them."""
        return ("weights", "prefill", "decode", *(("reference_logprobs",) if self.reference else ()), "update")

    @functools.cached_property
    def weights(self) -> AotProgram:
        """Makes the sampler's copy of the weights."""

        def function(params: Any, frozen: Any) -> Any:
            return self.engine.prepare_weights(params | frozen)

        resident = self.state.opt_state, self.reference
        return AotProgram(self.mesh, function, (self.params, self.frozen), resident)

    @functools.cached_property
    def init_slots(self) -> AotProgram:
        """Makes free slots, an input of `prefill`; `names` leaves it out."""
        (S, G, T), cache_dtype = dataclasses.astuple(self.rollout_layout), self.config.rollout.cache

        def function() -> Any:
            return programs.init_slots(self.slots, G, S, T, self.engine.decode_config, cache_dtype)

        return AotProgram(self.engine.mesh, function, (), self._resident)

    @functools.cached_property
    def prefill(self) -> AotProgram:
        """Computes keys and values of one batch of prompts."""
        R, (S, G, _) = self.prefill_prompts, dataclasses.astuple(self.rollout_layout)
        batch = programs.PrefillBatch(
            tokens_RS=self._per_prompt((R, S)),
            length_R=self._per_prompt((R,)),
            last_token_R=self._per_prompt((R,)),
            slot_R=self._per_prompt((R,)),
            prompt_index_R=self._per_prompt((R,)),
            limit_RG=self._per_prompt((R, G)),
        )
        step = _abstract_array((), jnp.int32, self.engine.mesh)

        def function(params: Any, slots: Any, batch: Any, step: Any) -> Any:
            return programs.prefill(params, slots, batch, step, self.config.seed, self.engine.model_config)

        # Prefill computes no logits.
        prefill_flops = flops.forward_flops(self.model_config, R * S, R * flops.row_keys(S, 0, 0), logit_tokens=0)
        inputs = self.weights.outputs, self.init_slots.outputs, batch, step
        return AotProgram(self.engine.mesh, function, inputs, self._resident, donated=(1,), flops=prefill_flops)

    @functools.cached_property
    def decode(self) -> AotProgram:
        """Decodes C steps in all slots, which have the shardings that `prefill` returns."""
        (S, G, T), P = dataclasses.astuple(self.rollout_layout), self.slots
        steps = self.engine.steps_per_sync(self.config.grpo.sampling)

        def function(params: Any, slots: Any, force_done_PG: Any) -> Any:
            return programs.decode_steps(
                params, slots, force_done_PG, steps, STOP_IDS, self.engine.decode_config, self.config.grpo.sampling
            )

        # The share of these steps in the keys that a whole completion attends to.
        keys = P * (flops.row_keys(S, G, T) - flops.row_keys(S, 0, 0)) * steps / T
        decode_flops = flops.forward_flops(self.model_config, P * G * steps, keys)
        inputs = self.weights.outputs, self.prefill.outputs, self._per_prompt((P, G), jnp.bool_)
        return AotProgram(self.engine.mesh, function, inputs, self._resident, donated=(1,), flops=decode_flops)

    @functools.cached_property
    def reference_logprobs(self) -> AotProgram:
        """Computes the reference model's log-probabilities of all microbatches."""

        def function(params: Any, frozen: Any, batch: Batch) -> Any:
            return state.compute_logprobs(params | frozen, batch, self.update_spec)

        logprobs_flops = flops.forward_flops(self.model_config, *self._training_work())
        inputs = self.reference, self.frozen, self._abstract_batch()
        return AotProgram(self.mesh, function, inputs, self.state, flops=logprobs_flops)

    @functools.cached_property
    def update(self) -> AotProgram:
        """Takes one optimizer step over all microbatches. The sampler's weights are freed before it runs."""

        def function(train_state: state.TrainState, batch: Batch, frozen: Any) -> Any:
            return state.update(train_state, batch, grpo_loss, self.config.grpo, self.update_spec, frozen)

        update_flops = flops.update_flops(self.model_config, *self._training_work())
        inputs = self.state, self._abstract_batch(), self.frozen
        return AotProgram(self.mesh, function, inputs, self.reference, donated=(0,), flops=update_flops)

    @property
    def _resident(self) -> Any:
        """What stays in device memory while the sampler runs."""
        return self.state, self.frozen, self.reference

    def _abstract_state(self) -> state.TrainState:
        tx = optimizer.make_optimizer(self.update_spec.optimizer, self.model_config, self.update_spec.steps)
        opt_state = jax.eval_shape(tx.init, self.params)
        replicated = sharding.replicated(self.mesh)
        shardings = state.opt_state_shardings(self.params, opt_state)  # None: not the shape of a parameter
        opt_state = jax.tree.map(
            lambda leaf, leaf_sharding: _with_sharding(leaf, leaf_sharding or replicated), opt_state, shardings
        )
        return state.TrainState(_abstract_array((), jnp.int32, self.mesh), self.params, opt_state)

    def _abstract_batch(self) -> Batch:
        shape = self.microbatches, self.microbatch_rows, self.row_tokens
        ints, floats = (_abstract_array(shape, dtype, self.mesh, (None, "rows")) for dtype in (jnp.int32, jnp.float32))
        rows = PackedRows(*[floats if name in ("weight", "logprob") else ints for name in PackedRows._fields])
        return Batch(rows, floats, floats, floats, _abstract_array((), jnp.int32, self.mesh))

    def _per_prompt(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> Any:
        """An input of the sampler's programs with one entry per prompt, sharded over prompts."""
        return _abstract_array(shape, dtype, self.engine.mesh, ("rows",), sharding.SAMPLE_RULES)

    def _training_work(self) -> tuple[float, float, float]:
        """Tokens, attended keys and tokens with loss of all microbatches, if every row is as long as its layout."""
        rows, layout = self.microbatches * self.microbatch_rows, self.row_layout
        keys, loss_tokens = flops.row_keys(*dataclasses.astuple(layout)), layout.segments * layout.segment
        return rows * self.row_tokens, rows * keys, rows * loss_tokens


def offline_model_config(model: ModelConfig) -> qwen2.Qwen2Config:
    """The architecture: that of `model.path` if it is a local folder, else that of `model.size`. Downloads nothing."""
    is_folder = bool(model.path) and Path(model.path).is_dir()
    local = model if is_folder else dataclasses.replace(model, path="")
    return context.model_config(local, min(NUM_TOKENS, qwen2.PRESETS[model.size].vocab_size))


def _abstract_array(
    shape: tuple[int, ...],
    dtype: Any,
    mesh: Mesh,
    axes: sharding.LogicalAxes = (),
    rules: sharding.Rules = sharding.TRAIN_RULES,
) -> Any:
    """A shape with a sharding; `axes` names the first dimensions, and the others are not sharded."""
    names = (*axes, *[None] * (len(shape) - len(axes)))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named_sharding(mesh, names, rules, shape))


def _with_sharding(leaf: jax.ShapeDtypeStruct, leaf_sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)
