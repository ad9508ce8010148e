"""Assignment of prompts to slots, computed identically by every process without communication.

Each process owns an equal share of the slots and of the prompts, and only its own prompts enter its slots. Still, every
process tracks all slots: prefill and decoding are programs over all devices, so all processes must call them equally
often and with the same shapes. The assignment depends only on which slots were busy after each call of `decode_steps`,
which every process reads from the device, and never on timing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FREE = -1


class SlotScheduler:
    """Assigns waiting prompts, in order, to free slots. A slot is free again when all its prompt's samples are done.

    Attributes:
      prompt_P: int64, the prompt in each slot, by its index over all processes; FREE if there is none.
    """

    def __init__(self, slots: int, prefix_N: npt.ArrayLike, processes: int = 1):
        """Process i owns the i-th of `processes` equal parts of the slots and of the prompts.

        Args:
          slots: of all processes.
          prefix_N: a number for the prefix of each of the N prompts of all processes. All prompts that a process puts
            into one batch of `admit` have the same.
          processes: the number of processes.

        Raises:
          ValueError: the slots or the prompts do not divide evenly among the processes.
        """
        self._prefix_N = np.asarray(prefix_N)
        if slots % processes or len(self._prefix_N) % processes:
            raise ValueError(
                f"{slots} slots and {len(self._prefix_N)} prompts do not divide evenly among {processes} processes."
            )
        self.prompt_P: npt.NDArray[np.int64] = np.full(slots, FREE)
        self._processes = processes
        self._waiting = [list(part) for part in np.split(np.arange(len(self._prefix_N)), processes)]

    @property
    def done(self) -> bool:
        """Whether no prompt is in a slot and none is waiting."""
        return not any(self._waiting) and bool((self.prompt_P == FREE).all())

    def release(self, busy_P: npt.NDArray[np.bool_], assigned_P: npt.NDArray[np.int64]) -> None:
        """Frees the slots without an unfinished sample.

        Args:
          busy_P: the slot had an unfinished sample after a call of `decode_steps`.
          assigned_P: `prompt_P` at the time of that call. A slot that holds another prompt by now is not freed: the
            host reads each call's output one call late, and may have refilled the slot in between.
        """
        self.prompt_P[~busy_P & (assigned_P == self.prompt_P)] = FREE

    def admit(self, per_process: int) -> list[npt.NDArray[np.int64]]:
        """Puts waiting prompts into free slots, until either runs out.

        Returns:
          The slots of each prefill, [processes, per_process]. Unused entries hold the number of slots, an index that
          is out of bounds.
        """
        batches = []
        while (slots_HR := self._next_batch(per_process)) is not None:
            batches.append(slots_HR)
        return batches

    def _next_batch(self, per_process: int) -> npt.NDArray[np.int64] | None:
        local_slots = len(self.prompt_P) // self._processes
        slots_HR = np.full((self._processes, per_process), len(self.prompt_P))
        for process, waiting in enumerate(self._waiting):
            first = process * local_slots
            free = first + np.flatnonzero(self.prompt_P[first : first + local_slots] == FREE)
            same_prefix = self._prefix_N[waiting[:per_process]] == self._prefix_N[waiting[:1]]
            count = len(same_prefix) if same_prefix.all() else int(np.argmin(same_prefix))
            for i, slot in enumerate(free[:count]):
                self.prompt_P[slot], slots_HR[process, i] = waiting.pop(0), slot
        return slots_HR if (slots_HR < len(self.prompt_P)).any() else None
