"""Engine of google-tunix: its sampler and its GRPO training step, with its Qwen2."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from measure import Facts
from shapes import Workload
from tunix.generate import sampler as samplers
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as weights
from tunix.rl import algo_core, common, trainer  # noqa: F401 (algo_core registers the loss)
from tunix.rl.function_registry import get_policy_loss_fn
from tunix.rl.grpo.grpo_learner import GRPOConfig, TrainExample
from tunix.sft import peft_trainer

PAD = 0


class _TokenIdTokenizer:
    """A tokenizer whose text is a list of token ids. The end of text is an id past the vocabulary, never sampled."""

    def __init__(self, vocab_size: int):
        self._end = vocab_size

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # `encode` does not insert it

    def eos_id(self) -> int:
        return self._end

    def pad_id(self) -> int:
        return PAD


def _model(job: dict[str, Any], work: Workload) -> nnx.Module:
    model_config = work.config
    dtype = jnp.float32 if job["platform"] == "cpu" else jnp.bfloat16
    shape = qwen2.ModelConfig(
        num_layers=model_config.num_layers, vocab_size=model_config.vocab_size, embed_dim=model_config.hidden_size,
        hidden_dim=model_config.ffw_size, num_heads=model_config.num_heads, head_dim=model_config.head_size,
        num_kv_heads=model_config.num_kv_heads, rope_theta=int(model_config.rope_theta),
        norm_eps=model_config.norm_eps, use_tied_embedding=model_config.tied, dtype=dtype,
        param_dtype=jnp.float32 if job["task"] == "update" else dtype,
    )  # fmt: skip
    return weights.create_model_from_safe_tensors(job["weights"], shape)


def rollout(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """Returns a function that samples the prompts, repeated as in its GRPO learner, up to the longest completion."""
    model_config = work.config
    cache = samplers.CacheConfig(
        work.prompt + work.longest, model_config.num_layers, model_config.num_kv_heads, model_config.head_size
    )
    sampler = samplers.Sampler(_model(job, work), _TokenIdTokenizer(model_config.vocab_size), cache)
    texts = [" ".join(map(str, prompt)) for prompt in work.prompts_PS() for _ in range(work.samples)]
    longest = int(work.lengths_PG().max())

    def run() -> Facts:
        result = sampler(texts, longest, work.prompt, temperature=1.0, top_p=1.0, seed=0)
        return {"made": sum(map(len, result.tokens)), **_device_peak()}

    return run


def update(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """Returns a function that runs its trainer's jitted step with its GRPO loss on each microbatch in turn.

    A microbatch has job["microbatch"] rows, or all rows without that field.
    """
    settings = GRPOConfig(num_generations=work.samples, beta=0.0, loss_agg_mode="token-mean")
    settings.temperature = 1.0
    grpo_loss = get_policy_loss_fn(settings.policy_loss_fn)
    rows = work.prompts * work.samples
    microbatch = job.get("microbatch") or rows
    training = peft_trainer.TrainingConfig(eval_every_n_steps=1000, gradient_accumulation_steps=rows // microbatch)
    grpo_trainer = trainer.Trainer(_model(job, work), optax.adamw(1e-6), training, lambda: {})
    grpo_trainer.with_loss_fn(
        lambda model, train_example: grpo_loss(
            model, train_example, settings, pad_id=PAD, eos_id=work.config.vocab_size
        ),
        has_aux=True,
    )
    grpo_trainer.with_gen_model_input_fn(lambda example: {"train_example": example})
    step, _ = grpo_trainer.jit_train_and_eval_step()
    microbatches = _microbatches(work, microbatch)

    def run() -> Facts:
        for microbatch_inputs in microbatches:
            loss, _, norm = step(microbatch_inputs)
        jax.block_until_ready((loss, norm))
        jax.block_until_ready(jax.tree.leaves(nnx.state(grpo_trainer.model)))
        return {"loss": float(loss), **_device_peak()}

    return run


def _microbatches(work: Workload, microbatch: int) -> list[TrainExample]:
    prompts_BS = np.repeat(work.prompts_PS(), work.samples, axis=0)
    completions_BT = work.completions_PGT().reshape(-1, work.longest)
    old_BT = np.full(completions_BT.shape, -np.log(work.config.vocab_size), np.float32)
    arrays = types.SimpleNamespace(
        prompt_ids=prompts_BS, prompt_mask=prompts_BS != PAD, completion_ids=completions_BT,
        completion_mask=completions_BT != PAD, advantages=work.advantage_PG().ravel(), old_per_token_logps=old_BT,
    )  # fmt: skip

    def make_microbatch(start: int) -> TrainExample:
        slices = {name: jnp.asarray(value[start : start + microbatch]) for name, value in vars(arrays).items()}
        return TrainExample(**slices, ref_per_token_logps=None)

    return [make_microbatch(start) for start in range(0, len(prompts_BS), microbatch)]


def _device_peak() -> Facts:
    """Peak bytes of an accelerator's memory; {} on the CPU."""
    stats = jax.devices()[0].memory_stats() if jax.devices()[0].platform != "cpu" else None
    return {"peak_bytes": int(stats["peak_bytes_in_use"])} if stats else {}
