from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.rollout import prefixes
from sqlr1_jax.rollout.prefixes import PrefixStore, RequestPrefixes, padded_size
from sqlr1_jax.rollout.request import Request


def _request(prompts: list[list[int]], lengths: list[int] | None) -> Request:
    ids = [np.asarray(prompt, np.int32) for prompt in prompts]
    return Request(ids, 1, config.SamplingConfig(), 0, 0, prefix_length_P=lengths)


PROMPTS = [[1, 2, 3, 4, 5], [1, 2, 3, 6, 7, 8], [1, 2, 9, 9, 9], [1, 2, 3], [4, 4, 4, 4, 4]]


@pytest.fixture(autouse=True)
def _short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 2)


def test_prompts_that_begin_alike_have_one_prefix() -> None:
    found = RequestPrefixes(_request(PROMPTS, [3, 3, 3, 3, 3]), None)
    assert found.number_N.tolist() == [1, 1, 0, 0, 0]
    assert found.length_N.tolist() == [3, 3, 0, 0, 0]
    assert found.own_length_N.tolist() == [1, 2, 4, 2, 4]


def test_with_a_store_a_prompt_alone_has_its_prefix() -> None:
    found = RequestPrefixes(_request(PROMPTS, [3, 3, 3, 3, 3]), PrefixStore())
    assert found.number_N.tolist() == [1, 1, 2, 0, 3]  # [1, 2, 3] must keep a token after its prefix, and one to decode


def test_without_lengths_or_with_short_ones_prompts_are_prefilled_whole() -> None:
    for lengths in (None, [1, 1, 1, 1, 1]):
        found = RequestPrefixes(_request(PROMPTS, lengths), PrefixStore())
        assert not found.number_N.any() and not found.length_N.any()
        assert found.own_length_N.tolist() == [4, 5, 4, 2, 4]


def test_the_store_keeps_what_was_used_last() -> None:
    store, computed = PrefixStore(capacity=2), []

    def get(key: bytes) -> Any:
        return store.get(key, lambda: computed.append(key) or key)  # type: ignore[func-returns-value,arg-type,return-value]

    for key in (b"a", b"b", b"a", b"c", b"a", b"b"):
        assert get(key) == key
    assert computed == [b"a", b"b", b"c", b"b"]


@given(st.integers(1, 100_000))
def test_padded_sizes_hold_the_tokens_with_little_padding(tokens: int) -> None:
    size = padded_size(tokens)
    assert tokens <= size <= max(32, 1.5 * tokens)
    assert padded_size(size) == size


def test_padded_sizes_are_few() -> None:
    assert sorted({padded_size(n) for n in range(1, 257)}) == [32, 48, 64, 96, 128, 192, 256]
