from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.rollout.scheduler import FREE, SlotScheduler


def test_prompts_enter_the_first_free_slots_in_order() -> None:
    scheduler = SlotScheduler(3, [0] * 5)
    batches = [slots_HR.tolist() for slots_HR in scheduler.admit(2)]
    assert batches == [[[0, 1]], [[2, 3]]], "the last entry is unused: 3 is the number of slots"
    assert scheduler.prompt_P.tolist() == [0, 1, 2]
    scheduler.release(np.array([True, False, True]), scheduler.prompt_P.copy())
    assert scheduler.prompt_P.tolist() == [0, FREE, 2]
    assert [slots_HR.tolist() for slots_HR in scheduler.admit(2)] == [[[1, 3]]]
    assert scheduler.prompt_P.tolist() == [0, 3, 2]
    assert scheduler.admit(2) == [] and not scheduler.done


def test_release_ignores_slots_that_were_refilled_since_the_call() -> None:
    scheduler = SlotScheduler(2, [0] * 3)
    scheduler.admit(2)
    assigned_P = scheduler.prompt_P.copy()
    scheduler.release(np.array([False, True]), assigned_P)
    scheduler.admit(2)
    scheduler.release(np.array([False, True]), assigned_P)  # of a call that was dispatched before the refill
    assert scheduler.prompt_P.tolist() == [2, 1]
    scheduler.release(np.array([False, False]), scheduler.prompt_P.copy())
    assert scheduler.done


def test_slots_that_do_not_divide_among_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 slots and 4 prompts do not divide evenly among 2 processes"):
        SlotScheduler(3, [0] * 4, 2)


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(1, 4),
    st.lists(st.integers(0, 2**12), min_size=9),
)
def test_every_prompt_enters_one_slot_of_its_own_process(
    processes: int, slots: int, prompts: int, per_process: int, busy_bits: list[int]
) -> None:
    """`slots` and `prompts` are those of one process; bit p of a call's `busy_bits` is slot p's."""
    num_slots = slots * processes
    scheduler = SlotScheduler(num_slots, [0] * (prompts * processes), processes)
    admitted: list[int] = []
    for call in range(100):
        before_P = scheduler.prompt_P.copy()
        for slots_HR in scheduler.admit(per_process):
            assert slots_HR.shape == (processes, per_process)
            used = slots_HR[slots_HR < num_slots]
            assert (before_P[used] == FREE).all()
            admitted += scheduler.prompt_P[used].tolist()
            for process, slot_R in enumerate(slots_HR):
                local = slot_R[slot_R < num_slots]
                assert (local // slots == process).all()
                assert (scheduler.prompt_P[local] // max(1, prompts) == process).all()
        if scheduler.done:
            break
        bits = busy_bits[call % len(busy_bits)] if call < 50 else 0
        scheduler.release(np.array([bool(bits >> p & 1) for p in range(num_slots)]), scheduler.prompt_P.copy())
    assert scheduler.done
    assert sorted(admitted) == list(range(prompts * processes))
