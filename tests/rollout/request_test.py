from __future__ import annotations

import dataclasses

import numpy as np

from sqlr1_jax.config import SamplingConfig
from sqlr1_jax.rollout.request import Completions, Request

REQUEST = Request([np.arange(3, dtype=np.int32)] * 2, 2, SamplingConfig(max_tokens=5), seed=0, step=0)


def test_prompts_are_numbered_by_position_unless_the_request_numbers_them() -> None:
    assert list(REQUEST.indices) == [0, 1]
    assert list(dataclasses.replace(REQUEST, index_P=[7, 3]).indices) == [7, 3]


def test_a_samples_limit_is_never_above_the_requests() -> None:
    assert REQUEST.token_limit_PG.tolist() == [[5, 5], [5, 5]]
    limited = dataclasses.replace(REQUEST, limit_PG=np.array([[1, 9], [5, 0]], np.int32))
    assert limited.token_limit_PG.tolist() == [[1, 5], [5, 0]]
    assert limited.token_limit_PG.dtype == np.int32


def test_the_ids_of_a_sample_end_at_its_length() -> None:
    completions = Completions.empty(2, 2, 4)
    assert completions.ids(1, 1).tolist() == []
    completions.tokens_PGT[1, 0] = [5, 6, 7, 0]
    completions.length_PG[1, 0] = 3
    assert completions.ids(1, 0).tolist() == [5, 6, 7]
