from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, PackedRows, RowLayout, Segment
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.train import batch
from sqlr1_jax.train.batch import Microbatches
from testing import tiny_models, tiny_runs, training_data

pytestmark = pytest.mark.usefixtures("compiles_fast")

PACKED = config.RowsConfig(layout="packed", length=64)


def _rows(seed: int, prompts: int = 4, samples: int = 3) -> PackedRows:
    return batch.pack_groups(training_data.random_groups(prompts, samples, seed), None, PACKED)


def _naive_weights(rows: PackedRows, aggregation: str, constant: int) -> np.ndarray:
    """Loss weights [B, T], computed per completion in a Python loop."""
    completions = collections.defaultdict(list)
    for position in zip(*np.nonzero(rows.weight), strict=True):
        completions[rows.prompt[position], rows.sample[position]].append(position)
    tokens = sum(map(len, completions.values()))
    weights_BT = np.zeros(rows.weight.shape)
    for positions in completions.values():
        weight = {
            "token": 1 / tokens,
            "sample": 1 / len(positions) / len(completions),
            "constant": 1 / constant / len(completions),
        }
        for position in positions:
            weights_BT[position] = weight[aggregation]
    return weights_BT


@given(
    st.integers(0, 10**6),
    st.sampled_from(["token", "sample", "constant"]),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_loss_weights_match_their_definitions(seed: int, aggregation: str, keep: list[bool]) -> None:
    """Filtered prompts have weight 0 and do not count in the denominator."""
    rows = _rows(seed)
    rows = rows._replace(weight=rows.weight * np.array(keep, np.float32)[rows.prompt])
    weights = batch.loss_weights(rows, aggregation, 16)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, _naive_weights(rows, aggregation, 16), rtol=1e-6)
    if aggregation != "constant" and any(keep):
        assert weights.sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("aggregation", ["mean", "", "Token"])
def test_an_unknown_aggregation_is_an_error(aggregation: str) -> None:
    with pytest.raises(ValueError, match=rf"grpo\.aggregation is '{aggregation}'; it must be 'token', 'sample' or"):
        batch.loss_weights(_rows(0), aggregation, 16)


@pytest.mark.parametrize("aggregation", ["token", "sample", "constant"])
def test_the_weight_of_a_completion_does_not_depend_on_the_row_layout(aggregation: str) -> None:
    groups = training_data.random_groups(5, 3)
    layout = packing.smallest_layout(groups)
    unshared_layout = dataclasses.replace(layout, segments=1)
    sums = []
    for rows in (
        packing.shared_prefix_rows(groups, layout),
        _rows(0, 5),
        packing.shared_prefix_rows(packing.unshared(groups), unshared_layout),
    ):
        weights_BT = batch.loss_weights(rows, aggregation, 16)
        weights_PG = np.zeros((5, 3))
        np.add.at(weights_PG, (rows.prompt, rows.sample), weights_BT)
        sums.append(weights_PG)
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-6)
    np.testing.assert_allclose(sums[2], sums[0], rtol=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sample", "constant"])
def test_denominators_are_summed_over_all_processes(monkeypatch: pytest.MonkeyPatch, aggregation: str) -> None:
    """A process with two of four prompts gives them the weights they have in a single process."""
    all_rows = _rows(0)
    expected = batch.loss_weights(all_rows, aggregation, 16)
    total = int((all_rows.weight > 0).sum()) if aggregation == "token" else 12
    monkeypatch.setattr(collectives, "global_sum", lambda value: float(total))
    local_rows = all_rows._replace(weight=all_rows.weight * (all_rows.prompt < 2))
    weights = batch.loss_weights(local_rows, aggregation, 16)
    np.testing.assert_allclose(weights, expected * (all_rows.prompt < 2), rtol=1e-6)
    no_rows = PackedRows(*(field[:0] for field in all_rows))
    assert batch.loss_weights(no_rows, aggregation, 16).shape == (0, 64)


def test_a_process_without_rows_adds_zero_to_the_denominator(monkeypatch: pytest.MonkeyPatch) -> None:
    addends: list[float] = []

    def global_sum(value: float) -> float:
        addends.append(float(value))
        return 5.0

    monkeypatch.setattr(collectives, "global_sum", global_sum)
    no_rows = PackedRows(*(field[:0] for field in _rows(0)))
    for aggregation in ("token", "sample", "constant"):
        batch.loss_weights(no_rows, aggregation)
    assert addends == [0.0, 0.0, 0.0]


@given(st.integers(1, 100), st.integers(1, 9), st.sampled_from([(1, 1), (4, 1), (8, 1), (8, 2), (16, 4)]))
def test_every_data_parallel_group_computes_as_many_rows(groups: int, largest: int, shape: tuple[int, int]) -> None:
    data_parallel, processes = shape
    devices = np.array([SimpleNamespace(process_index=i * processes // data_parallel) for i in range(data_parallel)])
    mesh: Any = SimpleNamespace(devices=devices, shape={"replica": 1, "fsdp": data_parallel, "tensor": 1})
    rows, count = batch.microbatches(groups, config.RowsConfig(per_microbatch=largest), mesh)
    rows_each = rows * processes // data_parallel
    assert rows_each * data_parallel == rows * processes and 1 <= rows_each <= largest
    assert groups <= count * rows * processes  # all fit
    assert groups > (count - 1) * largest * data_parallel  # fewer microbatches would not do
    assert groups > count * (rows_each - 1) * data_parallel  # nor would smaller ones


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 2))
def test_an_assembled_batch_holds_the_rows_followed_by_empty_ones(seed: int, per_microbatch: int, spare: int) -> None:
    rows = _rows(seed)
    filled = -(-len(rows.tokens) // per_microbatch)
    advantage_PG = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    assembled = batch.assemble_batch(
        rows, tiny_models.one_device(), Microbatches(per_microbatch, filled + spare), advantage_PG
    )
    assert int(assembled.count) == filled
    for name, field in rows._asdict().items():
        field_MBT = np.asarray(getattr(assembled.rows, name))
        assert field_MBT.shape == (filled + spare, per_microbatch, 64)
        flat = field_MBT.reshape(-1, 64)
        np.testing.assert_array_equal(flat[: len(field)], field)
        assert not flat[len(field) :].any()
    flat = np.asarray(assembled.advantage_MBT).reshape(-1, 64)
    for position in zip(*np.nonzero(rows.weight), strict=True):
        assert flat[position] == advantage_PG[rows.prompt[position], rows.sample[position]]
    np.testing.assert_array_equal(assembled.old_MBT, assembled.rows.logprob)


def test_more_rows_than_the_microbatches_hold_is_an_error() -> None:
    with pytest.raises(packing.PackingError, match="do not fit"):
        batch.assemble_batch(_rows(0, prompts=20), tiny_models.one_device(), Microbatches(1, 2))


def test_rows_are_sharded_over_the_mesh() -> None:
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2))
    groups = training_data.random_groups(8, 2)
    rows = packing.shared_prefix_rows(groups, packing.smallest_layout(groups))
    tokens_MBT = batch.assemble_batch(rows, mesh, Microbatches(4, 2)).rows.tokens
    assert tokens_MBT.sharding.shard_shape(tokens_MBT.shape)[1] == 1
    np.testing.assert_array_equal(np.asarray(tokens_MBT)[1, 3], rows.tokens[7])


def test_a_layout_fits_the_longest_group_unless_the_settings_say_otherwise() -> None:
    groups = training_data.random_groups(4, 3, longest=20)
    longest = packing.smallest_layout(groups)
    assert batch.choose_layout(groups, config.RowsConfig()) == longest
    assert batch.choose_layout(groups, config.RowsConfig(prefix=99, segment=77)) == RowLayout(99, 3, 77)
    assert batch.choose_layout(groups, PACKED) is None
    assert batch.with_row_length(config.RowsConfig(), 50).length == 50
    assert batch.with_row_length(PACKED, 50).length == 64


def test_a_layout_has_a_prefix_even_if_no_group_has_one() -> None:
    group = Group([], [Segment([2, 3, 4], [0.0, 1.0], [0.0, 0.0], 0, 0)])
    layout = batch.choose_layout([group], config.RowsConfig())
    assert layout is not None
    assert layout.prefix >= 1
    rows = batch.pack_groups([group], layout, config.RowsConfig())
    assert rows.positions[0, layout.prefix : layout.prefix + 2].tolist() == [0, 1]


_PROCESS = """
import jax, numpy as np
from testing import training_data
from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.train import batch
collectives.initialize()
groups = training_data.random_groups(4, 3)
layout = packing.smallest_layout(groups, 8)
rows = packing.shared_prefix_rows(groups[collectives.local_slice(4)], layout)
rows = rows._replace(weight=batch.loss_weights(rows, "token"))
assembled = batch.assemble_batch(rows, sharding.make_mesh(config.MeshConfig()), batch.Microbatches(1, 2))
replicated = sharding.replicated(assembled.rows.tokens.sharding.mesh)
replicate = jax.jit(lambda x: x, out_shardings=replicated)
tokens, weight = (np.asarray(replicate(x)) for x in (assembled.rows.tokens, assembled.rows.weight))
print(tokens.tolist(), "|", float(weight.sum()))
"""


def test_two_processes_assemble_one_batch_of_their_rows(tmp_path: Path) -> None:
    """Two processes connected by gloo: each microbatch holds a row of each, and the weights of both sum to one."""
    outputs = tiny_runs.run_on_hosts(tmp_path, ["-c", _PROCESS])
    assert outputs[0] == outputs[1]
    tokens, _, total = outputs[0].partition(" | ")
    groups = training_data.random_groups(4, 3)
    rows = packing.shared_prefix_rows(groups, packing.smallest_layout(groups, 8)).tokens
    assert json.loads(tokens) == [[rows[0].tolist(), rows[2].tolist()], [rows[1].tolist(), rows[3].tolist()]]
    assert float(total) == pytest.approx(1, rel=1e-5)
