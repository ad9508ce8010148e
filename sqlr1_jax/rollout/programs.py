"""The sampler's jitted programs: create the slots, prefill prompts into them, and decode several steps at once.

A slot is room for one prompt and its G samples. Prefill and decoding split a prompt t(0) … t(n-1) at its last token:

    prefill         input t(0) … t(n-2)                         → keys and values, without logits
    decode step 0   input t(n-1), the same for all G samples    → token 0 of each sample
    decode step i   input token i-1 of each sample              → token i of each sample

So every logit comes from a decode step, and prefill computes none. Training rows split prompts in the same way.

Prompts on one database begin with the same tokens, its schema. `prefill_prefix` computes their keys and values once,
and `prefill` then only those of each prompt's own tokens:

    prefill_prefix  input t(0) … t(m-1)      → SharedPrefix
    prefill         input t(m) … t(n-2)      → the prefix's keys and values, then the prompt's own, in its slot

`decode_steps` is one program, a while loop over decode steps without host synchronization:

    ┌─► forward(token_PG)                              writes one column of the KV cache → logits_PGV
    │   next_token(logits_PGV, uniform_PGT[:, :, t])   → token_PG, logprob_PG; 0 if the sample was already done
    │   length_PG += 1 unless done
    │   done_PG |= the token is a stop token, or the sample has reached its limit
    │   tokens_PGC[:, :, i], logprobs_PGC[:, :, i] = token_PG, logprob_PG
    └── while i < C and not all done

Shapes: P slots, G samples per prompt, R prompts of one prefill, S prompt tokens, T tokens at most per sample, C decode
steps of one call, V vocabulary, D model.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from sqlr1_jax.config import SamplingConfig
from sqlr1_jax.distributed.sharding import SAMPLE_RULES, constrain
from sqlr1_jax.model import attention, qwen2
from sqlr1_jax.model.kv_cache import KVCache, SharedPrefix
from sqlr1_jax.rollout import sampling

Array = Any  # numpy on the host, jax.Array on the device


@struct.dataclass
class Slots:
    """The state of P slots on the device; arrays are split over slots."""

    cache: KVCache
    token_PG: jax.Array  # int32: each sample's newest token, the input of its next decode step
    length_PG: jax.Array  # int32: tokens sampled so far
    done_PG: jax.Array  # bool: the sample has ended; True for every sample of a free slot
    limit_PG: jax.Array  # int32: token limit of each sample
    uniform_PGT: jax.Array  # float32 in [0, 1): the random number that each token is drawn with


class PrefillBatch(NamedTuple):
    """R prompts to prefill, each with the slot that it goes to. All fields are int32."""

    tokens_RS: Array  # the prompts without their last tokens and without a shared prefix, padded at the end
    length_R: Array  # tokens of each in `tokens_RS`
    last_token_R: Array  # the last tokens
    slot_R: Array  # each prompt's slot; P marks a padding entry, which goes to no slot
    prompt_index_R: Array  # each prompt's index within the training step, for its random numbers
    limit_RG: Array  # token limit of each sample


class DecodedTokens(NamedTuple):
    """What one call of `decode_steps` sampled."""

    tokens_PGC: Array  # int32: each sample's new tokens, from index 0; zeros after its end
    logprobs_PGC: Array  # float32: their log-probabilities under the sampling distribution before truncation
    length_PG: Array  # int32: tokens of each sample so far, earlier calls and the stop token included
    done_PG: Array  # bool: the sample has ended
    busy_P: Array  # bool: the slot has an unfinished sample; replicated, so every process has all P values


@functools.partial(
    jax.jit, static_argnames=("prompts", "samples", "prefix", "max_tokens", "model_config", "cache_dtype")
)
def init_slots(
    prompts: int, samples: int, prefix: int, max_tokens: int, model_config: qwen2.Qwen2Config, cache_dtype: str = ""
) -> Slots:
    """Free slots.

    Args:
      prompts: P.
      samples: G.
      prefix: S, the maximum number of tokens in a prompt, not counting its last one.
      max_tokens: T.
      model_config: the sampler's.
      cache_dtype: of keys and values; empty: the model's.
    """
    cache = qwen2.init_cache(model_config, prompts, samples, prefix, max_tokens, cache_dtype)
    zeros_PG = jnp.zeros((prompts, samples), jnp.int32)
    uniform_PGT = jnp.zeros((prompts, samples, max_tokens), jnp.float32)
    return _constrain_slots(Slots(cache, zeros_PG, zeros_PG, zeros_PG == 0, zeros_PG, uniform_PGT))


@functools.partial(jax.jit, static_argnames=("model_config",))
def prefill_prefix(params: Any, tokens_S: Array, length: Array, model_config: qwen2.Qwen2Config) -> SharedPrefix:
    """Keys and values of the text that several prompts begin with.

    Args:
      params: the sampler's weights.
      tokens_S: the text's tokens, padded at the end.
      length: int32 scalar, its tokens without padding.
      model_config: the sampler's.
    """
    return qwen2.shared_prefix(params, tokens_S, length, model_config)


@functools.partial(jax.jit, static_argnames=("seed", "model_config"), donate_argnames=("slots",))
def prefill(
    params: Any,
    slots: Slots,
    batch: PrefillBatch,
    step: jax.Array,
    seed: int,
    model_config: qwen2.Qwen2Config,
    prefix: SharedPrefix | None = None,
) -> Slots:
    """The slots with the batch's prompts in them, ready for their first decode step.

    Args:
      params: the sampler's weights.
      slots: donated.
      batch: the prompts; each replaces what its slot holds.
      step: training step, for the random numbers.
      seed: of the run.
      model_config: the sampler's.
      prefix: what all prompts of the batch begin with; None: nothing.
    """
    tokens_RS, length_R, last_token_R, slot_R, prompt_index_R, limit_RG = batch
    (R, S), (_, G, T) = tokens_RS.shape, slots.uniform_PGT.shape
    first_position = 0 if prefix is None else prefix.length
    positions_RS = first_position + jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), tokens_RS.shape)
    mask = attention.causal_mask(tokens_RS, length_R)
    _, cache = qwen2.forward(params, tokens_RS, positions_RS, mask, model_config, slots.cache, slot_R, prefix)
    assert cache is not None

    def scatter(old: jax.Array, new: jax.Array) -> jax.Array:
        # Padding entries have slot P, which is out of bounds: "drop" leaves them out.
        return old.at[slot_R].set(new, mode="drop")

    zeros_RG = jnp.zeros((R, G), jnp.int32)
    # All random numbers of a sample are drawn here, so they depend on the prompt and not on when the slot was free.
    uniform_RGT = sampling.uniforms(seed, step, prompt_index_R, G, T)
    return _constrain_slots(
        Slots(
            cache=cache,
            token_PG=scatter(slots.token_PG, jnp.broadcast_to(last_token_R[:, None], (R, G))),
            length_PG=scatter(slots.length_PG, zeros_RG),
            done_PG=scatter(slots.done_PG, limit_RG <= 0),
            limit_PG=scatter(slots.limit_PG, limit_RG),
            uniform_PGT=scatter(slots.uniform_PGT, uniform_RGT),
        )
    )


@functools.partial(
    jax.jit,
    static_argnames=("steps", "stop_ids", "model_config", "sampling_config", "temperatures", "rows"),
    donate_argnames=("slots",),
)
def decode_steps(
    params: Any,
    slots: Slots,
    force_done_PG: jax.Array,
    steps: int,
    stop_ids: tuple[int, ...],
    model_config: qwen2.Qwen2Config,
    sampling_config: SamplingConfig,
    temperatures: tuple[float, ...] = (),
    rows: int = 0,
) -> tuple[Slots, DecodedTokens]:
    """Samples up to `steps` tokens of every unfinished sample; the module's docstring shows the loop.

    A finished sample still passes through the model, since shapes are static, and its outputs are masked; with `rows`
    only that many samples pass. Slots are refilled only between calls. A larger `steps` wastes work on finished
    samples; a smaller one synchronizes more often.

    Args:
      params: the sampler's weights.
      slots: donated.
      force_done_PG: bool, samples to end now; the host found their end in the text, which the device cannot see.
      steps: C.
      stop_ids: token ids that end a sample; the sample includes its stop token.
      model_config: the sampler's.
      sampling_config: temperature and truncation.
      temperatures: one for each of a prompt's samples; empty: sampling_config's for all.
      rows: at least as many as there are unfinished samples; 0: all samples. Only for one device.
    """
    P, G = slots.token_PG.shape
    stop_N = jnp.asarray(stop_ids, jnp.int32)

    def any_unfinished(carry: tuple) -> jax.Array:
        i, slots, _, _ = carry
        return (i < steps) & ~slots.done_PG.all()

    def decode_step(carry: tuple) -> tuple:
        i, slots, tokens_PGC, logprobs_PGC = carry
        token_PG, logprob_PG, cache = _sample_next(params, slots, model_config, sampling_config, temperatures, sample_N)
        token_PG = jnp.where(slots.done_PG, 0, token_PG)
        logprob_PG = jnp.where(slots.done_PG, 0.0, logprob_PG)
        length_PG = slots.length_PG + ~slots.done_PG
        # Finished samples are filled with token 0, which may be a stop token. That is harmless: they are done already.
        ended_PG = jnp.isin(token_PG, stop_N) | (length_PG >= slots.limit_PG)
        slots = slots.replace(cache=cache, token_PG=token_PG, length_PG=length_PG, done_PG=slots.done_PG | ended_PG)
        tokens_PGC = jax.lax.dynamic_update_index_in_dim(tokens_PGC, token_PG, i, 2)
        return i + 1, slots, tokens_PGC, jax.lax.dynamic_update_index_in_dim(logprobs_PGC, logprob_PG, i, 2)

    slots = slots.replace(done_PG=slots.done_PG | force_done_PG)  # type: ignore[attr-defined]
    sample_N = _unfinished_samples(slots.done_PG, rows) if rows else None
    outputs = jnp.zeros((P, G, steps), jnp.int32), jnp.zeros((P, G, steps), jnp.float32)
    _, slots, tokens_PGC, logprobs_PGC = jax.lax.while_loop(
        any_unfinished, decode_step, (jnp.int32(0), slots, *outputs)
    )
    slots = _constrain_slots(slots)
    # Replicated: every process frees the same slots without a collective on the host (rollout/scheduler.py).
    busy_P = constrain((~slots.done_PG).any(1), (None,), SAMPLE_RULES)
    return slots, DecodedTokens(tokens_PGC, logprobs_PGC, slots.length_PG, slots.done_PG, busy_P)


def _sample_next(
    params: Any,
    slots: Slots,
    model_config: qwen2.Qwen2Config,
    sampling_config: SamplingConfig,
    temperatures: tuple[float, ...],
    sample_N: jax.Array | None,
) -> tuple[jax.Array, jax.Array, KVCache]:
    """Each sample's next token [P, G], its log-probability [P, G], and the cache with `slots.token_PG` written.

    With `sample_N`, only these samples' tokens are computed, and the others get token 0.
    """
    (P, G), cache = slots.token_PG.shape, slots.cache
    age_P = cache.step - cache.start_P  # decode steps since the slot's prompt was prefilled
    # A finished slot's age keeps growing past T. Its token is masked, so any index in bounds will do.
    index_P = jnp.minimum(age_P, slots.uniform_PGT.shape[2] - 1)
    uniform_PG = jnp.take_along_axis(slots.uniform_PGT, index_P[:, None, None], axis=2)[..., 0]
    position_PG = jnp.broadcast_to((cache.prefix_length_P + age_P)[:, None], (P, G))
    temperature_PG = jnp.broadcast_to(jnp.asarray(temperatures or (1.0,) * G, jnp.float32)[None], (P, G))
    inputs: tuple[jax.Array, ...] = slots.token_PG, position_PG, uniform_PG, temperature_PG
    if sample_N is not None:
        inputs = tuple(x.reshape(-1).at[sample_N].get(mode="clip")[None] for x in inputs)
    token, position, uniform, temperature = inputs  # [P, G] or [1, N]
    hidden, new_cache = qwen2.forward(params, token, position, None, model_config, cache, sample_N=sample_N)
    assert new_cache is not None
    logits = qwen2.unembed(params, hidden, model_config)
    if temperatures:
        token, logprob = sampling.next_tokens(logits, uniform, sampling_config, temperature)
    else:
        token, logprob = sampling.next_token(logits, uniform, sampling_config)
    if sample_N is not None:
        token, logprob = (
            jnp.zeros(P * G, x.dtype).at[sample_N].set(x[0], mode="drop").reshape(P, G) for x in (token, logprob)
        )
    return token, logprob, new_cache


def _unfinished_samples(done_PG: jax.Array, rows: int) -> jax.Array:
    """The numbers p · G + g of the samples that are not done, padded to `rows` with P · G, which is out of bounds."""
    return jnp.nonzero(~done_PG.reshape(-1), size=rows, fill_value=done_PG.size)[0]


def _constrain_slots(slots: Slots) -> Slots:
    """Splits every array over slots, if there is a mesh; the KV cache has constrained its own arrays."""
    cache, *arrays = (getattr(slots, name) for name in Slots.__dataclass_fields__)
    return Slots(cache, *(constrain(x, ("rows", None, None)[: x.ndim], SAMPLE_RULES) for x in arrays))
