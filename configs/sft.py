"""Only the cold start: of the embedded default, or of a named size on --config.data.sft."""

from ml_collections import ConfigDict

from sqlr1_jax import presets


def get_config(size: str = "tiny") -> ConfigDict:
    config = presets.get(size)
    makes_data = size in ("tiny", "smoke")
    config.stages = (*(("data",) if makes_data else ()), "sft", "evaluate", "export")
    return config
