from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.data import packing
from sqlr1_jax.data.packing import Group, PackedRows, RowLayout, Segment
from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.train import batch
from testing import tiny_models, tiny_runs, training_data

pytestmark = pytest.mark.usefixtures("compiles_fast")

PACKED = config.RowsConfig(layout="packed", length=64)


def _rows(seed: int, prompts: int = 4, samples: int = 3) -> PackedRows:
    return batch.pack_groups(training_data.random_groups(prompts, samples, seed), None, PACKED)


def _weights_by_hand(rows: PackedRows, aggregation: str, constant: int) -> np.ndarray:
    """Completion by completion, in Python."""
    places = collections.defaultdict(list)
    for place in zip(*np.nonzero(rows.weight), strict=True):
        places[rows.prompt[place], rows.sample[place]].append(place)
    tokens = sum(map(len, places.values()))
    out = np.zeros(rows.weight.shape)
    for completion in places.values():
        for place in completion:
            share = {
                "token": 1 / tokens,
                "sample": 1 / len(completion) / len(places),
                "constant": 1 / constant / len(places),
            }
            out[place] = share[aggregation]
    return out


@given(
    st.integers(0, 10**6),
    st.sampled_from(["token", "sample", "constant"]),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_place_weights_equal_their_definitions(seed: int, aggregation: str, keep: list[bool]) -> None:
    """Some prompts are filtered: their completions neither weigh nor count."""
    rows = _rows(seed)
    rows = rows._replace(weight=rows.weight * np.array(keep, np.float32)[rows.prompt])
    weights = batch.loss_weights(rows, aggregation, 16)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, _weights_by_hand(rows, aggregation, 16), rtol=1e-6)
    if aggregation != "constant" and any(keep):
        assert weights.sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("aggregation", ["token", "sample", "constant"])
def test_a_completions_weight_does_not_depend_on_the_layout(aggregation: str) -> None:
    groups = training_data.random_groups(5, 3)
    one_segment = dataclasses.replace(packing.smallest_layout(groups), segments=1)
    layouts = (
        packing.shared_prefix_rows(groups, packing.smallest_layout(groups)), _rows(0, 5),
        packing.shared_prefix_rows(packing.unshared(groups), one_segment),
    )  # fmt: skip
    sums = []
    for rows in layouts:
        weights = batch.loss_weights(rows, aggregation, 16)
        totals = np.zeros((5, 3))
        np.add.at(totals, (rows.prompt, rows.sample), weights)
        sums.append(totals)
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-6)
    np.testing.assert_allclose(sums[2], sums[0], rtol=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sample", "constant"])
def test_denominators_count_all_hosts(monkeypatch: pytest.MonkeyPatch, aggregation: str) -> None:
    """A host that holds two of four prompts gives them the weights they have on one host, also where it holds none."""
    whole = _rows(0)
    want = batch.loss_weights(whole, aggregation, 16)
    tokens, completions = int((whole.weight > 0).sum()), 12
    everywhere = float(tokens if aggregation == "token" else completions)
    monkeypatch.setattr(collectives, "global_sum", lambda value: everywhere)
    part = whole._replace(weight=whole.weight * (whole.prompt < 2))
    np.testing.assert_allclose(batch.loss_weights(part, aggregation, 16), want * (whole.prompt < 2), rtol=1e-6)
    nothing = PackedRows(*(field[:0] for field in whole))
    assert batch.loss_weights(nothing, aggregation, 16).shape == (0, 64)


def test_a_host_without_rows_adds_nothing_to_the_denominator(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []

    def noted(value: float) -> float:
        told.append(float(value))
        return 5.0

    monkeypatch.setattr(collectives, "global_sum", noted)
    nothing = PackedRows(*(field[:0] for field in _rows(0)))
    for aggregation in ("token", "sample", "constant"):
        batch.loss_weights(nothing, aggregation)
    assert told == [0.0, 0.0, 0.0]


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 2))
def test_assemble_appends_empty_rows(seed: int, per_microbatch: int, spare: int) -> None:
    rows = _rows(seed)
    filled = -(-len(rows.tokens) // per_microbatch)
    advantage = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    fed = batch.assemble_batch(rows, tiny_models.one_device(), per_microbatch, filled + spare, advantage)
    assert int(fed.count) == filled
    for name, field in rows._asdict().items():
        got = np.asarray(getattr(fed.rows, name))
        assert got.shape == (filled + spare, per_microbatch, 64)
        flat = got.reshape(-1, 64)
        np.testing.assert_array_equal(flat[: len(field)], field)
        assert not flat[len(field) :].any()
    flat = np.asarray(fed.advantage_MBT).reshape(-1, 64)
    for place in zip(*np.nonzero(rows.weight), strict=True):
        assert flat[place] == advantage[rows.prompt[place], rows.sample[place]]
    np.testing.assert_array_equal(fed.old_MBT, fed.rows.logprob)


def test_more_rows_than_microbatches_take_is_an_error() -> None:
    with pytest.raises(packing.PackingError, match="do not fit"):
        batch.assemble_batch(_rows(0, prompts=20), tiny_models.one_device(), 1, 2)


def test_rows_are_split_over_the_mesh() -> None:
    mesh = sharding.make_mesh(config.MeshConfig(fsdp=4, tensor=2))
    groups = training_data.random_groups(8, 2)
    fed = batch.assemble_batch(packing.shared_prefix_rows(groups, packing.smallest_layout(groups)), mesh, 4, 2)
    assert fed.rows.tokens.sharding.shard_shape(fed.rows.tokens.shape)[1] == 1
    np.testing.assert_array_equal(
        np.asarray(fed.rows.tokens)[1, 3], packing.shared_prefix_rows(groups, packing.smallest_layout(groups)).tokens[7]
    )


def test_layouts_fit_the_longest_unless_set() -> None:
    groups = training_data.random_groups(4, 3, longest=20)
    longest = packing.smallest_layout(groups)
    assert batch.choose_layout(groups, config.RowsConfig()) == longest
    assert batch.choose_layout(groups, config.RowsConfig(prefix=99, segment=77)) == RowLayout(99, 3, 77)
    assert batch.choose_layout(groups, PACKED) is None
    assert batch.with_row_length(config.RowsConfig(), 50).length == 50
    assert batch.with_row_length(PACKED, 50).length == 64


def test_a_layout_has_a_prefix_even_where_nothing_is_shared() -> None:
    alone = Group([], [Segment([2, 3, 4], [0.0, 1.0], [0.0, 0.0], 0, 0)])
    layout = batch.choose_layout([alone], config.RowsConfig())
    assert layout is not None
    assert layout.prefix >= 1
    rows = batch.pack_groups([alone], layout, config.RowsConfig())
    assert rows.positions[0, layout.prefix : layout.prefix + 2].tolist() == [0, 1]


_HOST = """
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
fed = batch.assemble_batch(rows, sharding.make_mesh(config.MeshConfig()), 1, 2)
whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(fed.rows.tokens.sharding.mesh))
print(np.asarray(whole(fed.rows.tokens)).tolist(), "|", float(np.asarray(whole(fed.rows.weight)).sum()))
"""


def test_two_hosts_assemble_one_batch_of_both_their_rows(tmp_path: Path) -> None:
    """Two processes, gloo between them: each microbatch holds a row of each, and weights add up to one over both."""
    said = tiny_runs.run_on_hosts(tmp_path, ["-c", _HOST])
    assert said[0] == said[1]
    tokens, _, total = said[0].partition(" | ")
    groups = training_data.random_groups(4, 3)
    rows = packing.shared_prefix_rows(groups, packing.smallest_layout(groups, 8)).tokens
    assert json.loads(tokens) == [[rows[0].tolist(), rows[2].tolist()], [rows[1].tolist(), rows[3].tolist()]]
    assert float(total) == pytest.approx(1, rel=1e-5)
