"""The key of an evaluation's results: digests of the weights, of the questions with their data, and of settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sqlr1_jax.config import Config
from sqlr1_jax.evaluate.heldout import HeldoutSet
from sqlr1_jax.sql.database import content_hash

MULTIPLIER = 0x9E3779B1  # odd, so that no change of one number cancels


def content_key(config: Config, params: Any, sets: Sequence[HeldoutSet]) -> dict[str, str]:
    """Digests of what decides the results. Equal keys mean equal results, whatever the files are called."""
    questions = [
        [heldout.name, e.id, e.db_id, e.question, e.sql, p.text, p.opening]
        for heldout in sets
        for e, p in zip(heldout.examples, heldout.prompts, strict=True)
    ]
    databases = sorted({example.database for heldout in sets for example in heldout.examples})
    evaluate = dataclasses.replace(config.evaluate, every=0, subset=0)  # only training reads these two
    settings = [evaluate, config.rollout, config.execute, config.grpo.sampling, config.model.dtype, config.seed]
    return {
        "weights": weights_digest(params),
        "questions": _digest(questions),
        "databases": _digest([content_hash(str(database)) for database in databases]),
        "settings": _digest([str(setting) for setting in settings]),
    }


def weights_digest(params: Any) -> str:
    """A digest of all parameters, computed where they are: their bits, weighted by position and summed modulo 2^32."""
    leaves = jax.tree.leaves_with_path(params)
    sums = jax.device_get([_checksum(leaf) for _, leaf in leaves])
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return _digest([[name, leaf.shape, int(total)] for name, (_, leaf), total in zip(names, leaves, sums, strict=True)])


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32 if x.dtype.itemsize == 4 else jnp.uint16).astype(jnp.uint32)
    weights = jnp.uint32(1)
    for axis in range(x.ndim):  # index along each axis, so that no flat copy of a sharded array is made
        weights = weights * jnp.uint32(MULTIPLIER) + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return (bits * (weights | jnp.uint32(1))).sum(dtype=jnp.uint32)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
