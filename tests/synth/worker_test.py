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


def test_families_are_dealt_by_their_shares() -> None:
    dealt = collections.Counter(worker.assign(0, "heldout", 600))
    total = sum(family.share for family in FAMILIES.values())
    assert sum(dealt.values()) == 600
    for name, family in FAMILIES.items():
        assert abs(dealt[name] - 600 * family.share / total) < 1
    assert worker.assign(0, "heldout", 600) != worker.assign(1, "heldout", 600)
    assert worker.assign(0, "heldout", 600) != worker.assign(0, "grpo", 600)


def test_shares_together_are_the_whole(tmp_path: Path) -> None:
    whole = list(worker.make(Job(str(tmp_path), 3, 0.75, SPLITS)))
    parts = [list(worker.make(Job(str(tmp_path), 3, 0.75, SPLITS, share, 3))) for share in range(3)]
    assert sorted(json.dumps(item) for part in parts for item in part) == sorted(map(json.dumps, whole))
    assert len(whole) == 8


def test_a_worker_starts_where_importing_jax_raises(tmp_path: Path) -> None:
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


def test_a_place_that_cannot_be_filled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "sound", lambda connection, query: False)
    with pytest.raises(worker.SynthError, match=r"grpo, place 0: no database of 50 carries all of"):
        list(worker.make(Job(str(tmp_path), 0, 0.0, {"grpo": (1, 1)})))
