from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from testing.fake_runs import FakeRun, small_config


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., FakeRun]:
    """Makes a FakeRun in the test's folder; settings by keyword replace the config's top level."""
    return lambda **settings: FakeRun(tmp_path / "first", dataclasses.replace(small_config(), **settings))
