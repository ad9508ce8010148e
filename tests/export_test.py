from __future__ import annotations

import json

import pytest

from sqlr1_jax import config, export


def test_a_folder_without_a_run_is_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match=f"error: {tmp_path} holds no run"):
        export.main([f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "message"), [("--step=newest", "it takes best, last"), ("--dtype=int8", "export.dtype")]
)
def test_a_setting_that_cannot_work_is_named(tmp_path, flag: str, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict(config.Config())))
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        export.main([f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}", flag])
    assert not (tmp_path / "out").exists()
