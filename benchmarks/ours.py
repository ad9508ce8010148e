"""Our sampler and our update as the benchmarks run them, shared (`ours`) or with each prompt repeated (`naive`)."""

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
from sqlr1_jax.rollout.engine import Engine, Request
from sqlr1_jax.train import batch, state
from sqlr1_jax.train.batch import Batch
from sqlr1_jax.train.state import TrainState, UpdateSpec

LOSS = config.GrpoConfig(kl=0.0, entropy=0.0)
OPTIMIZER = config.OptimizerConfig(learning_rate=1e-6, clip_norm=0.0)


def _model(job: dict[str, Any], work: Workload) -> Qwen2Config:
    dtype = "float32" if job["platform"] == "cpu" else "bfloat16"
    return dataclasses.replace(work.config, dtype=dtype, **job.get("model", {}))


def _mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(config.MeshConfig(), jax.devices()[:1])


def _on_device() -> Facts:
    """Peak bytes where the device keeps its own memory."""
    stats = jax.devices()[0].memory_stats() if jax.devices()[0].platform != "cpu" else None
    return {"peak_bytes": int(stats["peak_bytes_in_use"])} if stats else {}


def rollout(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """One call samples every completion to its planned length."""
    model, mesh = _model(job, work), _mesh()
    engine = Engine(model, sharding.sampling_mesh(mesh, model.num_kv_heads), (), work.prompt, config.RolloutConfig())
    weights = engine.prepare_weights(huggingface.load_params(job["weights"], model, mesh))
    prompts, samples, limit_PG = list(work.prompts_PS()), work.samples, work.lengths_PG()
    if job["engine"] == "naive":
        prompts, samples, limit_PG = [p for p in prompts for _ in range(samples)], 1, limit_PG.reshape(-1, 1)
    asked = Request(prompts, samples, config.SamplingConfig(max_tokens=work.longest), seed=0, step=0, limit_PG=limit_PG)

    def run() -> Facts:
        made = engine.rollout(weights, asked)
        assert (made.length_PG == limit_PG).all(), "a sample is not as long as planned"
        return {"made": int(made.length_PG.sum()), **_on_device()}

    return run


def groups(work: Workload) -> list[Group]:
    """The workload as training groups; targets weigh 1, and the sampler's log-probabilities are those of chance."""
    chance = -np.log(work.config.vocab_size)

    def segment(p: int, g: int, last: int, ids: np.ndarray) -> Segment:
        ones = np.ones(len(ids), np.float32)
        return Segment(np.concatenate([[last], ids]), ones, chance * ones, p, g)

    def group(p: int, prompt: np.ndarray) -> Group:
        lengths_G, ids_GT = work.lengths_PG()[p], work.completions_PGT()[p]
        return Group(prompt[:-1], [segment(p, g, prompt[-1], ids_GT[g, :n]) for g, n in enumerate(lengths_G)])

    return [group(p, prompt) for p, prompt in enumerate(work.prompts_PS())]


def fed(work: Workload, naive: bool, microbatch: int, mesh: jax.sharding.Mesh) -> tuple[Batch, RowLayout]:
    """The step's rows: a group in each, or a completion with a prompt of its own."""
    made = packing.unshared(groups(work)) if naive else groups(work)
    layout = RowLayout(work.prompt, 1 if naive else work.samples, work.longest)
    rows = packing.shared_prefix_rows(made, layout)
    rows = rows._replace(weight=batch.loss_weights(rows, LOSS.aggregation))
    count = -(-len(made) // microbatch)
    return batch.assemble_batch(rows, mesh, microbatch, count, work.advantage_PG()), layout


def update(job: dict[str, Any], work: Workload) -> Callable[[], Facts]:
    """One call is one optimizer step. The first also writes its gradient to job["gradient"], where that is given.

    `temporaries` are the bytes that XLA asks for beside arguments and results; of the naive way also with a group a
    microbatch, which is compiled and never run.
    """
    model, mesh, naive = _model(job, work), _mesh(), job["engine"] == "naive"
    with jax.set_mesh(mesh):
        rows, layout = fed(work, naive, job.get("microbatch", 1), mesh)
        program = UpdateSpec(model, OPTIMIZER, 1000, layout)
        held = state.create_state(huggingface.load_params(job["weights"], model, mesh), program)
        sizes: Facts = {}
        compiled: Any = None

    def run() -> Facts:
        nonlocal held, compiled
        with jax.set_mesh(mesh):
            first = compiled is None
            if first:
                compiled = state.update.lower(held, rows, grpo_loss, LOSS, program).compile()
                sizes["temporaries"] = _temporaries(compiled)
                if naive:
                    whole, _ = fed(work, naive, work.samples, mesh)
                    by_group = state.update.lower(held, whole, grpo_loss, LOSS, program).compile()
                    sizes["temporaries_of_a_group"] = _temporaries(by_group)
            held, sums = compiled(held, rows)
            means = state.mean_metrics(sums)
            jax.block_until_ready(held)
        if first and job.get("gradient"):
            _write_gradient(held, job["gradient"])
        return {"loss": means["loss"], **sizes, **_on_device()}

    return run


def _temporaries(compiled: Any) -> int:
    return int(compiled.memory_analysis().temp_size_in_bytes)


def _write_gradient(held: TrainState, path: str) -> None:
    """Adam's first moment after one step is (1 − b1) times the gradient."""
    leaves = jax.tree_util.tree_leaves_with_path(held.opt_state)
    moments = [leaf for at, leaf in leaves if any(getattr(key, "name", "") == "mu" for key in at)]
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in moments])
    np.save(path, flat / (1 - OPTIMIZER.b1))
