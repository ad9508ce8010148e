"""Hugging Face transformers: `generate` of its Qwen2 in torch, on two threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import transformers
from measure import Facts
from shapes import Workload

PAD = 0


def load(job: dict[str, Any], dtype: Any = None) -> Any:
    """The model, with torch on as many threads as there are cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = "cpu" if job["platform"] == "cpu" else "cuda"
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(job["weights"], dtype=dtype, attn_implementation="sdpa")
    return model.to(device)


def rollout(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """All prompts in one batch, each expanded to its samples; the batch runs to its longest completion."""
    model = load(job).eval()
    ids_PS = torch.from_numpy(work.prompts_PS()).long().to(model.device)
    settings = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=work.samples,
        max_new_tokens=int(work.lengths_PG().max()), pad_token_id=PAD, eos_token_id=None, use_cache=True,
    )  # fmt: skip

    def run() -> Facts:
        torch.manual_seed(0)
        with torch.inference_mode():
            made = model.generate(ids_PS, attention_mask=torch.ones_like(ids_PS), generation_config=settings)
        return {"made": made[:, work.prompt :].numel(), **on_device()}

    return run


def on_device() -> Facts:
    """Peak bytes on the GPU, where there is one."""
    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    return {"peak_bytes": torch.cuda.max_memory_allocated()}
