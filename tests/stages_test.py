from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from sqlr1_jax import config, stages
from sqlr1_jax.evaluate import stage as evaluation
from sqlr1_jax.stages import Stages
from sqlr1_jax.train import run as runs
from sqlr1_jax.train import sft, state


def _settings(workdir: Path) -> config.Config:
    return config.freeze(json.loads((workdir / "config.json").read_text()))


def _contents(workdir: Path) -> dict[str, bytes]:
    """Every file's bytes but logs, TensorBoard's and what Orbax notes about itself."""
    left_out = ("log.txt", "tensorboard", "summary.json", "report.html")
    files = [path for path in workdir.rglob("*") if path.is_file()]
    named = {str(path.relative_to(workdir)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith(left_out)}


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("done work was done again")


def test_every_stage_that_is_done_does_nothing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run")
    cfg, before = _settings(workdir), _contents(workdir)
    monkeypatch.setattr(state, "update", _refuse)
    monkeypatch.setattr(evaluation, "completions", _refuse)
    monkeypatch.setattr(stages.huggingface, "save", _refuse)
    with Stages(cfg, workdir) as session:
        for name in cfg.stages:
            getattr(session, name)()
    after = _contents(workdir)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


def test_every_name_that_a_config_may_list_is_a_stage() -> None:
    assert all(callable(getattr(Stages, name)) for name in config.STAGES)


@pytest.mark.parametrize("listed", [("cold_start", "evaluate"), ("cold_start",)])
def test_the_cold_start_is_evaluated_where_evaluation_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: tuple[str, ...]
) -> None:
    told: list[tuple[str, str]] = []
    trained = state.TrainState(np.int32(7), {"w": 1}, ())
    monkeypatch.setattr(sft, "run_stage", lambda run: trained)
    monkeypatch.setattr(evaluation, "evaluate", lambda run, name, params, of, executor: told.append((name, of)))
    monkeypatch.setattr(Stages, "run", SimpleNamespace(workdir=tmp_path))
    monkeypatch.setattr(Stages, "executor", None)
    Stages(dataclasses.replace(config.Config(), stages=listed), tmp_path).cold_start()
    assert told == ([("cold_start", "cold_start, step 7")] if "evaluate" in listed else [])


def test_the_executor_is_closed_with_the_stages(tmp_path: Path) -> None:
    cfg = dataclasses.replace(config.Config(), execute=config.Execute(workers=1))
    with Stages(cfg, tmp_path) as session:
        pool = session.executor
        pids = [worker.pid for worker in pool.workers]
        assert session.executor is pool
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("step", ["last", "0", "2"])
def test_an_export_is_the_step_asked_for_in_float32_to_the_bit(finished: Path, tmp_path: Path, step: str) -> None:
    cfg = dataclasses.replace(_settings(finished), export=config.Export(step=step))
    run = runs.start(cfg, finished)
    stages.export(run, tmp_path / "out")
    checkpoints = run.checkpoints("grpo")
    at = checkpoints.latest() if step == "last" else int(step)
    assert at is not None
    embed = checkpoints.load(at, {"params": runs.abstract(run)})["params"]["embed"]
    written = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    assert written.tobytes() == np.asarray(embed).tobytes()


def test_grpo_moved_the_weights_that_the_cold_start_left(finished: Path) -> None:
    """And began from them: its step 0 is the cold start's last."""
    run = runs.start(_settings(finished), finished)
    params = [
        run.checkpoints(stage).load(step, {"params": runs.abstract(run)})["params"]
        for stage, step in (("cold_start", 0), ("cold_start", 4), ("grpo", 0), ("grpo", 4))
    ]
    embeds = [np.asarray(one["embed"]) for one in params]
    downs = [np.asarray(one["layers"]["down"]) for one in params]
    np.testing.assert_array_equal(embeds[0], embeds[1])  # frozen in tiny's cold start
    assert (downs[0] != downs[1]).any()
    np.testing.assert_array_equal(embeds[1], embeds[2])
    np.testing.assert_array_equal(downs[1], downs[2])
    assert (embeds[2] != embeds[3]).any() and (downs[2] != downs[3]).any()


def test_a_run_that_trained_nothing_exports_what_it_began_with(run: runs.Run, home: Path, tmp_path: Path) -> None:
    stages.export(run, tmp_path / "out")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", home / "model"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
