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


def test_a_single_process_is_primary_and_gets_its_own_values_back() -> None:
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
def test_local_slices_are_consecutive_even_and_complete(count: int, processes: int) -> None:
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "process_count", lambda: processes)
        for process in range(processes):
            patch.setattr(collectives, "process_index", lambda process=process: process)
            parts.append([*range(count)][collectives.local_slice(count)])
    assert [item for part in parts for item in part] == [*range(count)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_unknown_coordinator_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: _raise("coordinator_address should be defined."))
    with pytest.raises(ConfigError, match="JAX_COORDINATOR_ADDRESS"):
        collectives.initialize()


def _raise(message: str) -> None:
    raise ValueError(message)


_EXCHANGE = """
import json, numpy as np
from sqlr1_jax.distributed import collectives
collectives.initialize()
process = 0 if collectives.is_primary() else 1
raised = []
for failing in ([], [1], [0, 1]):
    try:
        with collectives.sync_errors():
            if process in failing:
                raise KeyError(process)
        raised.append(None)
    except KeyError as error:
        raised.append(error.args[0])
assert raised == [None, 1, process], raised
assert collectives.broadcast(process) == 0
arrays = {"a_PG": np.full((2, 3), process, np.int64) + 2**40, "b_P": np.asarray([process == 1, True])}
gathered = collectives.allgather_arrays(arrays)
print(json.dumps([collectives.global_sum(0.5 + process), collectives.global_max(5 - process),
                  collectives.allgather_objects({"process": process, "x": "y" * process}),
                  gathered["a_PG"].tolist(), gathered["b_P"].tolist(), str(gathered["a_PG"].dtype)]))
"""


def test_two_processes_exchange_numbers_objects_and_arrays(tmp_path: Path) -> None:
    """A sum, a maximum, objects of different sizes, and arrays of 64-bit integers and of bools."""
    outputs = tiny_runs.run_on_hosts(tmp_path, ["-c", _EXCHANGE])
    assert outputs[0] == outputs[1]
    first, second = [2**40] * 3, [2**40 + 1] * 3
    assert json.loads(outputs[0]) == [
        2.0, 5, [{"process": 0, "x": ""}, {"process": 1, "x": "y"}], [first, first, second, second],
        [False, True, True, True], "int64",
    ]  # fmt: skip


def _mesh(tensor: int, interleaved: bool = False) -> Any:
    """A mesh of two hosts with four devices each, from make_mesh.

    If `interleaved`, the device ids alternate between the hosts in pairs: 0 and 1 on host 0, 2 and 3 on host 1, …
    """
    devices = [SimpleNamespace(id=i, process_index=(i // 2) % 2 if interleaved else i // 4) for i in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "Mesh", lambda devices, axes, axis_types: SimpleNamespace(
            devices=devices, shape=dict(zip(axes, devices.shape, strict=True))))  # fmt: skip
        return sharding.make_mesh(config.MeshConfig(tensor=tensor), devices)  # type: ignore[arg-type]


DIVISIBLE: dict[str, Any] = {"stages": ("sft", "grpo", "evaluate"), "grpo__prompts": 16,
        "evaluate__max_concurrent_prompts": 8, "sft__databases": 4}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "key", "stage"),
    [
        ({"grpo__prompts": 15}, "grpo.prompts", "grpo"),
        ({"sft__databases": 3}, "sft.databases", "sft"),
    ],
)
def test_a_batch_that_does_not_divide_among_hosts_is_refused(changed: dict[str, int], key: str, stage: str) -> None:
    collectives.check_batch_sizes(tiny_runs.tiny_config(**DIVISIBLE), _mesh(1))
    with pytest.raises(ConfigError, match=f"config.{key} "):
        collectives.check_batch_sizes(tiny_runs.tiny_config(**DIVISIBLE | changed), _mesh(1))
    without_stage = {"stages": tuple(other for other in DIVISIBLE["stages"] if other != stage)}
    collectives.check_batch_sizes(tiny_runs.tiny_config(**DIVISIBLE | changed | without_stage), _mesh(1))


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_tensor_group_stays_on_one_host_for_any_device_ids(interleaved: bool) -> None:
    collectives.check_batch_sizes(tiny_runs.tiny_config(**DIVISIBLE), _mesh(4, interleaved))
    with pytest.raises(ConfigError, match=r"config\.mesh\.tensor=8"):
        collectives.check_batch_sizes(tiny_runs.tiny_config(**DIVISIBLE), _mesh(8, interleaved))


_STEP = """
import json, sys
from pathlib import Path
import jax
from testing import grpo_stages, tiny_runs
from sqlr1_jax import config
from sqlr1_jax.data import answer, order
from sqlr1_jax.distributed import collectives
from sqlr1_jax.rl import grpo, rollout_log, scoring
from sqlr1_jax.rl.prompt_set import load_prompts
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.train import state
from sqlr1_jax.train.context import create_context, init_params
home, workdir, rows_per_host = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if rows_per_host == 1:
    collectives.initialize()
run = create_context(tiny_runs.tiny_config(model__path=str(home / "model"), grpo__prompts=4), workdir)
prompt_set = load_prompts(run)
batch = order.batch_indices(len(prompt_set.examples), 12, run.config.seed, 0)  # each example once
position = {prompt_set.examples[i].id: p for p, i in enumerate(batch)}

def write(example, g):
    p = position[example.id]
    correct = p + g < 2 or g == 0 and p in (5, 6)
    return answer.write("tables" * (g + 1), example.sql if correct else "SELECT 'wrong'", "reasoning")

results = []
with Executor(config.ExecuteConfig(workers=1)) as executor:
    for refill, changed in ((0, {}), (0, {"normalize": "parts"}), (0, {"shuffled": True}), (2, {"normalize": "parts"})):
        advantage = config.AdvantageConfig(**changed)
        rows = config.RowsConfig(per_microbatch=rows_per_host)
        context = grpo_stages.with_settings(run, samples=3, advantage=advantage, rows=rows, old_logprobs="trainer",
            refill=refill)
        stage = grpo_stages.scripted_stage(context, executor, write)
        with jax.set_mesh(context.mesh):
            result = grpo.train_step(stage, state.create_state(init_params(context), stage.update_spec), 0)
        values = grpo_stages.values_of(result)
        lines = [json.loads(line) for line in rollout_log.path(workdir, 1).open()] if collectives.is_primary() else []
        advantages = [[sample["advantage"] for sample in line["samples"]] for line in lines]
        names = "loss", "grad_norm", "groups/mixed", "outcome/match", "reward/std", "tokens", "groups/trained"
        results.append([[values[name] for name in names], result.items, collectives.broadcast(advantages)])
print(json.dumps(results))
"""


@pytest.mark.nightly  # the run below covers one kind of advantages; this test covers all
def test_two_hosts_take_the_same_step_as_one(home: Path, tmp_path: Path) -> None:
    """Host 0 has the mixed groups, and those of host 1 are all filtered; advantages depend on the whole batch.

    A second round adds one of each host, so that host 0 has three of the four groups of the batch.
    """
    for name in ("one", "two"):
        tiny_runs.folder_with_data(home, tmp_path / name)
    done = tiny_runs.run_python(home, ["-c", _STEP, str(home), str(tmp_path / "one"), "2"])
    one_host = done.stdout.strip().rpartition("\n")[2]
    two_hosts = tiny_runs.run_on_hosts(home, ["-c", _STEP, str(home), str(tmp_path / "two"), "1"])
    assert two_hosts[0] == two_hosts[1]
    for expected, result in zip(json.loads(one_host), json.loads(two_hosts[0]), strict=True):
        values, items, advantages = expected
        assert result[1] == items
        assert result[0] == pytest.approx(values, rel=1e-4)
        np.testing.assert_allclose(result[2], advantages, rtol=1e-5)
        assert np.abs(advantages[:2]).max(axis=1).min() > 0.1
        trained = [p for p, group in enumerate(advantages) if np.any(group)]
        assert trained == ([0, 1] if len(advantages) == 4 else [0, 1, 5, 6])


HALVED = {"grpo__rows__per_microbatch": 1, "sft__rows__per_microbatch": 1}  # the same microbatches on two devices


def test_two_hosts_make_the_same_run_as_one(home: Path, finished: Path, tmp_path: Path) -> None:
    workdir = tiny_runs.folder_with_data(home, tmp_path / "run")
    tiny_runs.run_on_hosts(
        home, ["-m", "sqlr1_jax.main", "--distributed", *tiny_runs.command_line(home, workdir, **HALVED)]
    )
    assert "over 2 hosts" in (workdir / "log.txt").read_text()
    assert_same_run(workdir, finished)


@pytest.mark.nightly
def test_two_hosts_resume_from_a_checkpoint(home: Path, finished: Path, tmp_path: Path) -> None:
    workdir = tiny_runs.folder_with_data(home, tmp_path / "two")
    command = ["-m", "sqlr1_jax.main", "--distributed", *tiny_runs.command_line(home, workdir, **HALVED)]
    tiny_runs.run_on_hosts(home, command)
    shutil.rmtree(workdir / "checkpoints" / "grpo" / "4")
    for folder in ("evaluation/final", "export"):
        shutil.rmtree(workdir / folder)
    tiny_runs.run_on_hosts(home, command)
    assert "resuming at step 2" in (workdir / "log.txt").read_text()
    assert_same_run(workdir, finished)


@pytest.mark.nightly
def test_two_hosts_measure_the_same_difficulty_and_sample_the_same_rounds(home: Path, tmp_path: Path) -> None:
    """Random weights answer nothing right: all questions are kept, and every step samples all rounds."""
    changed: dict[str, Any] = {"grpo__refill": 1, "grpo__advantage__keep": "mixed", "grpo__difficulty__samples": 2,
        "grpo__difficulty__min_right": 0, "evaluate__max_concurrent_prompts": 2}  # fmt: skip
    one, two = (tiny_runs.folder_with_data(home, tmp_path / name) for name in ("one", "two"))
    tiny_runs.run_python(home, ["-m", "sqlr1_jax.main", *tiny_runs.command_line(home, one, **changed)])
    tiny_runs.run_on_hosts(
        home, ["-m", "sqlr1_jax.main", "--distributed", *tiny_runs.command_line(home, two, **changed | HALVED)]
    )
    lines, expected = ([json.loads(text) for text in (folder / "difficulty.jsonl").open()][1:] for folder in (two, one))
    assert lines == expected and len(lines) == 12
    assert_same_run(two, one)


def assert_same_run(workdir: Path, finished: Path) -> None:
    """Questions, samples and outcomes are equal; metrics and weights are up to the order of sums."""
    lines, expected_lines = (metrics.read_metrics(folder / "metrics.jsonl") for folder in (workdir, finished))
    for line, expected in zip(lines, expected_lines, strict=True):
        for name in ("loss", "grad_norm", "tokens", "reward/mean", "kl", "entropy", "outcome/bad_format"):
            if name in expected:
                assert line[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-5), (name, line["step"])
    for step in (1, 4):
        name = f"rollouts/step_{step:06d}.jsonl"
        groups, expected_groups = (
            [json.loads(text) for text in (folder / name).open()] for folder in (workdir, finished)
        )
        for group, expected in zip(groups, expected_groups, strict=True):
            assert group["id"] == expected["id"]
            for name in ("text", "outcome", "reward"):
                assert [sample[name] for sample in group["samples"]] == [sample[name] for sample in expected["samples"]]
    weights, expected_weights = (load_file(folder / "export" / "model.safetensors") for folder in (workdir, finished))
    for name, values in expected_weights.items():
        np.testing.assert_allclose(weights[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    for name in ("evaluation/final/greedy.jsonl", "evaluation/final/vote2.jsonl"):
        assert (workdir / name).read_text() == (finished / name).read_text()
    summaries = [json.loads((folder / "summary.json").read_text())["final"] for folder in (workdir, finished)]
    assert summaries[0] == summaries[1]
