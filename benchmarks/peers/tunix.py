"""google-tunix: its sampler, and its GRPO training step, on its own Qwen2."""

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


class _Numbers:
    """A tokenizer whose text is token ids; the end is an id that is never sampled."""

    def __init__(self, vocab_size: int):
        self._end = vocab_size

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # none is put in front

    def eos_id(self) -> int:
        return self._end

    def pad_id(self) -> int:
        return PAD


def _model(job: dict[str, Any], work: Workload) -> nnx.Module:
    cfg = work.config
    dtype = jnp.float32 if job["platform"] == "cpu" else jnp.bfloat16
    shape = qwen2.ModelConfig(
        num_layers=cfg.num_layers, vocab_size=cfg.vocab_size, embed_dim=cfg.hidden_size, hidden_dim=cfg.ffw_size,
        num_heads=cfg.num_heads, head_dim=cfg.head_size, num_kv_heads=cfg.num_kv_heads, rope_theta=int(cfg.rope_theta),
        norm_eps=cfg.norm_eps, use_tied_embedding=cfg.tied, dtype=dtype,
        param_dtype=jnp.float32 if job["task"] == "update" else dtype,
    )  # fmt: skip
    return weights.create_model_from_safe_tensors(job["weights"], shape)


def rollout(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """Prompts repeated as its GRPO learner repeats them; a batch runs to its longest completion."""
    cfg = work.config
    cache = samplers.CacheConfig(work.prompt + work.longest, cfg.num_layers, cfg.num_kv_heads, cfg.head_size)
    sampler = samplers.Sampler(_model(job, work), _Numbers(cfg.vocab_size), cache)
    texts = [" ".join(map(str, prompt)) for prompt in work.prompts_PS() for _ in range(work.samples)]
    longest = int(work.lengths_PG().max())

    def run() -> Facts:
        made = sampler(texts, longest, work.prompt, temperature=1.0, top_p=1.0, seed=0)
        return {"made": sum(map(len, made.tokens)), **_on_device()}

    return run


def update(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """Its trainer's jitted step with its GRPO loss, one after the other over microbatches of job["microbatch"] rows."""
    settings = GRPOConfig(num_generations=work.samples, beta=0.0, loss_agg_mode="token-mean")
    settings.temperature = 1.0
    grpo = get_policy_loss_fn(settings.policy_loss_fn)
    rows = work.prompts * work.samples
    microbatch = job.get("microbatch") or rows
    training = peft_trainer.TrainingConfig(eval_every_n_steps=1000, gradient_accumulation_steps=rows // microbatch)
    held = trainer.Trainer(_model(job, work), optax.adamw(1e-6), training, lambda: {})
    held.with_loss_fn(
        lambda model, train_example: grpo(model, train_example, settings, pad_id=PAD, eos_id=work.config.vocab_size),
        has_aux=True,
    )
    held.with_gen_model_input_fn(lambda example: {"train_example": example})
    step, _ = held.jit_train_and_eval_step()
    examples = _examples(work, microbatch)

    def run() -> Facts:
        for example in examples:
            loss, _, norm = step(example)
        jax.block_until_ready((loss, norm))
        jax.block_until_ready(jax.tree.leaves(nnx.state(held.model)))
        return {"loss": float(loss), **_on_device()}

    return run


def _examples(work: Workload, microbatch: int) -> list[TrainExample]:
    prompts_BS = np.repeat(work.prompts_PS(), work.samples, axis=0)
    completions_BT = work.completions_PGT().reshape(-1, work.longest)
    old_BT = np.full(completions_BT.shape, -np.log(work.config.vocab_size), np.float32)
    arrays = types.SimpleNamespace(
        prompt_ids=prompts_BS, prompt_mask=prompts_BS != PAD, completion_ids=completions_BT,
        completion_mask=completions_BT != PAD, advantages=work.advantage_PG().ravel(), old_per_token_logps=old_BT,
    )  # fmt: skip

    def part(start: int) -> TrainExample:
        cut = {name: jnp.asarray(value[start : start + microbatch]) for name, value in vars(arrays).items()}
        return TrainExample(**cut, ref_per_token_logps=None)

    return [part(start) for start in range(0, len(prompts_BS), microbatch)]


def _on_device() -> Facts:
    stats = jax.devices()[0].memory_stats() if jax.devices()[0].platform != "cpu" else None
    return {"peak_bytes": int(stats["peak_bytes_in_use"])} if stats else {}
