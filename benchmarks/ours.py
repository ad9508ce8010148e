"""Our sampler and our update as benchmark engines.

`ours` computes each prompt once for all its samples; `naive` is the same code with the prompt repeated for each sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from measure import Facts
from shapes import Workload

from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, RowLayout, Segment
from sqlr1_jax.distributed import sharding
from sqlr1_jax.model import huggingface
from sqlr1_jax.model.qwen2 import Qwen2Config
from sqlr1_jax.rl.loss import grpo_loss
from sqlr1_jax.rollout.engine import Engine
from sqlr1_jax.rollout.request import Request
from sqlr1_jax.train import batch, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.state import TrainState, UpdateSpec

LOSS = config.GrpoConfig(kl=0.0, entropy=0.0)
OPTIMIZER = config.OptimizerConfig(learning_rate=1e-6, clip_norm=0.0)


def _model_config(job: dict[str, Any], work: Workload) -> Qwen2Config:
    dtype = "float32" if job["platform"] == "cpu" else "bfloat16"
    return dataclasses.replace(work.config, dtype=dtype, **job.get("model", {}))


def _mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(config.MeshConfig(), jax.devices()[:1])


def _device_peak() -> Facts:
    """Peak bytes of an accelerator's memory; {} on the CPU."""
    stats = jax.devices()[0].memory_stats() if jax.devices()[0].platform != "cpu" else None
    return {"peak_bytes": int(stats["peak_bytes_in_use"])} if stats else {}


def rollout(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """Returns a function that samples every completion to its planned length."""
    model_config, mesh = _model_config(job, work), _mesh()
    sampling_mesh = sharding.sampling_mesh(mesh, model_config.num_kv_heads)
    engine = Engine(model_config, sampling_mesh, (), work.prompt, config.RolloutConfig())
    weights = engine.prepare_weights(huggingface.load_params(job["weights"], model_config, mesh))
    prompts, samples, limit_PG = list(work.prompts_PS()), work.samples, work.lengths_PG()
    if job["engine"] == "naive":
        prompts, samples, limit_PG = [prompt for prompt in prompts for _ in range(samples)], 1, limit_PG.reshape(-1, 1)
    sampling = config.SamplingConfig(max_tokens=work.longest)
    request = Request(prompts, samples, sampling, seed=0, step=0, limit_PG=limit_PG)

    def run() -> Facts:
        result = engine.rollout(weights, request)
        assert (result.length_PG == limit_PG).all(), "a sample does not have its planned length"
        return {"made": int(result.length_PG.sum()), **_device_peak()}

    return run


def groups(work: Workload) -> list[Group]:
    """The workload as training groups, with weight 1 and the uniform distribution's log-probability for each token."""
    uniform_logprob = -np.log(work.config.vocab_size)

    def make_segment(p: int, g: int, last_prompt_token: int, ids: np.ndarray) -> Segment:
        ones = np.ones(len(ids), np.float32)
        return Segment(np.concatenate([[last_prompt_token], ids]), ones, uniform_logprob * ones, p, g)

    def make_group(p: int, prompt: np.ndarray) -> Group:
        lengths_G, ids_GT = work.lengths_PG()[p], work.completions_PGT()[p]
        segments = [make_segment(p, g, prompt[-1], ids_GT[g, :n]) for g, n in enumerate(lengths_G)]
        return Group(prompt[:-1], segments)

    return [make_group(p, prompt) for p, prompt in enumerate(work.prompts_PS())]


def build_batch(work: Workload, naive: bool, microbatch: int, mesh: jax.sharding.Mesh) -> tuple[Batch, RowLayout]:
    """The batch of one update and its row layout. A row is one group; if `naive`, one completion after its prompt."""
    row_groups = packing.unshared(groups(work)) if naive else groups(work)
    layout = RowLayout(work.prompt, 1 if naive else work.samples, work.longest)
    rows = packing.shared_prefix_rows(row_groups, layout)
    rows = rows._replace(weight=batch.loss_weights(rows, LOSS.aggregation))
    microbatches = batch.Microbatches(microbatch, -(-len(row_groups) // microbatch))
    return batch.assemble_batch(rows, mesh, microbatches, work.advantage_PG()), layout


def update(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """Returns a function that does one optimizer step and returns its loss and memory sizes.

    The first call compiles, and writes its gradient to job["gradient"] if that is set. `temporaries` are the bytes that
    XLA allocates besides arguments and results. For the naive rows, `temporaries_of_a_group` is the same with a whole
    group in a microbatch; that program is compiled but not run.
    """
    model_config, mesh, naive = _model_config(job, work), _mesh(), job["engine"] == "naive"
    with jax.set_mesh(mesh):
        train_batch, layout = build_batch(work, naive, job.get("microbatch", 1), mesh)
        spec = UpdateSpec(model_config, OPTIMIZER, 1000, layout)
        train_state = state.create_state(huggingface.load_params(job["weights"], model_config, mesh), spec)
        sizes: Facts = {}
        compiled: Any = None

    def run() -> Facts:
        nonlocal train_state, compiled
        with jax.set_mesh(mesh):
            first = compiled is None
            if first:
                compiled = state.update.lower(train_state, train_batch, grpo_loss, LOSS, spec).compile()
                sizes["temporaries"] = _temporary_bytes(compiled)
                if naive:
                    group_batch, _ = build_batch(work, naive, work.samples, mesh)
                    by_group = state.update.lower(train_state, group_batch, grpo_loss, LOSS, spec).compile()
                    sizes["temporaries_of_a_group"] = _temporary_bytes(by_group)
            train_state, sums = compiled(train_state, train_batch)
            means = state.mean_metrics(sums)
            jax.block_until_ready(train_state)
        if first and job.get("gradient"):
            _write_gradient(train_state, job["gradient"])
        return {"loss": means["loss"], **sizes, **_device_peak()}

    return run


def _temporary_bytes(compiled: Any) -> int:
    return int(compiled.memory_analysis().temp_size_in_bytes)


def _write_gradient(train_state: TrainState, path: str) -> None:
    """Writes the gradient of the first step: Adam's first moment divided by (1 − b1)."""
    leaves = jax.tree_util.tree_leaves_with_path(train_state.opt_state)
    moments = [leaf for path_keys, leaf in leaves if any(getattr(key, "name", "") == "mu" for key in path_keys)]
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in moments])
    np.save(path, flat / (1 - OPTIMIZER.b1))
