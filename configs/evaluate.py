"""Only evaluation: greedy, vote and pass@n of --config.model.path on --config.data.evaluate."""

from ml_collections import ConfigDict

from sqlr1_jax import presets


def get_config(size: str = "tiny") -> ConfigDict:
    config = presets.get(size)
    config.stages = ("evaluate",)
    return config
