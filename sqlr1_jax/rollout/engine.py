"""Prompts in, completions out: slots that are filled, decoded for a chunk of steps, read and filled again."""

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
    """A sample at its end."""

    prompt: int
    sample: int
    ids: Ids


class Completions(NamedTuple):
    """What was sampled, on the host; places past a sample's length hold zeros."""

    tokens_PGT: npt.NDArray[np.int32]
    logprobs_PGT: npt.NDArray[np.float32]  # under logits / temperature, as sampled
    length_PG: npt.NDArray[np.int32]  # the stop token counted
    stopped_PG: npt.NDArray[np.bool_]  # False: cut off

    def ids(self, prompt: int, sample: int) -> Ids:
        """A sample's tokens, its stop token (where it has one) included."""
        return self.tokens_PGT[prompt, sample, : self.length_PG[prompt, sample]]

    @classmethod
    def empty(cls, P: int, G: int, T: int) -> Completions:
        """Completions without tokens, for the sampler to fill."""
        tokens_PGT, length_PG = np.zeros((P, G, T), np.int32), np.zeros((P, G), np.int32)
        return cls(tokens_PGT, np.zeros((P, G, T), np.float32), length_PG, np.zeros((P, G), bool))


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of each of a rollout's prompts, those of this host."""

    prompts: Sequence[Ids]
    samples: int  # G
    sampling: SamplingConfig
    seed: int  # with step, prompt and sample index the whole source of chance
    step: int  # of training; evaluations take one of their own
    prompt_offset: int = 0  # index of the first prompt within the step (or set), so that a batch's cut changes nothing
    max_concurrent_prompts: int = 0  # prompts at work at a time, on all hosts; 0: cfg.slots, or all
    limit_PG: npt.NDArray[np.int32] | None = None  # most tokens of each sample; None: settings.max_tokens
    stop_fn: Callable[[Ids], int | None] | None = None  # how many of the tokens make a whole answer; None: not yet
    on_finished: Callable[[Sequence[FinishedSample]], None] | None = (
        None  # told the samples that end, those of a chunk together
    )

    @property
    def limits_PG(self) -> npt.NDArray[np.int32]:
        """`limit_PG`, or its default."""
        if self.limit_PG is None:
            return np.full((len(self.prompts), self.samples), self.sampling.max_tokens, np.int32)
        return np.minimum(self.limit_PG, self.sampling.max_tokens).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Engine:
    """What stays the same from rollout to rollout; prompts take at most `prompt_tokens`.

    With `unstack_layers` each layer has arrays of its own (qwen2.apart) and the layers are unrolled, whatever
    `model.unroll` says of training. By default that is so on CPU, where XLA copies what a turn of a loop takes out of
    the stack of layers, half of a decode step's time.
    """

    model: qwen2.Qwen2Config  # in the sampler's dtype
    mesh: Mesh
    stop: tuple[int, ...]
    prompt_tokens: int
    config: RolloutConfig
    unstack_layers: bool | None = None  # None: where the mesh is of CPUs

    def __post_init__(self) -> None:
        if self.unstack_layers is None:
            object.__setattr__(self, "unstack_layers", self.mesh.devices.flat[0].platform == "cpu")
        if self.unstack_layers:
            object.__setattr__(self, "model", dataclasses.replace(self.model, unroll=self.model.num_layers))

    def prepare_weights(self, params: Any) -> Any:
        """The sampler's copy of the training weights: cast or quantized, and laid out by SAMPLE_RULES."""
        return _sampling_weights(params, self.model, self.mesh, self.config.weights, bool(self.unstack_layers))

    def rollout(self, weights: Any, asked: Request) -> Completions:
        """Samples every prompt; each host passes its own, as many as the others.

        While a chunk of steps is on the device the one before it is read, so a slot is filled again one chunk after
        its last sample ended. On several hosts `asked.on_finished` must not raise, or the others wait for ever.
        """
        seats = SlotScheduler(
            self._slots(asked), len(asked.prompts) * collectives.process_count(), collectives.process_count()
        )
        record = _Record(asked, self.stop)
        length_N = collectives.allgather_arrays(np.asarray([len(prompt) - 1 for prompt in asked.prompts], np.int32))
        unread: deque[tuple[npt.NDArray[np.int64], DecodedTokens]] = deque()
        with jax.set_mesh(self.mesh):
            slots = self._seat(weights, self._empty(asked), seats, asked, length_N)
            while not seats.done:
                slots, chunk = self._chunk(weights, slots, record.halt(seats), asked)
                unread.append((seats.prompt_P.copy(), chunk))
                if len(unread) > 1:
                    seated_P, chunk = unread.popleft()
                    record.read(seated_P, chunk)
                    seats.release(sharding.to_local_array(chunk.busy_P), seated_P)
                    slots = self._seat(weights, slots, seats, asked, length_N)
        return record.made

    def compile(self, weights: Any, asked: Request) -> None:
        """Compiles what a rollout like `asked` can need: its programs, run on slots that stay empty."""
        with jax.set_mesh(self.mesh):
            slots = self._empty(asked)
            nobody = np.full((collectives.process_count(), self._width(asked)), self._slots(asked))
            for size in padded_lengths(self.prompt_tokens, self.config.prompt_buckets):
                slots = self._fill(weights, slots, nobody, np.full(self._slots(asked), FREE), asked, size)
            self._chunk(weights, slots, np.zeros((self._here(asked), asked.samples), bool), asked)

    def steps(self, settings: SamplingConfig) -> int:
        """C, of a chunk."""
        return min(self.config.decode_steps_per_sync, settings.max_tokens)

    def _slots(self, asked: Request) -> int:
        """P, on all hosts."""
        return (
            asked.max_concurrent_prompts
            or self.config.max_concurrent_prompts
            or len(asked.prompts) * collectives.process_count()
        )

    def _here(self, asked: Request) -> int:
        """Slots of this host."""
        return self._slots(asked) // collectives.process_count()

    def _width(self, asked: Request) -> int:
        """Prompts of one host that one prefill takes."""
        return self.refill(self._slots(asked), collectives.process_count()) // collectives.process_count()

    def refill(self, slots: int, on: int) -> int:
        """Prompts that one prefill of `on` hosts takes: as cfg.refill says, in whole turns of the mesh's rows.

        Fewer would be computed by several chips at once, or not part over the hosts at all.
        """
        rows = self.mesh.shape["replica"] * self.mesh.shape["fsdp"]
        asked = self.config.prefill_batch * on or slots
        return min(-(-asked // rows) * rows, slots)

    def _empty(self, asked: Request) -> Slots:
        return programs.init_slots(
            self._slots(asked),
            asked.samples,
            self.prompt_tokens,
            asked.sampling.max_tokens,
            self.model,
            self.config.cache,
        )

    def _seat(self, weights: Any, slots: Slots, seats: SlotScheduler, asked: Request, length_N: Any) -> Slots:
        """Fills free slots with prompts that wait, each round in the shortest shape that takes its prompts."""
        for slots_HR in seats.admit(self._width(asked)):
            taken = slots_HR[slots_HR < len(seats.prompt_P)]
            longest = int(length_N[seats.prompt_P[taken]].max())
            size = next(
                size for size in padded_lengths(self.prompt_tokens, self.config.prompt_buckets) if size >= longest
            )
            slots = self._fill(weights, slots, slots_HR, seats.prompt_P, asked, size)
        return slots

    def _fill(
        self, weights: Any, slots: Slots, slots_HR: npt.NDArray, prompt_P: npt.NDArray, asked: Request, size: int
    ) -> Slots:
        slot_R = slots_HR[collectives.process_index()]
        arrivals = _arrivals(asked, slot_R, np.append(prompt_P, FREE)[slot_R], size)
        put = functools.partial(sharding.to_global_arrays, mesh=self.mesh, rules=sharding.SAMPLE_RULES)
        return programs.prefill(weights, slots, put(arrivals), np.int32(asked.step), asked.seed, self.model)

    def _chunk(self, weights: Any, slots: Slots, halt_PG: npt.NDArray, asked: Request) -> tuple[Slots, DecodedTokens]:
        halt_PG = sharding.to_global_arrays(halt_PG, self.mesh, rules=sharding.SAMPLE_RULES)
        steps = self.steps(asked.sampling)
        return programs.decode_steps(weights, slots, halt_PG, steps, self.stop, self.model, asked.sampling)


def _arrivals(asked: Request, slot_R: npt.NDArray, prompt_R: npt.NDArray, size: int) -> PrefillBatch:
    """Prompts by their numbers over all hosts, padded to `size` tokens; EMPTY stands for none."""
    offset = collectives.process_index() * len(asked.prompts)
    tokens_RS, limit_RG = np.zeros((len(slot_R), size), np.int32), np.zeros((len(slot_R), asked.samples), np.int32)
    length_R, last_R, index_R = (np.zeros(len(slot_R), np.int32) for _ in range(3))
    limits_PG = asked.limits_PG
    for r, place in enumerate(prompt_R - offset):
        if prompt_R[r] == FREE:
            continue
        ids = asked.prompts[place]
        length_R[r], last_R[r], index_R[r] = len(ids) - 1, ids[-1], asked.prompt_offset + place
        tokens_RS[r, : len(ids) - 1], limit_RG[r] = ids[:-1], limits_PG[place]
    return PrefillBatch(tokens_RS, length_R, last_R, slot_R.astype(np.int32), index_R, limit_RG)


class _Record:
    """What this host has read of its prompts' samples."""

    def __init__(self, asked: Request, stop: tuple[int, ...]):
        N, G, T = len(asked.prompts), asked.samples, asked.sampling.max_tokens
        self._asked, self._stop = asked, stop
        self.made = Completions.empty(N, G, T)
        self._over_NG = np.zeros((N, G), bool)

    def halt(self, seats: SlotScheduler) -> npt.NDArray[np.bool_]:
        """Samples in this host's slots that are at their end, whether or not the device knows."""
        here = self._here(seats.prompt_P)
        return np.where((here != FREE)[:, None], self._over_NG[here], False)

    def _here(self, seated_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Who sits in this host's slots, by their places among its own prompts."""
        seated = seated_P[collectives.local_slice(len(seated_P))]
        return np.where(seated == FREE, FREE, seated - collectives.process_index() * len(self._over_NG))

    def read(self, seated_P: npt.NDArray[np.int64], chunk: DecodedTokens) -> None:
        """Takes a chunk's tokens, for which the prompts sat as in `seated_P`."""
        local = DecodedTokens(*(sharding.to_local_array(x) for x in chunk))
        here = self._here(seated_P)
        ended = []
        for slot in np.flatnonzero(here != FREE):
            n = int(here[slot])
            for g in map(int, np.flatnonzero(~self._over_NG[n])):
                if self._take(n, g, int(slot), local):
                    ended.append(FinishedSample(n, g, self.made.ids(n, g)))
        if ended and self._asked.on_finished:
            self._asked.on_finished(ended)

    def _take(self, n: int, g: int, slot: int, chunk: DecodedTokens) -> bool:
        """One sample's new tokens; whether it is at its end."""
        had, has = self.made.length_PG[n, g], chunk.length_PG[slot, g]
        self.made.tokens_PGT[n, g, had:has] = chunk.tokens_PGC[slot, g, : has - had]
        self.made.logprobs_PGT[n, g, had:has] = chunk.logprobs_PGC[slot, g, : has - had]
        self.made.length_PG[n, g] = has
        end = self._asked.stop_fn(self.made.ids(n, g)) if self._asked.stop_fn else None
        if end is not None:
            for field in (self.made.tokens_PGT, self.made.logprobs_PGT):
                field[n, g, end:] = 0
            self.made.length_PG[n, g] = end
        over = end is not None or bool(chunk.done_PG[slot, g])
        if over:
            self._over_NG[n, g] = True
            ids = self.made.ids(n, g)
            self.made.stopped_PG[n, g] = end is not None or (len(ids) > 0 and ids[-1] in self._stop)
        return over


@functools.partial(jax.jit, static_argnames=("cfg", "mesh", "kind", "unstack_layers"))
def _sampling_weights(params: Any, cfg: qwen2.Qwen2Config, mesh: Mesh, kind: str, unstack_layers: bool) -> Any:
    axes = jax.tree.map(lambda spec: spec.logical_axes, qwen2.abstract_params(cfg), is_leaf=qwen2.is_spec)

    def lay_out(leaf: jax.Array, axes: sharding.LogicalAxes) -> jax.Array:
        layout = sharding.named_sharding(mesh, axes, sharding.SAMPLE_RULES, leaf.shape)
        return jax.lax.with_sharding_constraint(leaf, layout)

    def one(path: Any, param: Any, axes: sharding.LogicalAxes) -> Any:
        # Norms and biases stay as the trainer takes them: they are added and multiplied in float32.
        cast = isinstance(param, jax.Array) and path[-1].key in qwen2.MATMUL_PARAMS
        return jax.tree.map(lambda leaf: lay_out(leaf, axes), param.astype(cfg.dtype) if cast else param)

    made = quantize.quantize_layers(params) if kind == "int8" else params
    made = jax.tree.map_with_path(one, made, axes, is_leaf=lambda leaf: isinstance(leaf, quantize.QuantizedArray))
    return qwen2.unstack_layers(made, cfg) if unstack_layers else made
