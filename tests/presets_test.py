from __future__ import annotations

import dataclasses

import pytest

from sqlr1_jax import config, config_checks, presets, resume
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import qwen2
from sqlr1_jax.sql.result_cache import default_folder


@pytest.mark.parametrize("size", ["smoke", *config_checks.SIZES])
def test_every_size_is_a_config_that_can_run(size: str) -> None:
    cfg = config.freeze(presets.get(size))
    assert cfg.model.size == ("tiny" if size == "smoke" else size)
    assert cfg.model.size in qwen2.PRESETS


def test_unknown_size_is_an_error_that_lists_the_known_sizes() -> None:
    with pytest.raises(ConfigError, match=r"'8b'; the sizes are smoke, laptop, tiny, 0\.5b, .*32b"):
        presets.get("8b")


@pytest.mark.parametrize("size", config_checks.SIZES[1:])
def test_a_real_model_trains_as_the_paper_says(size: str) -> None:
    """docs/method.md, section 6: 8 prompts of 8 samples, 3e-7, T 1.1, and by default no own data and no SFT."""
    cfg = config.freeze(presets.get(size))
    assert cfg.stages == ("grpo", "evaluate", "export")
    assert dataclasses.replace(cfg.grpo, rows=config.RowsConfig()) == config.GrpoConfig()
    assert (cfg.model.dtype, cfg.model.param_dtype, cfg.model.remat) == ("bfloat16", "float32", "full")
    assert cfg.execute.gold_cache_dir == default_folder()
    assert (cfg.data.schema, cfg.data.instructions) == ("retrieved", "full")


def test_the_laptop_trains_adapters_of_the_smallest_model_without_a_reference() -> None:
    cfg = config.freeze(presets.get("laptop"))
    assert (cfg.model.size, cfg.model.lora.rank, cfg.model.dtype) == ("0.5b", 8, "float32")
    assert (cfg.grpo.kl, cfg.export.form, cfg.data.form) == (0.0, "adapter", "direct")


def test_the_embedded_default_keeps_the_papers_reward_and_advantage() -> None:
    tiny = config.freeze(presets.get("tiny"))
    assert (tiny.grpo.reward, tiny.grpo.advantage) == (config.RewardConfig(), config.AdvantageConfig())
    assert tiny.stages == ("data", "sft", "grpo", "evaluate", "export")


def test_smoke_differs_from_the_default_only_in_sizes() -> None:
    tiny, smoke = (config.freeze(presets.get(size)) for size in ("tiny", "smoke"))
    changed = resume.differences(tiny, smoke)
    assert all(
        name.startswith(("data.synth.", "evaluate.")) or name.endswith((".steps", ".prompts", ".samples"))
        for name in changed
    ), changed
    assert smoke.grpo.steps < tiny.grpo.steps
