from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sqlr1_jax import config, config_checks, pipeline
from sqlr1_jax.evaluate import run as evaluation
from sqlr1_jax.pipeline import Pipeline
from sqlr1_jax.sql.executor import ExecutorError
from sqlr1_jax.train import sft, state
from sqlr1_jax.train.context import RunContext, abstract_params, create_context


def _settings(workdir: Path) -> config.Config:
    return config.freeze(json.loads((workdir / "config.json").read_text()))


def _contents(workdir: Path) -> dict[str, bytes]:
    """Every file's bytes but logs, TensorBoard's and what Orbax notes about itself."""
    left_out = ("log.txt", "tensorboard", "summary.json", "report.html")
    files = [path for path in workdir.rglob("*") if path.is_file()]
    named = {str(path.relative_to(workdir)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith(left_out)}


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished stage ran again")


def test_finished_stage_is_not_run_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run")
    cfg, before = _settings(workdir), _contents(workdir)
    monkeypatch.setattr(state, "update", _refuse)
    monkeypatch.setattr(evaluation, "sample_texts", _refuse)
    monkeypatch.setattr(pipeline.huggingface, "save_model", _refuse)
    with Pipeline(cfg, workdir) as running:
        for name in cfg.stages:
            getattr(running, name)()
    after = _contents(workdir)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


def test_every_name_that_a_config_may_list_is_a_stage() -> None:
    assert all(callable(getattr(Pipeline, name)) for name in config_checks.STAGES)


@pytest.mark.parametrize("listed", [("sft", "evaluate"), ("sft",)])
def test_the_cold_start_is_evaluated_if_evaluation_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: tuple[str, ...]
) -> None:
    evaluated: list[tuple[str, str]] = []
    trained = state.TrainState(jnp.int32(7), {"w": 1}, ())
    monkeypatch.setattr(sft, "train", lambda context: trained)
    monkeypatch.setattr(
        evaluation, "evaluate", lambda context, name, params, of, executor: evaluated.append((name, of))
    )
    monkeypatch.setattr(
        Pipeline, "context", SimpleNamespace(config=config.Config(), workdir=tmp_path, full_params=dict)
    )
    monkeypatch.setattr(Pipeline, "executor", None)
    Pipeline(dataclasses.replace(config.Config(), stages=listed), tmp_path).sft()
    assert evaluated == ([("sft", "sft, step 7")] if "evaluate" in listed else [])


def _children() -> set[str]:
    """Ids of this process's children."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {number for task in tasks for number in task.read_text().split()}


def test_the_executor_is_closed_with_the_pipeline(tmp_path: Path, pets: Path) -> None:
    cfg = dataclasses.replace(config.Config(), execute=config.ExecuteConfig(workers=1))
    before = _children()
    with Pipeline(cfg, tmp_path) as running:
        assert running.executor.run(pets, "SELECT 1").result().kind == "ok"
        assert running.executor is running.executor
        assert _children() != before
    assert _children() == before
    with pytest.raises(ExecutorError, match="closed"):
        running.executor.run(pets, "SELECT 1")


@pytest.mark.parametrize("step", ["last", "0", "2"])
def test_an_export_has_the_chosen_steps_weights_bit_for_bit(finished: Path, tmp_path: Path, step: str) -> None:
    cfg = dataclasses.replace(_settings(finished), export=config.ExportConfig(step=step))
    context = create_context(cfg, finished)
    pipeline.export_model(context, tmp_path / "out")
    checkpoints = context.checkpoints("grpo")
    at = checkpoints.latest() if step == "last" else int(step)
    assert at is not None
    embed = checkpoints.load(at, {"params": abstract_params(context.model, context.mesh)})["params"]["embed"]
    written = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    assert written.tobytes() == np.asarray(embed).tobytes()


def test_the_export_of_a_default_run_is_its_last_checkpoint_to_the_bit(finished: Path) -> None:
    cfg = _settings(finished)
    assert cfg.export == config.ExportConfig()
    context = create_context(cfg, finished)
    checkpoints = context.checkpoints("grpo")
    assert checkpoints.latest() == cfg.grpo.steps
    params = checkpoints.load(cfg.grpo.steps, {"params": abstract_params(context.model, context.mesh)})["params"]
    written = load_file(finished / "export" / "model.safetensors")
    assert written["model.embed_tokens.weight"].tobytes() == np.asarray(params["embed"]).tobytes()
    for name, key in (("down", "mlp.down_proj"), ("gate", "mlp.gate_proj")):
        layer = np.ascontiguousarray(np.asarray(params["layers"][name])[0].T)
        assert written[f"model.layers.0.{key}.weight"].tobytes() == layer.tobytes()


def test_grpo_moved_the_weights_that_the_cold_start_left(finished: Path) -> None:
    """And began from them: its step 0 is the cold start's last."""
    context = create_context(_settings(finished), finished)
    params = [
        context.checkpoints(stage).load(step, {"params": abstract_params(context.model, context.mesh)})["params"]
        for stage, step in (("sft", 0), ("sft", 4), ("grpo", 0), ("grpo", 4))
    ]
    embeds = [np.asarray(one["embed"]) for one in params]
    downs = [np.asarray(one["layers"]["down"]) for one in params]
    np.testing.assert_array_equal(embeds[0], embeds[1])  # frozen in tiny's cold start
    assert (downs[0] != downs[1]).any()
    np.testing.assert_array_equal(embeds[1], embeds[2])
    np.testing.assert_array_equal(downs[1], downs[2])
    assert (embeds[2] != embeds[3]).any() and (downs[2] != downs[3]).any()


def test_run_without_training_exports_its_initial_weights(context: RunContext, home: Path, tmp_path: Path) -> None:
    pipeline.export_model(context, tmp_path / "out")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", home / "model"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
