"""The rollout engine: samples G completions of every prompt, with continuous batching.

A slot is room on the device for one prompt and its G samples. The engine prefills waiting prompts into free slots and
decodes all slots together, C steps per program call. A slot is free, and can be refilled, once all G samples are done.

The host dispatches each call before it reads the output of the previous one, so the device never waits for the host.
The price is that a slot idles for one call before it is refilled. With two slots and prompts A, B and C:

    device  │ prefill A, B      │ decode 1 │ decode 2             │ prefill C │ decode 3 │ decode 4             │
    slot 0  │ A                 │ A … done │ idle                 │ C         │ C …      │ C …                  │
    slot 1  │ B                 │ B …      │ B …                  │           │ B … done │ idle                 │
    host    │ queue decode 1, 2 │          │ read 1: slot 0 free, │ read 2,   │          │ read 3: slot 1 free, │
            │                   │          │ queue prefill C      │ queue     │          │ no prompt waits,     │
            │                   │          │ and decode 3         │ decode 4  │          │ queue decode 5       │

Shapes: P slots, G samples per prompt, T tokens at most per sample, C decode steps per call, N prompts of all processes,
H processes, R prompts of one process in one prefill, S padded prompt tokens. In
`Request` and `Completions`, P is the number of prompts, not of slots.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from sqlr1_jax.config import RolloutConfig, SamplingConfig
from sqlr1_jax.data.packing import padded_lengths
from sqlr1_jax.distributed import collectives, sharding, watchdog
from sqlr1_jax.model import lora, quantize, qwen2
from sqlr1_jax.model.kv_cache import SharedPrefix
from sqlr1_jax.rollout import programs
from sqlr1_jax.rollout.prefixes import PrefixStore, RequestPrefixes, padded_size
from sqlr1_jax.rollout.programs import DecodedTokens, PrefillBatch, Slots
from sqlr1_jax.rollout.recorder import SampleRecorder
from sqlr1_jax.rollout.request import Completions, Ids, Request
from sqlr1_jax.rollout.scheduler import FREE, SlotScheduler

MIN_ROWS = 16  # fewer samples take one program for any number of them


@dataclasses.dataclass(frozen=True)
class Engine:
    """A sampler for one model on one mesh; it holds no weights and no state.

    With `unstack_layers` each layer's weights are separate arrays and the loop over layers is unrolled, regardless of
    `model.unroll`. That is the default on CPU, where XLA copies each layer out of stacked weights, which takes half of
    a decode step's time.
    """

    model_config: qwen2.Qwen2Config  # with the sampler's dtype
    mesh: Mesh  # sharding.sampling_mesh
    stop_ids: tuple[int, ...]  # token ids that end a sample
    prompt_tokens: int  # maximum number of tokens in a prompt
    config: RolloutConfig
    unstack_layers: bool | None = None  # None: only on CPU

    def __post_init__(self) -> None:
        if self.unstack_layers is None:
            object.__setattr__(self, "unstack_layers", self.mesh.devices.flat[0].platform == "cpu")

    @functools.cached_property
    def decode_config(self) -> qwen2.Qwen2Config:
        """The model for decoding: with unstacked layers, all of them are unrolled."""
        if not self.unstack_layers:
            return self.model_config
        return dataclasses.replace(self.model_config, unroll=self.model_config.num_layers)

    def prepare_weights(self, params: Any) -> Any:
        """The sampler's copy of the training weights: LoRA merged, cast or quantized, and sharded by SAMPLE_RULES."""
        unstacked = bool(self.unstack_layers)
        weights = _prepare_weights(params, self.decode_config, self.mesh, self.config.weights, unstacked)
        same_numbers = self.model_config.dtype == self.model_config.param_dtype and not self.config.weights
        if unstacked and same_numbers and self.mesh.size == 1:
            # Prefill then needs no copy, and its loop over stacked layers compiles in half the time.
            weights |= {"prefill_layers": lora.adapted_layers(params, self.model_config)}
        return weights

    def rollout(self, weights: Any, request: Request, store: PrefixStore | None = None) -> Completions:
        """Samples all completions of a request. All processes must call it, with equally many prompts.

        Args:
          weights: from `prepare_weights`.
          request: this process's prompts.
          store: keeps prefixes for later calls with the same weights; then even a prompt alone has its prefix kept.

        Raises:
          ValueError: the prompts do not divide evenly among the processes.
        """
        processes = collectives.process_count()
        prefixes = RequestPrefixes(request, store)
        scheduler = SlotScheduler(self._num_slots(request), prefixes.number_N, processes)
        recorder = SampleRecorder(request, self.stop_ids)
        sizes = self.row_sizes(self._num_slots(request) * request.samples)
        in_flight: deque[tuple[npt.NDArray[np.int64], DecodedTokens]] = deque()
        with jax.set_mesh(self.mesh):
            slots = self._prefill_free_slots(weights, self._init_slots(request), scheduler, request, prefixes)
            while not scheduler.done:
                force_done_PG = recorder.force_done_PG(scheduler.prompt_P)
                rows = next(n for n in sizes if not n or n >= recorder.unfinished(scheduler.prompt_P))
                slots, decoded = self._decode(weights, slots, force_done_PG, request, rows)
                in_flight.append((scheduler.prompt_P.copy(), decoded))
                if len(in_flight) == 1:
                    continue  # dispatch the next call before reading this one
                assigned_P, decoded = in_flight.popleft()
                with watchdog.waiting():
                    recorder.record(assigned_P, decoded)  # waits for that call; the next one is already queued
                scheduler.release(sharding.to_local_array(decoded.busy_P), assigned_P)
                slots = self._prefill_free_slots(weights, slots, scheduler, request, prefixes)
        return recorder.completions

    def compile(self, weights: Any, request: Request) -> None:
        """Compiles every program that a rollout of such a request can need, by running them on free slots."""
        num_slots, processes = self._num_slots(request), collectives.process_count()
        with jax.set_mesh(self.mesh):
            slots = self._init_slots(request)
            no_slots_HR = np.full((processes, self._prefill_width(request)), num_slots)
            for padded_length in padded_lengths(self.prompt_tokens, self.config.prompt_buckets):
                batch = _make_prefill_batch(request, no_slots_HR, np.full(num_slots, FREE), padded_length)
                slots = self._prefill(weights, slots, batch, request)
            no_samples_PG = np.zeros((num_slots // processes, request.samples), bool)
            for rows in self.row_sizes(num_slots * request.samples):
                slots, _ = self._decode(weights, slots, no_samples_PG, request, rows)

    def steps_per_sync(self, sampling: SamplingConfig) -> int:
        """C: decode steps of one program call."""
        # On CPU a step of a real model takes a good part of a second, so slots should not idle for many of them.
        default = 2 if self.mesh.devices.flat[0].platform == "cpu" else 32
        return min(self.config.decode_steps_per_sync or default, sampling.max_tokens)

    def prefill_batch_size(self, slots: int, processes: int) -> int:
        """Prompts in one prefill of all processes: config.prefill_batch × processes, rounded up; at most `slots`.

        Rounded up to a multiple of the data-parallel size (replica × fsdp), since with fewer prompts several devices
        would compute the same one, and the batch might not divide among the processes.
        """
        return min(self._round_up(self.config.prefill_batch * processes or slots), slots)

    def num_slots(self, prompts: int, wanted: int = 0) -> int:
        """P, over all processes, for that many prompts; at least `wanted`, or if that is 0, what the config wants.

        Rounded up to a multiple of the data-parallel size, so that no two devices compute the same prompt.
        """
        return self._round_up(wanted or self.config.max_concurrent_prompts or prompts)

    def _round_up(self, number: int) -> int:
        data_parallel = sharding.data_parallel_size(self.mesh)
        return -(-number // data_parallel) * data_parallel

    def _num_slots(self, request: Request) -> int:
        return self.num_slots(len(request.prompts) * collectives.process_count(), request.max_concurrent_prompts)

    def _prefill_width(self, request: Request) -> int:
        """R: prompts of one process in one prefill."""
        processes = collectives.process_count()
        return self.prefill_batch_size(self._num_slots(request), processes) // processes

    def _init_slots(self, request: Request) -> Slots:
        return programs.init_slots(
            self._num_slots(request),
            request.samples,
            self.prompt_tokens,
            request.sampling.max_tokens,
            self.decode_config,
            self.config.cache,
        )

    def _prefill_free_slots(
        self, weights: Any, slots: Slots, scheduler: SlotScheduler, request: Request, prefixes: RequestPrefixes
    ) -> Slots:
        """Prefills waiting prompts into free slots, each batch padded to the shortest length that fits its prompts."""
        for slots_HR in scheduler.admit(self._prefill_width(request)):
            used = slots_HR[slots_HR < len(scheduler.prompt_P)]
            prompts = scheduler.prompt_P[used]
            longest = int(prefixes.own_length_N[prompts].max())
            if prefixes.number_N[prompts[0]]:
                prefix = prefixes.get(int(prompts[0]), functools.partial(self._prefill_prefix, weights))
                padded_length = padded_size(longest)
            else:
                prefix, lengths = None, padded_lengths(self.prompt_tokens, self.config.prompt_buckets)
                padded_length = next(length for length in lengths if length >= longest)
            batch = _make_prefill_batch(request, slots_HR, scheduler.prompt_P, padded_length, prefixes)
            slots = self._prefill(weights, slots, batch, request, prefix)
        return slots

    def _prefill_prefix(self, weights: Any, ids: Ids) -> SharedPrefix:
        tokens_S = np.zeros(padded_size(len(ids)), np.int32)
        tokens_S[: len(ids)] = ids
        return programs.prefill_prefix(weights, tokens_S, np.int32(len(ids)), self.model_config)

    def _prefill(
        self, weights: Any, slots: Slots, batch: PrefillBatch, request: Request, prefix: SharedPrefix | None = None
    ) -> Slots:
        batch = sharding.to_global_arrays(batch, mesh=self.mesh, rules=sharding.SAMPLE_RULES)
        step = np.int32(request.step)
        return programs.prefill(weights, slots, batch, step, request.seed, self.model_config, prefix)

    def _decode(
        self, weights: Any, slots: Slots, force_done_PG: npt.NDArray[np.bool_], request: Request, rows: int = 0
    ) -> tuple[Slots, DecodedTokens]:
        """Dispatches C decode steps and returns at once; `force_done_PG` covers this process's slots."""
        return programs.decode_steps(
            weights,
            slots,
            sharding.to_global_arrays(force_done_PG, self.mesh, rules=sharding.SAMPLE_RULES),
            self.steps_per_sync(request.sampling),
            self.stop_ids,
            self.decode_config,
            request.sampling,
            request.temperatures,
            rows,
        )

    def row_sizes(self, samples: int) -> list[int]:
        """How many of all slots' samples may pass through the model in one decode step, ascending; 0 stands for all.

        On CPU a step's time grows with the samples, so those that are done are left out: a quarter, half or three
        quarters of them remain. On other platforms the weights' reading takes the time.
        """
        if self.mesh.size > 1 or not self.unstack_layers or samples < MIN_ROWS:
            return [0]
        return [*(-(-samples * part // 4) for part in (1, 2, 3)), 0]


def _make_prefill_batch(
    request: Request,
    slots_HR: npt.NDArray[np.int64],
    prompt_P: npt.NDArray[np.int64],
    padded_length: int,
    prefixes: RequestPrefixes | None = None,
) -> PrefillBatch:
    """This process's part of a prefill batch.

    Args:
      request: this process's prompts.
      slots_HR: the slot of each entry; the number of slots marks padding.
      prompt_P: the prompt in each slot, by its index over all processes.
      padded_length: S.
      prefixes: what each prompt begins with, which the batch leaves out; None: nothing.
    """
    slot_R = slots_HR[collectives.process_index()]
    prompt_R = np.append(prompt_P, FREE)[slot_R]  # the index of padding, P, takes the FREE that is appended
    R, first = len(slot_R), collectives.process_index() * len(request.prompts)
    tokens_RS, limit_RG = np.zeros((R, padded_length), np.int32), np.zeros((R, request.samples), np.int32)
    length_R, last_token_R, prompt_index_R = (np.zeros(R, np.int32) for _ in range(3))
    token_limit_PG, index_P = request.token_limit_PG, request.indices
    for r in np.flatnonzero(prompt_R != FREE):
        prompt = int(prompt_R[r]) - first
        own = request.prompts[prompt][prefixes.length_N[prompt_R[r]] if prefixes else 0 :]
        length_R[r], last_token_R[r], prompt_index_R[r] = len(own) - 1, own[-1], index_P[prompt]
        tokens_RS[r, : len(own) - 1], limit_RG[r] = own[:-1], token_limit_PG[prompt]
    return PrefillBatch(tokens_RS, length_R, last_token_R, slot_R.astype(np.int32), prompt_index_R, limit_RG)


@functools.partial(jax.jit, static_argnames=("model_config", "mesh", "dtype", "unstack_layers"))
def _prepare_weights(params: Any, model_config: qwen2.Qwen2Config, mesh: Mesh, dtype: str, unstack_layers: bool) -> Any:
    """See Engine.prepare_weights. `dtype` is RolloutConfig.weights: int8, or empty for the model's."""
    params, model_config = lora.merge(params, model_config), qwen2.without_adapters(model_config)
    specs = qwen2.abstract_params(model_config)
    logical_axes = jax.tree.map(lambda spec: spec.logical_axes, specs, is_leaf=qwen2.is_spec)

    def constrain(leaf: jax.Array, axes: sharding.LogicalAxes) -> jax.Array:
        layout = sharding.named_sharding(mesh, axes, sharding.SAMPLE_RULES, leaf.shape)
        return jax.lax.with_sharding_constraint(leaf, layout)

    def cast_and_constrain(path: Any, param: Any, axes: sharding.LogicalAxes) -> Any:
        # Norms and biases keep the trainer's dtype: trainer and sampler add and multiply them in float32.
        cast = isinstance(param, jax.Array) and path[-1].key in qwen2.MATMUL_PARAMS
        param = param.astype(model_config.dtype) if cast else param
        return jax.tree.map(lambda leaf: constrain(leaf, axes), param)

    weights = quantize.quantize_layers(params) if dtype == "int8" else params
    weights = jax.tree.map_with_path(
        cast_and_constrain, weights, logical_axes, is_leaf=lambda leaf: isinstance(leaf, quantize.QuantizedArray)
    )
    return qwen2.unstack_layers(weights, model_config) if unstack_layers else weights
