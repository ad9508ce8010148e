"""Models of a few thousand weights, and a checkpoint with what transformers computes with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax import config
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import qwen2

# A tiny random Qwen2 with logits and greedy tokens from transformers, written by tests/model/make_fixture.py.
TRANSFORMERS_FIXTURE = Path(__file__).parents[1] / "model" / "fixtures" / "qwen2"

# Sizes that a mesh of fsdp 4 × tensor 2 divides; three ids past the tokenizer's.
MODEL = qwen2.Qwen2Config(
    vocab_size=40,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    ffw_size=32,
    tied=True,
    num_tokens=37,
    logits_chunk=0,
)


def random_params(model: qwen2.Qwen2Config = MODEL, seed: int = 0, scale: float = 10.0) -> Any:
    """Random weights, norms and biases too, large enough that attention and logits are far from flat."""
    specs, tree = jax.tree.flatten(qwen2.abstract_params(model), is_leaf=qwen2.is_spec)
    rng = np.random.default_rng(seed)

    def random_array(spec: qwen2.ParamSpec) -> jax.Array:
        mean = 1.0 if spec.init == "ones" else 0.0
        return jnp.asarray(mean + 0.02 * scale * rng.standard_normal(spec.shape), spec.dtype)

    return jax.tree.unflatten(tree, [random_array(spec) for spec in specs])


def in_float64(model: qwen2.Qwen2Config = MODEL) -> qwen2.Qwen2Config:
    """The same model with weights and compute in float64."""
    return dataclasses.replace(model, param_dtype="float64", dtype="float64")


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device alone."""
    return sharding.make_mesh(config.MeshConfig(), jax.devices()[:1])
