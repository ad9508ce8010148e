"""Random initialization: normal weights, or normal weights with induction heads added.

An induction head finds an earlier occurrence of the current token and copies a neighbor of it (Olsson et al.,
"In-context Learning and Induction Heads", arXiv 2209.11895). Pretrained models have such heads. They form only after
more tokens than supervised fine-tuning on a laptop has, so `tiny` starts with them. They are a structure of the
weights and not code: the model that trains is a plain Qwen2. Trockman & Kolter (arXiv 2305.09828) initialize attention
with matrices that resemble trained ones in the same way.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from sqlr1_jax.model import lora, qwen2
from sqlr1_jax.model.qwen2 import Params, ParamSpec, Qwen2Config

_POSITION_SCALE = 9.0  # of the biases that make a head attend one or two tokens back
_MATCH_SCALE = 3.0  # of the query and key matrices that make a head attend to an equal token
# What a head adds to the residual stream, as a multiple of the value it reads: layer 0, layer 1, all other heads.
_NOTE_GAIN, _ANSWER_GAIN, _COPY_GAIN = 0.4, 0.6, 0.1
_SLOW_ANGLE = 1 / 256  # radians per token; RoPE pairs below this angle barely rotate over a prompt of 200 tokens


def init_params(config: Qwen2Config, key: jax.Array) -> Params:
    """Random parameters; a leaf depends only on `key` and on its index in the sorted tree.

    Raises:
      ValueError: `config.init` is "induction_heads" and the model does not have the shape that these heads need.
    """
    params = _random_tree(qwen2.abstract_params(config), key, config)
    if config.init != "induction_heads":
        return params
    return _add_induction_heads(params, config, jax.random.fold_in(key, 1))


def init_adapters(config: Qwen2Config, key: jax.Array) -> Params:
    """LoRA adapters that change nothing yet: a is uniform in ±1 / √inputs, and b is zero, as in PEFT."""
    return _random_tree(qwen2.abstract_params(config)[lora.KEY], jax.random.fold_in(key, 2), config)


def _random_tree(specs: Params, key: jax.Array, config: Qwen2Config) -> Params:
    leaves, treedef = jax.tree.flatten(specs, is_leaf=qwen2.is_spec)
    keys = jax.random.split(key, len(leaves))
    values = [_random(spec, leaf_key, config) for spec, leaf_key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, values)


def _random(spec: ParamSpec, key: jax.Array, config: Qwen2Config) -> jax.Array:
    if spec.init == "ones":
        return jnp.ones(spec.shape, spec.dtype)
    if spec.init == "zeros":
        return jnp.zeros(spec.shape, spec.dtype)
    if spec.init == "lora":
        bound = math.prod(spec.shape[1:-1]) ** -0.5
        return jax.random.uniform(key, spec.shape, spec.dtype, -bound, bound)
    scales = {"normal": 0.02, "residual": 0.02 / (2 * config.num_layers) ** 0.5, "embedding": config.embed_init}
    return (scales[spec.init] * jax.random.normal(key, spec.shape, jnp.float32)).astype(spec.dtype)


def _add_induction_heads(params: Params, config: Qwen2Config, key: jax.Array) -> Params:
    """The parameters with induction heads added in layers 0 and 1.

    The residual stream has four parts, each as wide as a head. Embeddings fill `name` and `rest`. Layer 0 writes the
    names of the two tokens before this one:

        [ name: this token | previous: 1 token back | earlier: 2 tokens back | rest ]

    Layer 1 compares one part of the query's token with one part of each key's token and answers with a third part:

        head   query      key        value      so it answers with
        0      previous   name       previous   the token before an earlier occurrence of the previous token
        1      name       name       previous   the token before an earlier occurrence of this token
        2      name       previous   name       the token after an earlier occurrence of this token
        3      earlier    previous   name       the token after an earlier occurrence of the token two positions back

    In a schema, the token before a column is its table. All other heads copy what they attend to; training decides
    what they attend to.
    """
    h, D, L = config.head_size, config.hidden_size, config.num_layers
    if (config.num_heads, config.num_kv_heads, D) != (4, 2, 4 * h) or L < 2:
        raise ValueError(
            "init=induction_heads needs 4 query heads, 2 key-value heads, a hidden size of 4 heads and at least 2 "
            f"layers; this model has {config.num_heads}, {config.num_kv_heads}, {D / h:g} and {L}. "
            "Use init=normal for this shape."
        )
    # Each is [D, h] and selects one part of the residual stream.
    name, previous, earlier, rest = (np.eye(D, h, -part * h) for part in range(4))
    angles = config.rope_theta ** (-np.arange(h // 2) / (h // 2))
    # Names are compared in the RoPE pairs that barely rotate, so distance does not matter; the other pairs encode
    # distance.
    slow = np.tile(angles < _SLOW_ANGLE, 2)
    match_HH = _MATCH_SCALE / h**0.5 * slow[None] * jax.random.normal(key, (h, h))

    def position_bias(back: int) -> np.ndarray:
        """The query bias that makes a head attend `back` tokens back, given the key bias position_bias(0)."""
        return _POSITION_SCALE * ~slow * np.concatenate([np.cos(back * angles), -np.sin(back * angles)])

    q_bias, k_bias = np.zeros((L, 4, h)), np.zeros((L, 2, h))
    k_bias[0, 0], q_bias[0, 0], q_bias[0, 1] = position_bias(0), position_bias(1), position_bias(2)

    k = jnp.zeros((L, D, 2, h)).at[1].set(jnp.stack([name @ match_HH, previous @ match_HH], 1))
    q = jnp.zeros((L, D, 4, h)).at[1].set(jnp.stack([part @ match_HH for part in (previous, name, name, earlier)], 1))

    v, o = np.zeros((L, D, 2, h)), np.zeros((L, 4, h, D))
    v[:, :, 0], v[:, :, 1] = name, rest
    o[:, :2], o[:, 2:] = _COPY_GAIN * name.T, _COPY_GAIN * rest.T
    o[0, 0], o[0, 1] = _NOTE_GAIN * previous.T, _NOTE_GAIN * earlier.T
    v[1] = np.stack([previous, name], 1)
    o[1] = _ANSWER_GAIN * np.array([1, 0.3, 1, 0.3])[:, None, None] * name.T

    added = {"q": q, "k": k, "v": v, "o": o, "q_bias": q_bias, "k_bias": k_bias}
    layers = {n: (w + added[n]).astype(w.dtype) if n in added else w for n, w in params["layers"].items()}
    embed = params["embed"] * (name + rest).sum(1)[None].astype(params["embed"].dtype)
    return {**params, "layers": layers, "embed": embed}
