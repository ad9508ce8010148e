"""The sampler's programs: fill slots with prompts, and decode all their samples for a chunk of steps on the device."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from sqlr1_jax import config
from sqlr1_jax.distributed.sharding import SAMPLE_RULES, constrain
from sqlr1_jax.model import attention, qwen2
from sqlr1_jax.model.kv_cache import KVCache
from sqlr1_jax.rollout import sampling


@struct.dataclass
class Slots:
    """P prompts at work, each with its G samples; T is the most tokens that a sample may have."""

    cache: KVCache
    token_PG: jax.Array  # each sample's newest token
    length_PG: jax.Array  # tokens that it has
    done_PG: jax.Array  # it is at its end; so is all of an empty slot
    limit_PG: jax.Array  # tokens after which it is cut off
    uniform_PGT: jax.Array  # the random number of each of its tokens


Array = Any  # numpy where it is made or read, JAX's on the device


class PrefillBatch(NamedTuple):
    """R prompts for the slots."""

    tokens_RS: Array  # without their last tokens, padded behind
    length_R: Array  # tokens of those
    last_R: Array  # the last tokens
    slot_R: Array  # where each goes; past all slots: nowhere
    index_R: Array  # its number within the step, for its random numbers
    limit_RG: Array  # most tokens of each sample


class DecodedTokens(NamedTuple):
    """What a chunk of C steps gave; a sample's new tokens stand in front."""

    tokens_PGC: Array
    logprobs_PGC: Array
    length_PG: Array  # tokens of the sample so far, the stop token counted
    done_PG: Array
    busy_P: Array  # a sample of the slot goes on; every host has all of it


@functools.partial(jax.jit, static_argnames=("prompts", "samples", "prefix", "max_tokens", "cfg", "cache_dtype"))
def init_slots(
    prompts: int, samples: int, prefix: int, max_tokens: int, cfg: qwen2.Qwen2Config, cache_dtype: str = ""
) -> Slots:
    """Slots that hold nothing, for prompts of up to `prefix` + 1 tokens."""
    cache = qwen2.init_cache(cfg, prompts, samples, prefix, max_tokens, cache_dtype)
    zeros_PG = jnp.zeros((prompts, samples), jnp.int32)
    uniform_PGT = jnp.zeros((prompts, samples, max_tokens), jnp.float32)
    return _laid_out(Slots(cache, zeros_PG, zeros_PG, zeros_PG == 0, zeros_PG, uniform_PGT))


@functools.partial(jax.jit, static_argnames=("seed", "cfg"), donate_argnames=("slots",))
def prefill(
    params: Any, slots: Slots, arrivals: PrefillBatch, step: jax.Array, seed: int, cfg: qwen2.Qwen2Config
) -> Slots:
    """The slots with those prompts in them, computed without their last tokens.

    A prompt's last token is left for its first decode step: that step samples, and prefill needs no logits.
    """
    tokens_RS, length_R, last_R, slot_R, index_R, limit_RG = arrivals
    (R, S), (_, G, T) = tokens_RS.shape, slots.uniform_PGT.shape
    positions_RS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), tokens_RS.shape)
    mask = attention.causal_mask(tokens_RS, length_R)
    _, cache = qwen2.forward(params, tokens_RS, positions_RS, mask, cfg, slots.cache, slot_R)
    assert cache is not None

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[slot_R].set(new, mode="drop")

    zeros_RG = jnp.zeros((R, G), jnp.int32)
    uniform_RGT = sampling.uniforms(seed, step, index_R, G, T)
    return _laid_out(
        Slots(
            cache=cache,
            token_PG=put(slots.token_PG, jnp.broadcast_to(last_R[:, None], (R, G))),
            length_PG=put(slots.length_PG, zeros_RG),
            done_PG=put(slots.done_PG, limit_RG <= 0),
            limit_PG=put(slots.limit_PG, limit_RG),
            uniform_PGT=put(slots.uniform_PGT, uniform_RGT),
        )
    )


@functools.partial(jax.jit, static_argnames=("steps", "stop", "cfg", "settings"), donate_argnames=("slots",))
def decode_steps(
    params: Any,
    slots: Slots,
    halt_PG: jax.Array,
    steps: int,
    stop: tuple[int, ...],
    cfg: qwen2.Qwen2Config,
    settings: config.SamplingConfig,
) -> tuple[Slots, DecodedTokens]:
    """Samples until every sample is at its end, `steps` times at most.

    Args:
      params: the sampler's weights.
      slots: of `empty` and `fill`, spent here.
      halt_PG: samples that the host has found to be at their end.
      steps: C.
      stop: token ids that end a sample.
      cfg: the model's shape.
      settings: temperature and truncation.
    """
    P, G = slots.token_PG.shape
    stop_N = jnp.asarray(stop, jnp.int32)

    def going(carry: tuple) -> jax.Array:
        i, slots, _, _ = carry
        return (i < steps) & ~slots.done_PG.all()

    def step(carry: tuple) -> tuple:
        i, slots, tokens_PGC, logprobs_PGC = carry
        token_PG, logprob_PG, cache = _next(params, slots, cfg, settings)
        token_PG = jnp.where(slots.done_PG, 0, token_PG)
        logprob_PG = jnp.where(slots.done_PG, 0.0, logprob_PG)
        length_PG = slots.length_PG + ~slots.done_PG
        ended_PG = jnp.isin(token_PG, stop_N) | (length_PG >= slots.limit_PG)
        slots = slots.replace(cache=cache, token_PG=token_PG, length_PG=length_PG, done_PG=slots.done_PG | ended_PG)
        tokens_PGC = jax.lax.dynamic_update_index_in_dim(tokens_PGC, token_PG, i, 2)
        return i + 1, slots, tokens_PGC, jax.lax.dynamic_update_index_in_dim(logprobs_PGC, logprob_PG, i, 2)

    slots = slots.replace(done_PG=slots.done_PG | halt_PG)  # type: ignore[attr-defined]
    none = jnp.zeros((P, G, steps), jnp.int32), jnp.zeros((P, G, steps), jnp.float32)
    _, slots, tokens_PGC, logprobs_PGC = jax.lax.while_loop(going, step, (jnp.int32(0), slots, *none))
    slots = _laid_out(slots)
    busy_P = constrain((~slots.done_PG).any(1), (None,), SAMPLE_RULES)
    return slots, DecodedTokens(tokens_PGC, logprobs_PGC, slots.length_PG, slots.done_PG, busy_P)


def _next(
    params: Any, slots: Slots, cfg: qwen2.Qwen2Config, settings: config.SamplingConfig
) -> tuple[jax.Array, jax.Array, KVCache]:
    """Each sample's next token, its log-probability, and the cache that holds the token before it."""
    cache = slots.cache
    age_P = cache.step - cache.start_P
    positions_PG = jnp.broadcast_to((cache.prefix_length_P + age_P)[:, None], slots.token_PG.shape)
    hidden_PGD, after = qwen2.forward(params, slots.token_PG, positions_PG, None, cfg, cache)
    assert after is not None
    logits_PGV = qwen2.unembed(params, hidden_PGD, cfg)
    place_P = jnp.minimum(age_P, slots.uniform_PGT.shape[2] - 1)  # an idle slot grows older than any sample
    uniform_PG = jnp.take_along_axis(slots.uniform_PGT, place_P[:, None, None], axis=2)[..., 0]
    return *sampling.next_token(logits_PGV, uniform_PG, settings), after


def _laid_out(slots: Slots) -> Slots:
    """Split over prompts, where there is a mesh; the cache is already."""
    cache, *arrays = (getattr(slots, name) for name in Slots.__dataclass_fields__)
    return Slots(cache, *(constrain(x, ("rows", None, None)[: x.ndim], SAMPLE_RULES) for x in arrays))
