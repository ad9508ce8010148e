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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from sqlr1_jax.config import RolloutConfig, SamplingConfig
from sqlr1_jax.data.packing import padded_lengths
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.model import quantize, qwen2
from sqlr1_jax.rollout import programs
from sqlr1_jax.rollout.programs import DecodedTokens, PrefillBatch, Slots
from sqlr1_jax.rollout.scheduler import FREE, SlotScheduler

Ids = npt.NDArray[np.int32]


class FinishedSample(NamedTuple):
    """A sample that has ended."""

    prompt: int  # index in the request's prompts
    sample: int
    ids: Ids


class Completions(NamedTuple):
    """Sampled tokens of a request, on the host; entries past a sample's length are zero."""

    tokens_PGT: npt.NDArray[np.int32]
    logprobs_PGT: npt.NDArray[np.float32]  # under softmax(logits / temperature) before truncation
    length_PG: npt.NDArray[np.int32]  # tokens, including the stop token
    stopped_PG: npt.NDArray[np.bool_]  # False: truncated at the token limit

    def ids(self, prompt: int, sample: int) -> Ids:
        """A sample's tokens, including its stop token if it has one."""
        return self.tokens_PGT[prompt, sample, : self.length_PG[prompt, sample]]

    @classmethod
    def empty(cls, P: int, G: int, T: int) -> Completions:
        """Completions of length 0, with room for T tokens each."""
        tokens_PGT, length_PG = np.zeros((P, G, T), np.int32), np.zeros((P, G), np.int32)
        return cls(tokens_PGT, np.zeros((P, G, T), np.float32), length_PG, np.zeros((P, G), bool))


@dataclasses.dataclass(frozen=True)
class Request:
    """Prompts of this process to sample from, and how. All processes pass equally many prompts."""

    prompts: Sequence[Ids]
    samples: int  # G, per prompt
    sampling: SamplingConfig
    seed: int  # random numbers are a function of seed, step, prompt index, sample index and token index
    step: int  # training step; evaluation uses a reserved number
    # Position of this request's first prompt among the step's prompts; a step may take several requests.
    prompt_offset: int = 0
    # Slots over all processes; 0: rollout.max_concurrent_prompts, or if that is 0 too, one slot per prompt.
    max_concurrent_prompts: int = 0
    limit_PG: npt.NDArray[np.int32] | None = None  # token limit of each sample; None: sampling.max_tokens
    # Maps the tokens so far to the length at which the completion ends, or to None if it goes on. It detects ends
    # that the device cannot, such as the end of a text that spans several tokens.
    stop_fn: Callable[[Ids], int | None] | None = None
    # Called with the samples that have ended, once per read of the device's output. It must not raise if there are
    # several processes.
    on_finished: Callable[[Sequence[FinishedSample]], None] | None = None

    @property
    def token_limit_PG(self) -> npt.NDArray[np.int32]:
        """Token limit of each sample: `limit_PG`, capped at `sampling.max_tokens`."""
        if self.limit_PG is None:
            return np.full((len(self.prompts), self.samples), self.sampling.max_tokens, np.int32)
        return np.minimum(self.limit_PG, self.sampling.max_tokens).astype(np.int32)


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
        if self.unstack_layers:
            unrolled = dataclasses.replace(self.model_config, unroll=self.model_config.num_layers)
            object.__setattr__(self, "model_config", unrolled)

    def prepare_weights(self, params: Any) -> Any:
        """The sampler's copy of the training weights: cast or quantized, and sharded by SAMPLE_RULES."""
        return _prepare_weights(params, self.model_config, self.mesh, self.config.weights, bool(self.unstack_layers))

    def rollout(self, weights: Any, request: Request) -> Completions:
        """Samples all completions of a request. All processes must call it, with equally many prompts.

        Args:
          weights: from `prepare_weights`.
          request: this process's prompts.

        Raises:
          ValueError: the prompts or the slots do not divide evenly among the processes.
        """
        processes = collectives.process_count()
        scheduler = SlotScheduler(self._num_slots(request), len(request.prompts) * processes, processes)
        recorder = SampleRecorder(request, self.stop_ids)
        # Lengths of all processes' prompts, since every process must choose the same padded length for a prefill.
        length_N = collectives.allgather_arrays(np.asarray([len(prompt) - 1 for prompt in request.prompts], np.int32))
        in_flight: deque[tuple[npt.NDArray[np.int64], DecodedTokens]] = deque()
        with jax.set_mesh(self.mesh):
            slots = self._prefill_free_slots(weights, self._init_slots(request), scheduler, request, length_N)
            while not scheduler.done:
                force_done_PG = recorder.force_done_PG(scheduler.prompt_P)
                slots, decoded = self._decode(weights, slots, force_done_PG, request)
                in_flight.append((scheduler.prompt_P.copy(), decoded))
                if len(in_flight) == 1:
                    continue  # dispatch the next call before reading this one
                assigned_P, decoded = in_flight.popleft()
                recorder.record(assigned_P, decoded)  # waits for that call; the next one is already queued
                scheduler.release(sharding.to_local_array(decoded.busy_P), assigned_P)
                slots = self._prefill_free_slots(weights, slots, scheduler, request, length_N)
        return recorder.completions

    def compile(self, weights: Any, request: Request) -> None:
        """Compiles every program that a rollout of such a request can need, by running them on free slots."""
        num_slots, processes = self._num_slots(request), collectives.process_count()
        with jax.set_mesh(self.mesh):
            slots = self._init_slots(request)
            no_slots_HR = np.full((processes, self._prefill_width(request)), num_slots)
            for padded_length in padded_lengths(self.prompt_tokens, self.config.prompt_buckets):
                slots = self._prefill(weights, slots, no_slots_HR, np.full(num_slots, FREE), request, padded_length)
            self._decode(weights, slots, np.zeros((num_slots // processes, request.samples), bool), request)

    def steps_per_sync(self, sampling: SamplingConfig) -> int:
        """C: decode steps of one program call."""
        return min(self.config.decode_steps_per_sync, sampling.max_tokens)

    def prefill_batch_size(self, slots: int, processes: int) -> int:
        """Prompts in one prefill of all processes: config.prefill_batch × processes, rounded up; at most `slots`.

        Rounded up to a multiple of the data-parallel size (replica × fsdp), since with fewer prompts several devices
        would compute the same one, and the batch might not divide among the processes.
        """
        data_parallel_size = self.mesh.shape["replica"] * self.mesh.shape["fsdp"]
        wanted = self.config.prefill_batch * processes or slots
        return min(-(-wanted // data_parallel_size) * data_parallel_size, slots)

    def _num_slots(self, request: Request) -> int:
        """P, over all processes."""
        return (
            request.max_concurrent_prompts
            or self.config.max_concurrent_prompts
            or len(request.prompts) * collectives.process_count()
        )

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
            self.model_config,
            self.config.cache,
        )

    def _prefill_free_slots(
        self,
        weights: Any,
        slots: Slots,
        scheduler: SlotScheduler,
        request: Request,
        length_N: npt.NDArray[np.int32],
    ) -> Slots:
        """Prefills waiting prompts into free slots, each batch padded to the shortest length that fits its prompts."""
        for slots_HR in scheduler.admit(self._prefill_width(request)):
            used = slots_HR[slots_HR < len(scheduler.prompt_P)]
            longest = int(length_N[scheduler.prompt_P[used]].max())
            lengths = padded_lengths(self.prompt_tokens, self.config.prompt_buckets)
            padded_length = next(length for length in lengths if length >= longest)
            slots = self._prefill(weights, slots, slots_HR, scheduler.prompt_P, request, padded_length)
        return slots

    def _prefill(
        self,
        weights: Any,
        slots: Slots,
        slots_HR: npt.NDArray[np.int64],
        prompt_P: npt.NDArray[np.int64],
        request: Request,
        padded_length: int,
    ) -> Slots:
        slot_R = slots_HR[collectives.process_index()]
        # Unused entries of slot_R are P, the index of the appended FREE.
        prompt_R = np.append(prompt_P, FREE)[slot_R]
        batch = _make_prefill_batch(request, slot_R, prompt_R, padded_length)
        batch = sharding.to_global_arrays(batch, mesh=self.mesh, rules=sharding.SAMPLE_RULES)
        return programs.prefill(weights, slots, batch, np.int32(request.step), request.seed, self.model_config)

    def _decode(
        self, weights: Any, slots: Slots, force_done_PG: npt.NDArray[np.bool_], request: Request
    ) -> tuple[Slots, DecodedTokens]:
        """Dispatches C decode steps and returns at once; `force_done_PG` covers this process's slots."""
        force_done_PG = sharding.to_global_arrays(force_done_PG, self.mesh, rules=sharding.SAMPLE_RULES)
        steps = self.steps_per_sync(request.sampling)
        return programs.decode_steps(
            weights, slots, force_done_PG, steps, self.stop_ids, self.model_config, request.sampling
        )


def _make_prefill_batch(
    request: Request, slot_R: npt.NDArray[np.int64], prompt_R: npt.NDArray[np.int64], padded_length: int
) -> PrefillBatch:
    """This process's part of a prefill batch.

    Args:
      request: this process's prompts.
      slot_R: the slot of each entry.
      prompt_R: the prompt of each entry, by its index over all processes; FREE for padding.
      padded_length: S.
    """
    R, first = len(slot_R), collectives.process_index() * len(request.prompts)
    tokens_RS, limit_RG = np.zeros((R, padded_length), np.int32), np.zeros((R, request.samples), np.int32)
    length_R, last_token_R, prompt_index_R = (np.zeros(R, np.int32) for _ in range(3))
    token_limit_PG = request.token_limit_PG
    for r in np.flatnonzero(prompt_R != FREE):
        prompt = int(prompt_R[r]) - first
        ids = request.prompts[prompt]
        length_R[r], last_token_R[r], prompt_index_R[r] = len(ids) - 1, ids[-1], request.prompt_offset + prompt
        tokens_RS[r, : len(ids) - 1], limit_RG[r] = ids[:-1], token_limit_PG[prompt]
    return PrefillBatch(tokens_RS, length_R, last_token_R, slot_R.astype(np.int32), prompt_index_R, limit_RG)


class SampleRecorder:
    """Copies this process's samples from the device's output into `completions`, and finds where they end.

    Attributes:
      completions: the tokens of the request's prompts that have been read so far.
    """

    def __init__(self, request: Request, stop_ids: tuple[int, ...]):
        prompts, G, T = len(request.prompts), request.samples, request.sampling.max_tokens
        self._request, self._stop_ids = request, stop_ids
        self.completions = Completions.empty(prompts, G, T)
        self._done_PG = np.zeros((prompts, G), bool)

    def force_done_PG(self, prompt_P: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which samples in this process's slots have ended, on the device or, unknown to it, by `stop_fn`.

        Args:
          prompt_P: the scheduler's.
        """
        local_P = self._local_prompts(prompt_P)
        return np.where((local_P != FREE)[:, None], self._done_PG[local_P], False)

    def record(self, assigned_P: npt.NDArray[np.int64], decoded: DecodedTokens) -> None:
        """Copies the output of one call of `decode_steps`, and reports the samples that ended in it.

        Args:
          assigned_P: the scheduler's prompt_P at the time of the call.
          decoded: the call's output, on the device.
        """
        local = DecodedTokens(*(sharding.to_local_array(x) for x in decoded))
        local_P = self._local_prompts(assigned_P)
        finished = []
        for slot in np.flatnonzero(local_P != FREE):
            prompt = int(local_P[slot])
            for g in map(int, np.flatnonzero(~self._done_PG[prompt])):
                if self._append_tokens(prompt, g, int(slot), local):
                    finished.append(FinishedSample(prompt, g, self.completions.ids(prompt, g)))
        if finished and self._request.on_finished:
            self._request.on_finished(finished)

    def _local_prompts(self, prompt_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The prompts in this process's slots, as indices into the request; FREE entries stay FREE."""
        local_P = prompt_P[collectives.local_slice(len(prompt_P))]
        return np.where(local_P == FREE, FREE, local_P - collectives.process_index() * len(self._done_PG))

    def _append_tokens(self, prompt: int, g: int, slot: int, decoded: DecodedTokens) -> bool:
        """Appends a sample's new tokens; returns whether it has ended."""
        completions, stop_fn = self.completions, self._request.stop_fn
        old_length, length = completions.length_PG[prompt, g], decoded.length_PG[slot, g]
        completions.tokens_PGT[prompt, g, old_length:length] = decoded.tokens_PGC[slot, g, : length - old_length]
        completions.logprobs_PGT[prompt, g, old_length:length] = decoded.logprobs_PGC[slot, g, : length - old_length]
        completions.length_PG[prompt, g] = length
        end = stop_fn(completions.ids(prompt, g)) if stop_fn else None
        if end is not None:  # the device has sampled past the end, which only the host sees
            completions.tokens_PGT[prompt, g, end:] = 0
            completions.logprobs_PGT[prompt, g, end:] = 0
            completions.length_PG[prompt, g] = end
        done = end is not None or bool(decoded.done_PG[slot, g])
        if done:
            self._done_PG[prompt, g] = True
            ids = completions.ids(prompt, g)
            completions.stopped_PG[prompt, g] = end is not None or (len(ids) > 0 and ids[-1] in self._stop_ids)
        return done


@functools.partial(jax.jit, static_argnames=("model_config", "mesh", "dtype", "unstack_layers"))
def _prepare_weights(params: Any, model_config: qwen2.Qwen2Config, mesh: Mesh, dtype: str, unstack_layers: bool) -> Any:
    """See Engine.prepare_weights. `dtype` is RolloutConfig.weights: int8, or empty for the model's."""
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
