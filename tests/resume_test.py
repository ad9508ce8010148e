from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config, config_tree, resume
from sqlr1_jax.errors import ConfigError
from testing import tiny_runs

LEAVES = config_tree.leaves(config.as_dict(config.Config()))


def _changed(path: str, value: Any) -> config.Config:
    """The defaults with one value put in its place, unchecked."""

    def put(node: Any, names: list[str]) -> Any:
        new = value if len(names) == 1 else put(getattr(node, names[0]), names[1:])
        return dataclasses.replace(node, **{names[0]: new})

    changed: config.Config = put(config.Config(), path.split("."))
    return changed


@given(st.sampled_from(LEAVES))
def test_differences_have_every_setting_that_is_not_free(leaf: tuple[str, Any]) -> None:
    path, value = leaf
    differences = resume.differences(config.Config(), _changed(path, "other"))
    if path in resume.FREE:
        assert differences == {}
    else:
        assert differences == {path: f"config.{path}: {value!r} in the run, 'other' now"}


def test_no_setting_is_free_in_two_ways() -> None:
    free = [*resume.FREE, *resume.FREE_UP_TO_ROUNDING]
    assert len(set(free)) == len(free) and set(free) <= {path for path, _ in LEAVES}


def test_a_value_that_was_refused_late_can_be_corrected(home: Path, tmp_path: Path) -> None:
    """The first command failed after config.json was written, since its mesh fits no machine."""
    workdir = tmp_path / "run"
    resume.claim(tiny_runs.tiny_config(model__path=str(home / "model"), mesh__tensor=7), workdir)
    corrected = tiny_runs.tiny_config(model__path=str(home / "model"), mesh__tensor=1, seed=3)
    (workdir / "checkpoints" / "grpo" / "0").mkdir(parents=True)
    resume.claim(corrected, workdir)
    assert config.load(workdir / "config.json") == corrected
    assert not (workdir / "checkpoints").exists(), "the initial weights were those of another seed"
    (workdir / "checkpoints" / "grpo" / "2").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config\.seed: 3 in the run, 4 now"):
        resume.claim(dataclasses.replace(corrected, seed=4), workdir)


def test_a_run_may_resume_under_settings_free_to_change(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("data", "checkpoints", "export"))
    run_config = config.freeze(json.loads((tmp_path / "run" / "config.json").read_text()))
    longer = tiny_runs.tiny_config(
        model__path=run_config.model.path, grpo__steps=9, evaluate__every=5, checkpoint__keep=7
    )
    resume.claim(longer, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == json.loads(json.dumps(config.as_dict(longer)))


def test_a_run_goes_on_with_other_hardware_and_says_that_bits_change(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("data", "checkpoints", "export"))
    run_config = config.load(tmp_path / "run" / "config.json")
    mesh = dataclasses.replace(run_config.mesh, fsdp=2, tensor=4)
    resume.claim(dataclasses.replace(run_config, mesh=mesh), tmp_path / "run")
    assert "config.mesh.tensor: 1 in the run, 4 now" in caplog.text and "equal up to rounding" in caplog.text
    assert config.load(tmp_path / "run" / "config.json").mesh == mesh
