from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.rollout.scheduler import FREE, SlotScheduler


def test_prompts_take_free_slots_in_order() -> None:
    seats = SlotScheduler(3, 5)
    assert [slots.tolist() for slots in seats.admit(2)] == [[[0, 1]], [[2, 3]]], "3 is no slot: a place that none takes"
    assert seats.prompt_P.tolist() == [0, 1, 2]
    seats.release(np.array([True, False, True]), seats.prompt_P.copy())
    assert seats.prompt_P.tolist() == [0, FREE, 2]
    assert [slots.tolist() for slots in seats.admit(2)] == [[[1, 3]]]
    assert seats.prompt_P.tolist() == [0, 3, 2]
    assert seats.admit(2) == [] and not seats.done


def test_a_chunk_read_late_frees_only_its_own_prompts_slots() -> None:
    seats = SlotScheduler(2, 3)
    seats.admit(2)
    before = seats.prompt_P.copy()
    seats.release(np.array([False, True]), before)
    seats.admit(2)
    seats.release(np.array([False, True]), before)  # the chunk that was on its way meanwhile
    assert seats.prompt_P.tolist() == [2, 1]
    seats.release(np.array([False, False]), seats.prompt_P.copy())
    assert seats.done


def test_slots_and_prompts_must_divide_among_hosts() -> None:
    with pytest.raises(ValueError, match="3 slots and 4 prompts do not part evenly over 2 hosts"):
        SlotScheduler(3, 4, 2)


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(1, 4),
    st.lists(st.integers(0, 2**12), min_size=9),
)
def test_every_prompt_is_seated_once_on_its_own_host(
    hosts: int, slots: int, prompts: int, most: int, busy: list[int]
) -> None:
    seats = SlotScheduler(slots * hosts, prompts * hosts, hosts)
    seen: list[int] = []
    for turn in range(100):
        before = seats.prompt_P.copy()
        for slots_HR in seats.admit(most):
            assert slots_HR.shape == (hosts, most)
            taken = slots_HR[slots_HR < slots * hosts]
            assert (before[taken] == FREE).all()
            seen += seats.prompt_P[taken].tolist()
            for host, row in enumerate(slots_HR):
                here = row[row < slots * hosts]
                assert ((here // slots) == host).all() and ((seats.prompt_P[here] // max(1, prompts)) == host).all()
        if seats.done:
            break
        bits = busy[turn % len(busy)] if turn < 50 else 0
        seats.release(np.array([bool(bits >> p & 1) for p in range(slots * hosts)]), seats.prompt_P.copy())
    assert seats.done
    assert sorted(seen) == list(range(prompts * hosts))
