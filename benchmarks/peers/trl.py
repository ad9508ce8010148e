"""Engine of TRL: loss, backward pass and optimizer step of GRPOTrainer in torch, with a thread for each core."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl
from measure import Facts
from peers.transformers import PAD, device_peak, load
from shapes import Workload


def update(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """Returns a function that does one optimizer step over microbatches of job["microbatch"] rows."""
    rows, microbatch = work.prompts * work.samples, job.get("microbatch", 1)
    trainer = _trainer(job, work, microbatch, rows // microbatch)
    trainer.create_optimizer()
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = rows // microbatch
    microbatches = _microbatches(work, microbatch, model.device)

    def run() -> Facts:
        total = 0.0
        for inputs in microbatches:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, inputs)
            trainer.accelerator.backward(loss)
            total += float(loss.detach())
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return {"loss": total, **device_peak()}

    return run


def _trainer(job: dict[str, Any], work: Workload, microbatch: int, accumulation: int) -> trl.GRPOTrainer:
    cpu = job["platform"] == "cpu"
    args = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=microbatch, num_generations=work.samples,
        gradient_accumulation_steps=accumulation, beta=0.0, loss_type="dapo", learning_rate=1e-6, use_cpu=cpu,
        bf16=not cpu, gradient_checkpointing=job.get("checkpointing", False), max_completion_length=work.longest,
        report_to=[], temperature=1.0,
    )  # fmt: skip
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    return trl.GRPOTrainer(
        model=load(job, torch.float32), args=args, processing_class=tokenizer, reward_funcs=lambda **_: [0.0],
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"] * max(8, work.prompts)}),
    )  # fmt: skip


def _microbatches(work: Workload, microbatch: int, device: Any) -> list[dict[str, Any]]:
    prompts_BS = np.repeat(work.prompts_PS(), work.samples, axis=0).astype(np.int64)
    completions_BT = work.completions_PGT().reshape(-1, work.longest).astype(np.int64)
    old_BT = np.full(completions_BT.shape, -np.log(work.config.vocab_size), np.float32)
    arrays = {
        "prompt_ids": prompts_BS, "prompt_mask": (prompts_BS != PAD).astype(np.int64), "completion_ids": completions_BT,
        "completion_mask": (completions_BT != PAD).astype(np.int64), "advantages": work.advantage_PG().ravel(),
        "old_per_token_logps": old_BT,
    }  # fmt: skip
    total = torch.tensor(work.tokens, device=device)

    def make_microbatch(start: int) -> dict[str, Any]:
        inputs = {
            name: torch.from_numpy(value[start : start + microbatch]).to(device) for name, value in arrays.items()
        }
        return inputs | {"num_items_in_batch": total}

    return [make_microbatch(start) for start in range(0, len(prompts_BS), microbatch)]
