"""Cold start, then GRPO. `configs/grpo.py` is the embedded default, `:smoke` the same way in a minute.

`:7b` (or another size) is the paper's GRPO, from --config.model.path on the data that --config.data.train names.
"""

from ml_collections import ConfigDict

from sqlr1_jax import presets


def get_config(size: str = "tiny") -> ConfigDict:
    return presets.get(size)
