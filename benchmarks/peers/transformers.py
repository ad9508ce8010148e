"""Engine of Hugging Face transformers: `generate` of its Qwen2 in torch, with a thread for each core."""

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
    """The model on its device, float32 on CPU and bfloat16 on GPU by default; sets torch to one thread per core."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = "cpu" if job["platform"] == "cpu" else "cuda"
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(job["weights"], dtype=dtype, attn_implementation="sdpa")
    return model.to(device)


def rollout(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """Returns a function that samples all prompts in one batch, up to the longest completion."""
    model = load(job).eval()
    ids_PS = torch.from_numpy(work.prompts_PS()).long().to(model.device)
    settings = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=work.samples,
        max_new_tokens=int(work.lengths_PG().max()), pad_token_id=PAD, eos_token_id=None, use_cache=True,
    )  # fmt: skip

    def run() -> Facts:
        torch.manual_seed(0)
        with torch.inference_mode():
            ids_BT = model.generate(ids_PS, attention_mask=torch.ones_like(ids_PS), generation_config=settings)
        return {"made": ids_BT[:, work.prompt :].numel(), **device_peak()}

    return run


def device_peak() -> Facts:
    """Peak bytes of the GPU's memory; {} without a GPU."""
    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    return {"peak_bytes": torch.cuda.max_memory_allocated()}
