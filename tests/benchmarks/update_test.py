from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import update


def test_tunix_takes_two_samples_and_ours_is_measured_on_two_as_well() -> None:
    options: dict[str, dict[str, Any]] = {"ours": {"gradient": "here.npy"}, "trl": {"microbatch": 4}}
    jobs = update.jobs(shapes.UPDATE["w3"], ["naive", "trl", "tunix"], {"task": "update"}, options)
    assert {name: job["workload"]["samples"] for name, job in jobs.items()} == {
        "ours": 8, "naive": 8, "trl": 8, "tunix": 2, "ours_at_2": 2,
    }  # fmt: skip
    assert jobs["trl"]["microbatch"] == 4
    assert jobs["ours_at_2"]["engine"] == "ours" and not jobs["ours_at_2"]["gradient"]
    assert "ours_at_2" not in update.jobs(shapes.UPDATE["w3-1x2"], ["tunix"], {}, {})


def test_the_gradients_distance_is_relative(tmp_path: Path) -> None:
    assert update.gradient_distance(tmp_path) is None
    np.save(tmp_path / "naive.npy", np.array([3.0, 4.0]))
    np.save(tmp_path / "ours.npy", np.array([3.0, 4.5]))
    assert update.gradient_distance(tmp_path) == pytest.approx(0.1)
