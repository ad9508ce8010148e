from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sqlr1_jax.config import SamplingConfig
from sqlr1_jax.rollout.programs import DecodedTokens
from sqlr1_jax.rollout.recorder import SampleRecorder
from sqlr1_jax.rollout.request import Ids, Request
from sqlr1_jax.rollout.scheduler import FREE

STOP = 9
SLOTS = np.array([1, FREE, 0])  # the prompt in each of three slots


def _request(**settings: Any) -> Request:
    """Two prompts of two samples with at most six tokens."""
    return Request([np.arange(3, dtype=np.int32)] * 2, 2, SamplingConfig(max_tokens=6), seed=0, step=0, **settings)


def _decoded(tokens_PGC: list, length_PG: list, done_PG: list) -> DecodedTokens:
    """One call's output; each log-probability is minus the token."""
    tokens, done = jnp.asarray(tokens_PGC, jnp.int32), jnp.asarray(done_PG, bool)
    return DecodedTokens(tokens, -tokens.astype(jnp.float32), jnp.asarray(length_PG), done, (~done).any(1))


# Slot 0 holds prompt 1, slot 2 prompt 0. Sample 1 of prompt 1 ends in the first call, the others in the second.
FIRST = _decoded(
    [[[4, 5], [3, STOP]], [[0, 0], [0, 0]], [[1, 2], [7, 8]]],
    [[2, 2], [0, 0], [2, 2]],
    [[False, True], [True, True], [False, False]],
)
SECOND = _decoded(
    [[[6, STOP], [0, 0]], [[0, 0], [0, 0]], [[STOP, 0], [1, 1]]],
    [[4, 2], [0, 0], [3, 4]],
    [[True, True], [True, True], [True, True]],
)


def test_tokens_go_to_the_prompt_in_the_slot() -> None:
    recorder = SampleRecorder(_request(), (STOP,))
    recorder.record(SLOTS, FIRST)
    recorder.record(SLOTS, SECOND)
    completions = recorder.completions
    found = [[completions.ids(p, g).tolist() for g in range(2)] for p in range(2)]
    assert found == [[[1, 2, STOP], [7, 8, 1, 1]], [[4, 5, 6, STOP], [3, STOP]]]
    assert completions.stopped_PG.tolist() == [[True, False], [True, True]]  # the second one was cut off
    np.testing.assert_array_equal(completions.logprobs_PGT, -completions.tokens_PGT)


def test_a_sample_is_reported_once_when_it_ends() -> None:
    reported: list[tuple[int, int, list[int]]] = []
    request = _request(on_finished=lambda samples: reported.extend((p, g, ids.tolist()) for p, g, ids in samples))
    recorder = SampleRecorder(request, (STOP,))
    recorder.record(SLOTS, FIRST)
    assert reported == [(1, 1, [3, STOP])]
    recorder.record(SLOTS, SECOND)
    assert sorted(reported[1:]) == [(0, 0, [1, 2, STOP]), (0, 1, [7, 8, 1, 1]), (1, 0, [4, 5, 6, STOP])]


def test_unfinished_samples_are_those_in_slots_that_have_not_ended() -> None:
    recorder = SampleRecorder(_request(), (STOP,))
    assert (recorder.unfinished(SLOTS), recorder.unfinished(np.array([FREE, FREE, 0]))) == (4, 2)
    recorder.record(SLOTS, FIRST)
    assert recorder.unfinished(SLOTS) == 3
    assert recorder.force_done_PG(SLOTS).tolist() == [[False, True], [False, False], [False, False]]


def test_a_text_that_ends_before_the_device_knows_is_cut_and_forced_to_end() -> None:
    def ends_after_a_two(ids: Ids) -> int | None:
        found = np.flatnonzero(ids == 2)
        return int(found[0]) + 1 if len(found) else None

    recorder = SampleRecorder(_request(stop_fn=ends_after_a_two), (STOP,))
    recorder.record(SLOTS, FIRST)
    recorder.record(SLOTS, SECOND)  # the device sampled on
    assert recorder.completions.ids(0, 0).tolist() == [1, 2]
    assert recorder.completions.stopped_PG[0, 0]
    assert recorder.force_done_PG(SLOTS)[2].tolist() == [True, True]
    assert not recorder.completions.tokens_PGT[0, 0, 2:].any() and not recorder.completions.logprobs_PGT[0, 0, 2:].any()


def test_all_tokens_so_far_are_shown_after_each_read() -> None:
    lengths: list[int] = []
    recorder = SampleRecorder(_request(on_read=lambda c: lengths.append(int(c.length_PG.sum()))), (STOP,))
    recorder.record(SLOTS, FIRST)
    recorder.record(SLOTS, SECOND)
    assert lengths == [8, 13]
