from __future__ import annotations

import json
from pathlib import Path

import pytest

from sqlr1_jax import config
from sqlr1_jax.report.__main__ import main


def test_the_page_is_rewritten_from_the_current_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict(config.Config())))
    main([f"--workdir={tmp_path}"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "No evaluation yet." in (tmp_path / "report.html").read_text()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"stage": "sft", "step": 1, "loss": 6.25}) + "\n")
    main([f"--workdir={tmp_path}"])
    assert "6.25" in (tmp_path / "report.html").read_text()


def test_a_folder_that_is_not_a_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: {tmp_path} is not a run's folder"):
        main([f"--workdir={tmp_path}"])
