"""Random weights that every engine reads from one folder, in Hugging Face form."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

import jax
import shapes

from sqlr1_jax.model import huggingface, init


@contextlib.contextmanager
def written(model: str) -> Iterator[str]:
    """A temporary folder with the shape's weights; this process touches no accelerator."""
    jax.config.update("jax_platforms", "cpu")
    cfg = shapes.MODELS[model]
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_model(folder, init.init_params(cfg, jax.random.key(0)), cfg)
        yield folder
