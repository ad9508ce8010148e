"""LoRA: low-rank adapters that train beside frozen matrices (Hu et al., arXiv 2106.09685).

With an adapter (a, b) of rank r, the layer's matrix w acts as

    x @ w + (x @ a) @ b · alpha / r          w [M, N] frozen, a [M, r] and b [r, N] trained

b starts at zero, so training starts from the model itself. A tree with adapters is the model's tree with one more
entry: `{…, "lora": {"q": {"a": [L, D, r], "b": [L, r, H, h]}, …}}`. That entry is all that trains; what is left of the
tree is frozen, and is also the model without its adapters.

Shapes are in names: L layers, M inputs and N outputs of a matrix (one or several axes), r rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from sqlr1_jax.model.ops import Adapted
from sqlr1_jax.model.quantize import CONTRACTING_AXES

if TYPE_CHECKING:
    from sqlr1_jax.model.qwen2 import Params, ParamSpec, Qwen2Config

KEY = "lora"  # of the adapters in the parameter tree
MATRICES = tuple(CONTRACTING_AXES)  # the layers' matrices, all of which can have an adapter


def split(params: Params) -> tuple[Params, Params]:
    """(trained, frozen) parts of a tree: its adapters and the rest, or everything and nothing if it has no adapters.

    `trained | frozen` is the tree again.
    """
    if KEY not in params:
        return params, {}
    return {KEY: params[KEY]}, {name: subtree for name, subtree in params.items() if name != KEY}


def abstract_adapters(layers: dict[str, ParamSpec], config: Qwen2Config) -> dict[str, dict[str, ParamSpec]]:
    """The adapters' ParamSpecs, from those of the stacked matrices; split over devices as the matrices are.

    They are in float32 whatever the frozen weights are: steps of training are too small for bfloat16.
    """
    dtype = str(jnp.promote_types(config.param_dtype, jnp.float32))

    def adapter(name: str) -> dict[str, ParamSpec]:
        spec, rank = layers[name], config.lora_rank
        first_output = 1 + len(CONTRACTING_AXES[name])  # axis 0 is the layer
        a_shape, a_axes = (*spec.shape[:first_output], rank), (*spec.logical_axes[:first_output], None)
        b_shape = (spec.shape[0], rank, *spec.shape[first_output:])
        b_axes = (spec.logical_axes[0], None, *spec.logical_axes[first_output:])
        a = spec._replace(shape=a_shape, dtype=dtype, logical_axes=a_axes, init="lora")
        return {"a": a, "b": spec._replace(shape=b_shape, dtype=dtype, logical_axes=b_axes, init="zeros")}

    return {name: adapter(name) for name in config.lora_matrices}


def adapted_layers(params: Params, config: Qwen2Config) -> Params:
    """The stacked layers as the forward pass takes them: with adapters, every matrix is `Adapted`, so it is frozen."""
    if KEY not in params:
        return params["layers"]
    adapters, scale = params[KEY], config.lora_alpha / config.lora_rank

    def adapt(name: str, w: Any) -> Any:
        if name not in CONTRACTING_AXES:
            return w
        if name not in adapters:
            return Adapted(w, None, None)
        return Adapted(w, adapters[name]["a"] * scale, adapters[name]["b"])

    return {name: adapt(name, w) for name, w in params["layers"].items()}


def merge(params: Params, config: Qwen2Config) -> Params:
    """The tree without adapters that computes the same: w + a @ b · alpha / r, in the wider of the dtypes."""
    if KEY not in params:
        return params
    layers = {
        name: _merge_stacked(w) if isinstance(w, Adapted) else w for name, w in adapted_layers(params, config).items()
    }
    return split(params)[1] | {"layers": layers}


def _merge_stacked(w: Adapted) -> jax.Array:
    if w.a is None:
        return w.values
    delta = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(w.a, w.b)
    return w.values.astype(delta.dtype) + delta
