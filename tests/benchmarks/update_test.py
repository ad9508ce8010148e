from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import update


def test_tunix_runs_two_samples_and_ours_is_also_measured_on_two() -> None:
    options: dict[str, dict[str, Any]] = {"ours": {"gradient": "ours.npy"}, "trl": {"microbatch": 4}}
    jobs = update.build_jobs(shapes.UPDATE["w3"], ["naive", "trl", "tunix"], {"task": "update"}, options)
    assert {name: job["workload"]["samples"] for name, job in jobs.items()} == {
        "ours": 8, "naive": 8, "trl": 8, "tunix": 2, "ours_at_2": 2,
    }  # fmt: skip
    assert jobs["trl"]["microbatch"] == 4
    assert jobs["ours_at_2"]["engine"] == "ours" and not jobs["ours_at_2"]["gradient"]
    assert "ours_at_2" not in update.build_jobs(shapes.UPDATE["w3-1x2"], ["tunix"], {}, {})


def test_gradient_distance_is_relative(tmp_path: Path) -> None:
    assert update.gradient_distance(tmp_path) is None
    np.save(tmp_path / "naive.npy", np.array([3.0, 4.0]))
    np.save(tmp_path / "ours.npy", np.array([3.0, 4.5]))
    assert update.gradient_distance(tmp_path) == pytest.approx(0.1)
