"""The cold start alone: of the embedded default, or of a named size on --config.data.cold_start."""

from ml_collections import ConfigDict

from sqlr1_jax import presets


def get_config(size: str = "tiny") -> ConfigDict:
    cfg = presets.of(size)
    made_here = ("data",) if size in ("tiny", "smoke") else ()
    cfg.stages = (*made_here, "cold_start", "evaluate", "export")
    return cfg
