from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sqlr1_jax.synth import worker
from sqlr1_jax.synth.families import FAMILIES
from sqlr1_jax.synth.worker import Job

SPLITS = {"sft": (5, 4), "newnames": (3, 4)}


def test_families_are_assigned_by_their_shares() -> None:
    counts = collections.Counter(worker.assign_families(0, "heldout", 600))
    total = sum(family.share for family in FAMILIES.values())
    assert sum(counts.values()) == 600
    for name, family in FAMILIES.items():
        assert abs(counts[name] - 600 * family.share / total) < 1
    assert worker.assign_families(0, "heldout", 600) != worker.assign_families(1, "heldout", 600)
    assert worker.assign_families(0, "heldout", 600) != worker.assign_families(0, "grpo", 600)


def test_shares_together_make_all_databases(tmp_path: Path) -> None:
    everything = list(worker.make(Job(str(tmp_path), 3, 0.75, SPLITS)))
    parts = [list(worker.make(Job(str(tmp_path), 3, 0.75, SPLITS, share, 3))) for share in range(3)]
    assert sorted(json.dumps(item) for part in parts for item in part) == sorted(map(json.dumps, everything))
    assert len(everything) == 8


def test_a_worker_never_imports_jax(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise ImportError('no JAX here')\n")
    job = Job(str(tmp_path / "out"), 0, 0.75, {"grpo": (2, 2)})
    root = Path(worker.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "sqlr1_jax.synth.worker"],
        input=json.dumps(job.__dict__),
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{tmp_path}:{root}"},
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == list(worker.make(job))


def test_the_error_names_a_database_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "is_sound", lambda connection, query: False)
    with pytest.raises(worker.SynthError, match=r"grpo, database 0: none of 50 random databases has a question"):
        list(worker.make(Job(str(tmp_path), 0, 0.0, {"grpo": (1, 1)})))
