"""The cold start, then GRPO. Without an argument the embedded default; `:smoke` is the same in about a minute.

`:7b`, or another size, is the paper's GRPO of --config.model.path on --config.data.train.
"""

from ml_collections import ConfigDict

from sqlr1_jax import presets


def get_config(size: str = "tiny") -> ConfigDict:
    return presets.get(size)
