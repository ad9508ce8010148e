"""Settings by size: the embedded default (`tiny`), a short form of it (`smoke`), and the paper's (Qwen2.5-Coder)."""

from __future__ import annotations

from ml_collections import ConfigDict

from sqlr1_jax.config import default
from sqlr1_jax.config_checks import SIZES
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.sql.result_cache import default_folder


def get(size: str) -> ConfigDict:
    """All settings for a size.

    Raises:
      ConfigError: there is no such size.
    """
    config = default()
    if size in ("tiny", "smoke"):
        _tiny(config)
        if size == "smoke":
            _smoke(config)
        return config
    if size == "laptop":
        _laptop(config)
        return config
    if size not in SIZES:
        raise ConfigError(f"there is no size {size!r}; the sizes are smoke, laptop, {', '.join(SIZES)}.")
    config.model.size = size
    _paper(config)
    return config


def _tiny(config: ConfigDict) -> None:
    """SFT and GRPO of a 0.8M-parameter model from random weights, on two CPU cores in minutes."""
    # The vocabulary has about 1,100 tokens, so all logits fit in memory and need not be recomputed.
    config.model.update(logits_chunk=0, unroll=3)
    config.sft.update(steps=1000, databases=4)
    config.sft.rows.per_microbatch = 4
    config.data.synth.sft_databases = 6000
    config.sft.optimizer.update(
        name="muon",  # learns to read a schema in a third of AdamW's steps
        learning_rate=3e-3,
        adam_learning_rate=6e-2,
        schedule="linear",
        end_fraction=0.05,
        warmup_steps=20,
        # Embeddings stay random. Training would separate the SFT set's names from all other names.
        frozen=("embed",),
    )
    config.grpo.steps = 110
    config.grpo.prompts = 32
    config.grpo.sampling.temperature = 1.0
    config.grpo.sampling.max_tokens = 64
    # The paper's 3e-7 is for billions of weights. Here 3e-4 lost 3 points after an SFT set without teacher errors.
    config.grpo.optimizer.update(learning_rate=1.2e-4, schedule="linear")
    config.evaluate.update(every=22, max_concurrent_prompts=64)
    config.rollout.decode_steps_per_sync = 32  # a step takes a millisecond, a call from the host as long
    config.checkpoint.every = 100


def _laptop(config: ConfigDict) -> None:
    """Qwen2.5-Coder-0.5B-Instruct with LoRA on two CPU cores, in hours: SQL without reasoning, questions of Spider.

    A step costs what its tokens cost: short prompts, short answers, and no reference model.
    """
    config.model.update(size="0.5b", remat="none", query_chunk=256)
    config.model.lora.update(rank=8, alpha=16.0)
    config.model.logits_chunk = 256
    config.data.update(form="direct", schema="fixed", instructions="full", max_prompt_tokens=4096)
    config.stages = ("grpo", "evaluate", "export")
    config.export.update(form="adapter", dtype="bfloat16")
    config.sft.update(steps=48, databases=3)
    config.sft.optimizer.update(learning_rate=3e-4, schedule="linear", warmup_steps=3)
    config.sft.rows.update(layout="packed", length=1024, per_microbatch=1)
    config.grpo.update(steps=60, prompts=8, samples=8, kl=0.0, entropy=0.0)
    # Sampled at 1.0, the model is right half as often as when it decodes greedily, as it will be used.
    config.grpo.sampling.update(temperature=0.8, max_tokens=64)
    config.grpo.advantage.keep = "varied"
    config.grpo.reward.length = 0.0
    config.grpo.rows.update(per_microbatch=1, segment_buckets=4, prefix=448)
    config.grpo.optimizer.update(learning_rate=1e-4, warmup_steps=2)
    config.evaluate.every = 0
    config.checkpoint.every = 5
    config.rollout.update(prompt_buckets=4, prefill_batch=1)


def _smoke(config: ConfigDict) -> None:
    """The embedded default with less data and fewer steps: every part runs, and little is learned."""
    config.data.synth.update(
        sft_databases=60,
        grpo_databases=20,
        heldout_databases=8,
        heldout_questions=4,
        newnames_databases=4,
        newnames_questions=4,
    )
    config.sft.steps = 30
    config.grpo.update(steps=4, prompts=8, samples=4)
    config.evaluate.update(every=2, subset=16, max_concurrent_prompts=16)
    config.checkpoint.every = 10


def _paper(config: ConfigDict) -> None:
    """The paper's GRPO: pretrained weights, schemas with values, and the precision and memory of an accelerator."""
    config.stages = ("grpo", "evaluate", "export")
    config.model.update(dtype="bfloat16", remat="full", query_chunk=256, ffw_chunks=5)
    config.data.update(schema="retrieved", instructions="full")
    config.execute.gold_cache_dir = default_folder()  # `check` keeps its results there
    config.sft.rows.update(layout="packed", per_microbatch=1)
    config.grpo.rows.update(per_microbatch=1, prefix=config.data.max_prompt_tokens, prefix_buckets=2, segment_buckets=4)
    config.rollout.update(prompt_buckets=4, prefill_batch=1)
    config.sft.optimizer.update(learning_rate=5e-5, schedule="cosine")
