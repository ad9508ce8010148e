from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ours
import pytest
import shapes
import update
import weights

pytestmark = pytest.mark.usefixtures("compiles_fast")


@pytest.fixture(scope="module")
def job() -> Iterator[dict[str, Any]]:
    with weights.saved_weights("nano") as folder:
        yield {"platform": "cpu", "weights": folder}


@pytest.mark.parametrize("engine", ["ours", "naive"])
def test_rollout_samples_the_planned_number_of_tokens(job: dict[str, Any], engine: str) -> None:
    work = shapes.ROLLOUT["nano"]
    facts = ours.rollout(job | {"engine": engine}, work)()
    assert facts["made"] == work.tokens == work.lengths_PG().sum()


def test_groups_contain_the_tokens_of_the_workload(job: dict[str, Any]) -> None:
    work = shapes.UPDATE["nano"]
    for p, (prompt, group) in enumerate(zip(work.prompts_PS(), ours.groups(work), strict=True)):
        for g, segment in enumerate(group.segments):
            tokens = np.concatenate([prompt, work.completions_PGT()[p, g]])
            np.testing.assert_array_equal(np.concatenate([group.prefix, segment.tokens]), tokens)
            assert np.sum(segment.weight) == work.lengths_PG()[p, g] == len(segment.logprob)


def test_shared_and_naive_rows_have_the_same_loss_and_gradient(job: dict[str, Any], tmp_path: Path) -> None:
    work, losses = shapes.UPDATE["nano"], {}
    for engine, microbatch in (("ours", 1), ("naive", 2)):
        engine_job = job | {"engine": engine, "microbatch": microbatch, "gradient": f"{tmp_path}/{engine}.npy"}
        losses[engine] = ours.update(engine_job, work)()["loss"]
    assert losses["ours"] == pytest.approx(losses["naive"], rel=1e-5) and losses["ours"] != 0
    distance = update.gradient_distance(tmp_path)
    assert distance is not None and distance < 1e-5
