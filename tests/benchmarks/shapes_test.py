from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import shapes
from shapes import Workload

from sqlr1_jax.model import qwen2

WORK = Workload("nano", prompts=1, samples=2, prompt=4, shortest=3, longest=3)


def test_models_have_the_parameter_counts_of_their_names() -> None:
    assert qwen2.count_params(shapes.MODELS["14.5m"]) == pytest.approx(14.5e6, rel=0.01)
    assert qwen2.count_params(shapes.MODELS["0.5b"]) == pytest.approx(494e6, rel=0.01)


def test_sample_lengths_are_within_bounds_and_deterministic() -> None:
    work = shapes.ROLLOUT["w1"]
    lengths_PG = work.lengths_PG()
    assert lengths_PG.shape == (8, 8)
    assert (lengths_PG.min(), lengths_PG.max()) == (18, 126)  # the extremes for this seed; bounds are 16 and 128
    np.testing.assert_array_equal(lengths_PG, dataclasses.replace(work).lengths_PG())
    assert work.tokens == lengths_PG.sum() == 4501


def test_prompts_and_completions_contain_neither_padding_nor_end_of_text() -> None:
    work = shapes.ROLLOUT["nano"]
    lengths_PG, ids_PGT = work.lengths_PG(), work.completions_PGT()
    assert work.prompts_PS().shape == (2, 12) and work.prompts_PS().min() >= 2
    np.testing.assert_array_equal((ids_PGT >= 2).sum(-1), lengths_PG)
    np.testing.assert_array_equal((ids_PGT > 0).sum(-1), lengths_PG)


def test_floor_counts_each_prompt_once_and_logits_of_completions_only() -> None:
    # nano: hidden 16, 2 layers, 2 query heads and 1 key-value head of 8, ffw 32, vocabulary 64.
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32  # q, k and v, o, feed-forward
    positions = 3 + 2 * 3  # prompt[:-1]; for each completion the prompt's last token and all its tokens but the last
    keys = (1 + 2 + 3) + 2 * (4 + 5 + 6)
    attention = 2 * 2 * (2 * 8 * 2 * keys)  # 2 layers × 2 products × 2 FLOPs × 2 heads of size 8
    logits = 2 * 16 * 64 * 6
    assert shapes.forward_floor(WORK) == 2 * 2 * layer * positions + attention + logits
    assert shapes.rollout_floor(WORK) == shapes.forward_floor(WORK)
    assert shapes.update_floor(WORK) == 3 * shapes.forward_floor(WORK)
