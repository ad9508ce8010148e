from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from sqlr1_jax import config
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.train import metrics
from testing import tiny_runs


def test_a_single_process_is_first_and_has_everything() -> None:
    assert collectives.is_primary()
    assert [*range(7)][collectives.local_slice(7)] == [*range(7)]
    assert collectives.global_sum(2.5) == 2.5
    assert collectives.global_max(3) == 3
    assert collectives.allgather_objects("here") == ["here"]
    assert collectives.broadcast("here") == "here"
    arrays = {"x_PG": np.ones((2, 3))}
    assert collectives.allgather_arrays(arrays) is arrays
    with pytest.raises(KeyError), collectives.sync_errors():
        raise KeyError


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_consecutive_even_and_complete(count: int, of: int) -> None:
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "count", lambda: of)
        for here in range(of):
            patch.setattr(collectives, "index", lambda here=here: here)
            parts.append([*range(count)][collectives.local_slice(count)])
    assert [one for part in parts for one in part] == [*range(count)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_unknown_coordinator_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: _raise("coordinator_address should be defined."))
    with pytest.raises(ConfigError, match="JAX_COORDINATOR_ADDRESS"):
        collectives.initialize()


def _raise(why: str) -> None:
    raise ValueError(why)


_TALK = """
import json, numpy as np
from sqlr1_jax.distributed import collectives
collectives.initialize()
rank = 0 if collectives.is_primary() else 1
failures = []
for failing in ([], [1], [0, 1]):
    try:
        with collectives.sync_errors():
            if rank in failing:
                raise KeyError(rank)
        failures.append(None)
    except KeyError as error:
        failures.append(error.args[0])
assert failures == [None, 1, rank], failures
assert collectives.broadcast(rank) == 0
arrays = {"a_PG": np.full((2, 3), rank, np.int64) + 2**40, "b_P": np.asarray([rank == 1, True])}
rows = collectives.allgather_arrays(arrays)
print(json.dumps([collectives.global_sum(0.5 + rank), collectives.global_max(5 - rank),
                  collectives.allgather_objects({"host": rank, "x": "y" * rank}),
                  rows["a_PG"].tolist(), rows["b_P"].tolist(), str(rows["a_PG"].dtype)]))
"""


def test_two_processes_exchange_numbers_objects_and_rows(tmp_path: Path) -> None:
    """Sums, the largest, whole objects of unlike sizes, and rows of 64-bit numbers and of flags."""
    said = tiny_runs.run_on_hosts(tmp_path, ["-c", _TALK])
    assert said[0] == said[1]
    first, second = [2**40] * 3, [2**40 + 1] * 3
    assert json.loads(said[0]) == [
        2.0, 5, [{"host": 0, "x": ""}, {"host": 1, "x": "y"}], [first, first, second, second],
        [False, True, True, True], "int64",
    ]  # fmt: skip


def _mesh(tensor: int, tiles: bool = False) -> Any:
    """A mesh of two hosts with four devices each, as make_mesh arranges them; `tiles`: ids take turns by pairs."""
    made = [SimpleNamespace(id=i, process_index=(i // 2) % 2 if tiles else i // 4) for i in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "Mesh", lambda devices, axes, axis_types: SimpleNamespace(
            devices=devices, shape=dict(zip(axes, devices.shape, strict=True))))  # fmt: skip
        return sharding.make_mesh(config.MeshConfig(tensor=tensor), made)  # type: ignore[arg-type]


FITS: dict[str, Any] = {"stages": ("sft", "grpo", "evaluate"), "grpo__prompts": 16,
        "evaluate__max_concurrent_prompts": 8, "sft__databases": 4,
        "grpo__rows__per_microbatch": 4, "sft__rows__per_microbatch": 4}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "key", "stage"),
    [
        ({"grpo__prompts": 12}, "grpo.prompts", "grpo"),
        ({"rollout__max_concurrent_prompts": 6}, "rollout.max_concurrent_prompts", "grpo"),
        ({"evaluate__max_concurrent_prompts": 10}, "evaluate.max_concurrent_prompts", "evaluate"),
        ({"grpo__rows__per_microbatch": 2}, "grpo.rows.per_microbatch", "grpo"),
        ({"sft__rows__per_microbatch": 3}, "sft.rows.per_microbatch", "sft"),
        ({"sft__databases": 3}, "sft.databases", "sft"),
    ],
)
def test_a_batch_that_does_not_divide_among_hosts_is_refused(changed: dict[str, int], key: str, stage: str) -> None:
    collectives.check_batch_sizes(tiny_runs.tiny_config(**FITS), _mesh(1), _mesh(1))
    with pytest.raises(ConfigError, match=f"config.{key} "):
        collectives.check_batch_sizes(tiny_runs.tiny_config(**FITS | changed), _mesh(1), _mesh(1))
    left_out = tuple(other for other in FITS["stages"] if other != stage)
    collectives.check_batch_sizes(tiny_runs.tiny_config(**FITS | changed | {"stages": left_out}), _mesh(1), _mesh(1))


@pytest.mark.parametrize("tiles", [False, True])
def test_a_row_stays_on_one_host_however_their_devices_are_numbered(tiles: bool) -> None:
    collectives.check_batch_sizes(tiny_runs.tiny_config(**FITS), _mesh(4, tiles), _mesh(4, tiles))
    with pytest.raises(ConfigError, match=r"config\.mesh\.tensor=8"):
        collectives.check_batch_sizes(tiny_runs.tiny_config(**FITS), _mesh(8, tiles), _mesh(8, tiles))


_STEP = """
import json, sys
from pathlib import Path
import jax
from testing import grpo_stages, tiny_runs
from sqlr1_jax import config
from sqlr1_jax.data import answer, order
from sqlr1_jax.distributed import collectives
from sqlr1_jax.rl import grpo, rollout_log, scoring
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import state
from sqlr1_jax.train.context import create_context, init_params
home, workdir, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if rows == 1:
    collectives.initialize()
bare = create_context(tiny_runs.tiny_config(model__path=str(home / "model"), grpo__prompts=4), workdir)
problems = scoring.load_prompts(bare)
chosen = order.batch_indices(len(problems.examples), 4, bare.config.seed, 0)
place = {problems.examples[i].id: p for p, i in enumerate(chosen)}

def say(example, g):
    right = place.get(example.id, 9) + g < 2
    return answer.write("tables" * (g + 1), example.sql if right else "SELECT 'wrong'", "reasoning")

found = []
with Executor(config.ExecuteConfig(workers=1)) as pool:
    for changed in ({}, {"normalize": "parts"}, {"shuffled": True}):
        cfg = config.AdvantageConfig(**changed)
        rows_cfg = config.RowsConfig(per_microbatch=rows)
        context = grpo_stages.with_settings(bare, samples=3, advantage=cfg, rows=rows_cfg, old_logprobs="trainer")
        stage = grpo_stages.scripted_stage(context, pool, say)
        with jax.set_mesh(context.mesh):
            taken = grpo.train_step(stage, state.create_state(init_params(context), stage.update_spec), 0)
        values = grpo_stages.values_of(taken)
        lines = [json.loads(line) for line in rollout_log.path(workdir, 1).open()] if collectives.is_primary() else []
        advantages = [[sample["advantage"] for sample in line["samples"]] for line in lines]
        names = "loss", "grad_norm", "groups/mixed", "outcome/match", "reward/std", "tokens"
        found.append([[values[name] for name in names], taken.items, collectives.broadcast(advantages)])
print(json.dumps(found))
"""


@pytest.mark.nightly  # the run below goes through the same step; this one through every form of advantages
def test_two_hosts_take_the_same_step_as_one(home: Path, tmp_path: Path) -> None:
    """The first host has the mixed groups and the other's are all filtered; advantages follow the whole batch."""
    for name in ("one", "two"):
        tiny_runs.folder_with_data(home, tmp_path / name)
    alone = (
        tiny_runs.run_python(home, ["-c", _STEP, str(home), str(tmp_path / "one"), "2"])
        .stdout.strip()
        .rpartition("\n")[2]
    )
    said = tiny_runs.run_on_hosts(home, ["-c", _STEP, str(home), str(tmp_path / "two"), "1"])
    assert said[0] == said[1]
    for one, two in zip(json.loads(alone), json.loads(said[0]), strict=True):
        (values, items, advantages), (our_values, our_items, our_advantages) = one, two
        assert our_items == items
        assert our_values == pytest.approx(values, rel=1e-4)
        np.testing.assert_allclose(our_advantages, advantages, rtol=1e-5)
        assert np.abs(advantages[:2]).max(axis=1).min() > 0.1
        assert not np.any(advantages[2:])


HALVED = {"grpo__rows__per_microbatch": 1, "sft__rows__per_microbatch": 1}  # rows of one of two hosts


def test_two_hosts_make_the_same_run_as_one(home: Path, finished: Path, tmp_path: Path) -> None:
    workdir = tiny_runs.folder_with_data(home, tmp_path / "run")
    tiny_runs.run_on_hosts(
        home, ["-m", "sqlr1_jax.main", "--distributed", *tiny_runs.command_line(home, workdir, **HALVED)]
    )
    assert "over 2 hosts" in (workdir / "log.txt").read_text()
    assert_same_run(workdir, finished)


@pytest.mark.nightly
def test_two_hosts_resume_from_a_checkpoint(home: Path, finished: Path, tmp_path: Path) -> None:
    two = tiny_runs.folder_with_data(home, tmp_path / "two")
    command = ["-m", "sqlr1_jax.main", "--distributed", *tiny_runs.command_line(home, two, **HALVED)]
    tiny_runs.run_on_hosts(home, command)
    shutil.rmtree(two / "checkpoints" / "grpo" / "4")
    for made in ("evaluation/final", "export"):
        shutil.rmtree(two / made)
    tiny_runs.run_on_hosts(home, command)
    assert "resuming at step 2" in (two / "log.txt").read_text()
    assert_same_run(two, finished)


def assert_same_run(workdir: Path, finished: Path) -> None:
    """The same questions, samples and outcomes from end to end; numbers and weights but for the order of sums."""
    ours, theirs = (metrics.read_metrics(folder / "metrics.jsonl") for folder in (workdir, finished))
    for line, other in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm", "tokens", "reward/mean", "kl", "entropy", "outcome/bad_format"):
            if name in other:
                assert line[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), (name, line["step"])
    for step in (1, 4):
        name = f"rollouts/step_{step:06d}.jsonl"
        ours, theirs = ([json.loads(text) for text in (folder / name).open()] for folder in (workdir, finished))
        for one, other in zip(ours, theirs, strict=True):
            assert one["id"] == other["id"]
            for name in ("text", "outcome", "reward"):
                assert [sample[name] for sample in one["samples"]] == [sample[name] for sample in other["samples"]]
    weights = [load_file(folder / "export" / "model.safetensors") for folder in (workdir, finished)]
    for name, values in weights[1].items():
        np.testing.assert_allclose(weights[0][name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    kept = "evaluation/final/greedy.jsonl", "evaluation/final/vote2.jsonl"
    assert all((workdir / name).read_text() == (finished / name).read_text() for name in kept)
    figures = [json.loads((folder / "summary.json").read_text())["final"] for folder in (workdir, finished)]
    assert figures[0] == figures[1]
