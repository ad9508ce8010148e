"""What tests of training share: a model of a few thousand weights, random groups, and the slow way to compute."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqlr1_jax import config, sharding
from sqlr1_jax.data.packing import Group, Rows, Segment
from sqlr1_jax.model import attention, qwen2
from sqlr1_jax.train.batch import Batch

# How close gradients must be. Those of float32 say nothing that float64's don't say more closely.
PRECISIONS = (pytest.param("float32", 1e-5, marks=pytest.mark.nightly), ("float64", 1e-10))

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
STOP = 1


def params(model: qwen2.Qwen2Config = MODEL, seed: int = 0, scale: float = 10.0) -> Any:
    """Random weights, large enough that attention and logits are far from flat; biases and norms too."""
    specs, tree = jax.tree.flatten(qwen2.abstract(model), is_leaf=qwen2.is_spec)
    rng = np.random.default_rng(seed)

    def one(spec: qwen2.ParamSpec) -> jax.Array:
        middle = 1.0 if spec.init == "ones" else 0.0
        return jnp.asarray(middle + 0.02 * scale * rng.standard_normal(spec.shape), spec.dtype)

    return jax.tree.unflatten(tree, [one(spec) for spec in specs])


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device alone."""
    return sharding.make_mesh(config.Mesh(), jax.devices()[:1])


def groups(prompts: int, samples: int, seed: int = 0, longest: int = 7) -> list[Group]:
    """GRPO's groups with random tokens, lengths and sampling log-probabilities."""
    rng = np.random.default_rng(seed)

    def segment(p: int, g: int) -> Segment:
        count = int(rng.integers(1, longest + 1))
        return Segment(rng.integers(2, 37, count + 1), np.ones(count), -rng.uniform(1, 5, count), p, g)

    return [
        Group(rng.integers(2, 37, int(rng.integers(1, longest + 1))), [segment(p, g) for g in range(samples)])
        for p in range(prompts)
    ]


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def naive_logprobs(
    params: Any, tokens_T: jax.Array, model: qwen2.Qwen2Config = MODEL, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [T-1, V] of each next token of one plain text, and their entropy [T-1]: nothing is shared."""
    tokens_1T = tokens_T[None, :-1]
    positions_1T = jnp.arange(tokens_1T.shape[1])[None]
    mask = attention.causal(tokens_1T, jnp.full(1, tokens_1T.shape[1]))
    hidden_1TD, _ = qwen2.forward(params, tokens_1T, positions_1T, mask, model)
    logp_TV = jax.nn.log_softmax(qwen2.unembed(params, hidden_1TD, model)[0] / temperature, axis=-1)
    return logp_TV, -(jnp.exp(logp_TV) * logp_TV).sum(-1)


def texts(groups: Sequence[Group]) -> list[tuple[np.ndarray, int, Segment]]:
    """Each segment as one plain text: its tokens, how many of them are the prefix's, and the segment."""
    return [
        (np.concatenate([group.prefix, segment.tokens]).astype(np.int32), len(group.prefix), segment)
        for group in groups
        for segment in group.segments
    ]


def micro(
    rows: Rows,
    weight: np.ndarray | None = None,
    advantage: np.ndarray | None = None,
    old: np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> Batch:
    """One microbatch with its arrays [b, T], as a loss is given it."""
    ones = np.ones(rows.tokens.shape, np.float32)
    rows = rows if weight is None else rows._replace(weight=weight)
    return Batch(
        rows=rows,
        advantage_MBT=ones if advantage is None else advantage,
        old_MBT=rows.logprob if old is None else old,
        reference_MBT=0 * ones if reference is None else reference,
        count=np.int32(1),
    )


def distance(tree: Any, other: Any) -> float:
    """‖difference‖ / ‖other‖ over all leaves."""
    ours, theirs = ([np.asarray(x, float) for x in jax.tree.leaves(t)] for t in (tree, other))
    gap = sum(((a - b) ** 2).sum() for a, b in zip(ours, theirs, strict=True))
    return float((gap / sum((b**2).sum() for b in theirs)) ** 0.5)


def worst_leaf(tree: Any, other: Any) -> float:
    """The largest difference in a leaf over its largest entry, of the worst leaf; key biases, near 0, left out."""

    def one(path: tuple, a: jax.Array, b: jax.Array) -> float:
        return 0.0 if "k_bias" in str(path) else float(np.abs(a - b).max() / np.abs(b).max())

    return max(jax.tree.leaves(jax.tree_util.tree_map_with_path(one, tree, other)))


def wide(model: qwen2.Qwen2Config = MODEL) -> qwen2.Qwen2Config:
    """The same model in float64."""
    return dataclasses.replace(model, param_dtype="float64", dtype="float64")


@pytest.fixture(scope="module", autouse=True)
def compiles_fast() -> Iterator[None]:
    """For a module that imports it: XLA optimises little, which halves the time of tests that compile much."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
