"""The cold start alone: of the embedded default, or of a named size on --config.data.sft."""

from ml_collections import ConfigDict

from sqlr1_jax import presets


def get_config(size: str = "tiny") -> ConfigDict:
    cfg = presets.get(size)
    made_here = ("data",) if size in ("tiny", "smoke") else ()
    cfg.stages = (*made_here, "sft", "evaluate", "export")
    return cfg
