"""Random weights to begin with: normal ones or, for a model too small to be pretrained, ones that can look names up.

A pretrained model finds a name again in its context, and what stood beside it there (Olsson et al., "In-context
Learning and Induction Heads", arXiv 2209.11895). Such heads form only after more tokens than a laptop's cold start
has, so `tiny` begins with them, as weights with a structure rather than as code: what trains is a plain Qwen2.
Beginning with matrices that resemble trained ones is Trockman & Kolter's (arXiv 2305.09828).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.model import qwen2
from sqlr1_jax.model.qwen2 import Params, ParamSpec, Qwen2Config

_SHARPNESS = 9.0  # of the heads that look one or two tokens back
_MATCH = 3.0  # of those that look for a name
_NOTE, _ANSWER, _COPY = 0.4, 0.6, 0.1  # what a head adds to the stream, as a share of what it reads
_STILL = 1 / 256  # radians a token: RoPE's pairs that turn less hardly turn over a prompt of 200 tokens


def init_params(config: Qwen2Config, key: jax.Array) -> Params:
    """Random weights; each leaf's key depends on its place in the sorted tree alone.

    Raises:
      ValueError: `config.init` is "lookup", and the model has not the shape that its heads need.
    """
    specs, treedef = jax.tree.flatten(qwen2.abstract_params(config), is_leaf=qwen2.is_spec)
    keys = jax.random.split(key, len(specs))
    leaves = [_random(spec, leaf_key, config) for spec, leaf_key in zip(specs, keys, strict=True)]
    params = jax.tree.unflatten(treedef, leaves)
    return _with_lookup(params, config, jax.random.fold_in(key, 1)) if config.init == "induction_heads" else params


def _random(spec: ParamSpec, key: jax.Array, config: Qwen2Config) -> jax.Array:
    if spec.init == "ones":
        return jnp.ones(spec.shape, spec.dtype)
    if spec.init == "zeros":
        return jnp.zeros(spec.shape, spec.dtype)
    scales = {"normal": 0.02, "residual": 0.02 / (2 * config.num_layers) ** 0.5, "embedding": config.embed_init}
    return (scales[spec.init] * jax.random.normal(key, spec.shape, jnp.float32)).astype(spec.dtype)


def _with_lookup(params: Params, config: Qwen2Config, key: jax.Array) -> Params:
    """Normal weights with the heads' structure added.

    The residual stream has four parts of a head's width. Embeddings fill the first and the last. In the second and
    the third, layer 0 notes what the token before is, and the one before that. Layer 1 finds where a name stood
    earlier and answers with what stood before it there, a column's table, or behind it. All other heads copy what
    they attend to, and learn what that should be.
    """
    h, D, L = config.head_size, config.hidden_size, config.num_layers
    if (config.num_heads, config.num_kv_heads, D) != (4, 2, 4 * h) or L < 2:
        raise ValueError(
            f"weights that look names up need 4 query heads, 2 key-value heads, a hidden size of 4 heads and 2 layers; "
            f"this model has {config.num_heads}, {config.num_kv_heads}, {D / h:g} and {L}."
        )
    name, previous, earlier, rest = (np.eye(D, h, -part * h) for part in range(4))
    angles = config.rope_theta ** (-np.arange(h // 2) / (h // 2))
    still = np.tile(angles < _STILL, 2)
    match_HH = _MATCH / h**0.5 * still[None] * jax.random.normal(key, (h, h))

    def looking(back: int) -> np.ndarray:
        """A query's bias that meets looking(0), every key's, `back` tokens earlier."""
        return _SHARPNESS * ~still * np.concatenate([np.cos(back * angles), -np.sin(back * angles)])

    q_bias, k_bias = np.zeros((L, 4, h)), np.zeros((L, 2, h))
    k_bias[0, 0], q_bias[0, 0], q_bias[0, 1] = looking(0), looking(1), looking(2)

    k = jnp.zeros((L, D, 2, h)).at[1].set(jnp.stack([name @ match_HH, previous @ match_HH], 1))
    q = jnp.zeros((L, D, 4, h)).at[1].set(jnp.stack([part @ match_HH for part in (previous, name, name, earlier)], 1))

    v, o = np.zeros((L, D, 2, h)), np.zeros((L, 4, h, D))
    v[:, :, 0], v[:, :, 1] = name, rest
    o[:, :2], o[:, 2:] = _COPY * name.T, _COPY * rest.T
    o[0, 0], o[0, 1] = _NOTE * previous.T, _NOTE * earlier.T
    v[1] = np.stack([previous, name], 1)
    o[1] = _ANSWER * np.array([1, 0.3, 1, 0.3])[:, None, None] * name.T

    added = {"q": q, "k": k, "v": v, "o": o, "q_bias": q_bias, "k_bias": k_bias}
    layers = {n: (w + added[n]).astype(w.dtype) if n in added else w for n, w in params["layers"].items()}
    embed = params["embed"] * (name + rest).sum(1)[None].astype(params["embed"].dtype)
    return {**params, "layers": layers, "embed": embed}
