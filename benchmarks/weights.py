"""Random weights in Hugging Face form, which all engines read from one folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

import jax
import shapes

from sqlr1_jax.model import huggingface, init


@contextlib.contextmanager
def saved_weights(model: str) -> Iterator[str]:
    """A temporary folder with random weights of a model of shapes.MODELS.

    JAX is set to the CPU in this process, so that the accelerator is free for the workers.
    """
    jax.config.update("jax_platforms", "cpu")
    model_config = shapes.MODELS[model]
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_model(folder, init.init_params(model_config, jax.random.key(0)), model_config)
        yield folder
