"""Evaluation alone, of --config.model.path on --config.data.evaluate: greedy, vote and pass@n."""

from ml_collections import ConfigDict

from sqlr1_jax import presets


def get_config(size: str = "tiny") -> ConfigDict:
    cfg = presets.get(size)
    cfg.stages = ("evaluate",)
    return cfg
