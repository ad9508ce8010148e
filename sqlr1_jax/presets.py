"""Settings by size: the embedded default (`tiny`), its short form (`smoke`), and the paper's for Qwen2.5-Coder."""

from __future__ import annotations

from ml_collections import ConfigDict

from sqlr1_jax import config, config_checks
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.sql.result_cache import default_folder


def get(size: str) -> ConfigDict:
    """All settings for a size.

    Raises:
      ConfigError: there is no such size.
    """
    cfg = config.default()
    if size in ("tiny", "smoke"):
        _tiny(cfg)
        if size == "smoke":
            _smoke(cfg)
        return cfg
    if size not in config_checks.SIZES:
        raise ConfigError(f"there is no size {size!r}; there are smoke, {', '.join(config_checks.SIZES)}.")
    cfg.model.size = size
    _paper(cfg)
    return cfg


def _tiny(cfg: ConfigDict) -> None:
    """Cold start and GRPO of a 0.8M-parameter model from random weights, on two CPU cores in minutes."""
    # At 1,100 words all logits fit, and need not be made twice.
    cfg.model.update(logits_chunk=0, unroll=3)
    cfg.sft.update(steps=1000, databases=4)
    cfg.sft.rows.per_microbatch = 4
    cfg.data.synth.sft_databases = 6000
    cfg.sft.optimizer.update(
        # Muon learns to read a schema in a third of AdamW's steps here. Embeddings stay random: if they trained, names
        # that the cold start doesn't have would end up apart from those that it has.
        name="muon", learning_rate=3e-3, adam_learning_rate=6e-2, schedule="linear", end_fraction=0.05, warmup_steps=20,
        frozen=("embed",),
    )  # fmt: skip
    cfg.grpo.steps = 110
    cfg.grpo.prompts = 32
    cfg.grpo.sampling.temperature = 1.0
    cfg.grpo.sampling.max_tokens = 64
    # The paper's 3e-7 fine-tunes billions of weights. 3e-4 here lost 3 points where golds had been sound all along.
    cfg.grpo.optimizer.update(learning_rate=1.2e-4, schedule="linear")
    cfg.evaluate.every = 22
    cfg.checkpoint.every = 100


def _smoke(cfg: ConfigDict) -> None:
    """Every part of the embedded default, with less learning."""
    cfg.data.synth.update(
        sft_databases=60, grpo_databases=20, heldout_databases=8, heldout_questions=4,
        newnames_databases=4, newnames_questions=4,
    )  # fmt: skip
    cfg.sft.steps = 30
    cfg.grpo.update(steps=4, prompts=8, samples=4)
    cfg.evaluate.update(every=2, subset=16, max_concurrent_prompts=16)
    cfg.checkpoint.every = 10


def _paper(cfg: ConfigDict) -> None:
    """Weights that can reason already, schemas with values, and an accelerator's precision and memory."""
    cfg.stages = ("grpo", "evaluate", "export")
    cfg.model.update(dtype="bfloat16", remat="full", query_chunk=256, ffw_chunks=5)
    cfg.data.update(schema="retrieved", instructions="full")
    cfg.execute.gold_cache_dir = default_folder()  # where check keeps them
    cfg.sft.rows.update(layout="packed", per_microbatch=1)
    cfg.grpo.rows.update(per_microbatch=1, prefix=cfg.data.max_prompt_tokens, length_buckets=4)
    cfg.rollout.update(prompt_buckets=4, prefill_batch=1)
    cfg.sft.optimizer.update(learning_rate=5e-5, schedule="cosine")
