"""GRPO. `configs/grpo.py` is the embedded default; `:smoke` the same way in a minute; `:7b` (and every size) the paper's.

A named size starts from --config.model.path and the data that --config.data.train names.
"""

from ml_collections import ConfigDict

from sqlr1_jax import config


def get_config(size: str = "tiny") -> ConfigDict:
    cfg = config.default()
    if size in ("tiny", "smoke"):
        _tiny(cfg)
        if size == "smoke":
            _smoke(cfg)
        return cfg
    cfg.model.size = size
    _paper(cfg)
    return cfg


def _tiny(cfg: ConfigDict) -> None:
    """Cold start and GRPO of a 0.8M-parameter model from random weights, on two CPU cores."""
    cfg.model.logits_chunk = 0
    cfg.cold_start.steps = 900
    cfg.cold_start.optimizer.name = "muon"
    cfg.cold_start.optimizer.learning_rate = 6e-3
    cfg.cold_start.optimizer.schedule = "linear"
    cfg.cold_start.optimizer.end_fraction = 0.05
    cfg.cold_start.optimizer.warmup_steps = 20
    cfg.grpo.steps = 120
    cfg.grpo.prompts = 32
    cfg.grpo.sampling.temperature = 1.0
    cfg.grpo.sampling.max_tokens = 112
    cfg.grpo.optimizer.learning_rate = 3e-4
    cfg.checkpoint.every = 100


def _smoke(cfg: ConfigDict) -> None:
    """Every part of the embedded default, with less learning."""
    cfg.data.synth.cold_start_databases = 60
    cfg.data.synth.grpo_databases = 20
    cfg.data.synth.heldout_databases = 8
    cfg.data.synth.heldout_questions = 4
    cfg.data.synth.newnames_databases = 4
    cfg.data.synth.newnames_questions = 4
    cfg.cold_start.steps = 30
    cfg.grpo.steps = 4
    cfg.grpo.prompts = 8
    cfg.grpo.samples = 4
    cfg.evaluate.every = 2
    cfg.evaluate.subset = 16
    cfg.evaluate.prompts = 16
    cfg.checkpoint.every = 10


def _paper(cfg: ConfigDict) -> None:
    """Weights that can reason already, schemas with values, and the accelerator's precision."""
    cfg.stages = ("grpo", "evaluate", "export")
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "full"
    cfg.model.query_chunk = 512
    cfg.data.schema = "retrieved"
    cfg.data.instructions = "full"
