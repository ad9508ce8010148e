from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from sqlr1_jax import config, hosts
from sqlr1_jax.train import metrics


def test_alone_a_process_is_first_and_has_everything() -> None:
    assert hosts.first()
    assert [*range(7)][hosts.share(7)] == [*range(7)]
    assert hosts.total(2.5) == 2.5
    assert hosts.largest(3) == 3
    assert hosts.gather("here") == ["here"]
    arrays = {"x_PG": np.ones((2, 3))}
    assert hosts.rows(arrays) is arrays
    hosts.wait("nothing")


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_follow_each_other_and_leave_nothing_out(count: int, of: int) -> None:
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: of)
        for here in range(of):
            patch.setattr(jax, "process_index", lambda here=here: here)
            parts.append([*range(count)][hosts.share(count)])
    assert [one for part in parts for one in part] == [*range(count)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_who_the_others_are_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: _raise("coordinator_address should be defined."))
    with pytest.raises(config.ConfigError, match="JAX_COORDINATOR_ADDRESS"):
        hosts.join()


def _raise(why: str) -> None:
    raise ValueError(why)


_TALK = """
import json, numpy as np
from sqlr1_jax import hosts
hosts.join()
rank = 0 if hosts.first() else 1
hosts.wait("here")
rows = hosts.rows({"a_PG": np.full((2, 3), rank, np.int64) + 2**40, "b_P": np.asarray([rank == 1, True])})
print(json.dumps([hosts.total(0.5 + rank), hosts.largest(5 - rank), hosts.gather({"host": rank, "x": "y" * rank}),
                  rows["a_PG"].tolist(), rows["b_P"].tolist(), str(rows["a_PG"].dtype)]))
"""


def test_two_processes_tell_each_other(tmp_path: Path) -> None:
    """Sums, the largest, whole objects of unlike sizes, and rows of 64-bit numbers and of flags."""
    said = runs.on_hosts(tmp_path, ["-c", _TALK])
    assert said[0] == said[1]
    first, second = [2**40] * 3, [2**40 + 1] * 3
    assert json.loads(said[0]) == [
        2.0, 5, [{"host": 0, "x": ""}, {"host": 1, "x": "y"}], [first, first, second, second],
        [False, True, True, True], "int64",
    ]  # fmt: skip


def _mesh(tensor: int, rows: int = 4) -> Any:
    """Meshes of four devices a row, two hosts: rows belong to them in turn halves."""
    devices = np.asarray([SimpleNamespace(process_index=i * 2 // (rows * tensor)) for i in range(rows * tensor)])
    shape = {"replica": 1, "fsdp": rows, "tensor": tensor}
    return SimpleNamespace(devices=devices.reshape(1, rows, tensor), shape=shape)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"grpo__prompts": 6}, "grpo.prompts"),
        ({"evaluate__prompts": 10}, "evaluate.prompts"),
        ({"grpo__rows__per_microbatch": 1}, "grpo.rows.per_microbatch"),
        ({"cold_start__rows__per_microbatch": 3}, "cold_start.rows.per_microbatch"),
        ({"cold_start__databases": 3}, "cold_start.databases"),
    ],
)
def test_a_batch_that_does_not_part_evenly_is_refused(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, int], key: str
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    fits = {"grpo__prompts": 8, "evaluate__prompts": 8, "cold_start__databases": 4}
    hosts.check(runs.settings(**fits), _mesh(1), _mesh(1))
    with pytest.raises(config.ConfigError, match=f"config.{key} "):
        hosts.check(runs.settings(**fits | changed), _mesh(1), _mesh(1))


def test_a_row_must_stay_on_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(config.ConfigError, match=r"config\.mesh\.tensor"):
        hosts.check(runs.settings(mesh__tensor=4), _mesh(4, rows=1), _mesh(4, rows=1))


def test_two_hosts_make_the_run_of_one(home: Path, finished: Path, tmp_path: Path) -> None:
    """The same questions, samples, outcomes and advantages; numbers and weights but for the order of sums."""
    workdir = runs.begin(home, tmp_path / "run")
    halved = {"grpo__rows__per_microbatch": 1, "cold_start__rows__per_microbatch": 1}
    runs.on_hosts(home, ["-m", "sqlr1_jax.main", "--distributed", *runs.flags(home, workdir, **halved)])
    assert "over 2 hosts" in (workdir / "log.txt").read_text()
    ours, theirs = (metrics.read(folder / "metrics.jsonl") for folder in (workdir, finished))
    for line, other in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm", "tokens", "reward/mean", "kl", "entropy", "outcome/bad_format"):
            if name in other:
                assert line[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), (name, line["step"])
    for step in (1, 4):
        name = f"rollouts/step_{step:06d}.jsonl"
        ours, theirs = ([json.loads(text) for text in (folder / name).open()] for folder in (workdir, finished))
        for one, other in zip(ours, theirs, strict=True):
            assert one["id"] == other["id"]
            assert [sample["text"] for sample in one["samples"]] == [sample["text"] for sample in other["samples"]]
    weights = [load_file(folder / "export" / "model.safetensors") for folder in (workdir, finished)]
    for name, values in weights[1].items():
        np.testing.assert_allclose(weights[0][name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    figures = [json.loads((folder / "summary.json").read_text())["final"] for folder in (workdir, finished)]
    assert figures[0] == figures[1]
